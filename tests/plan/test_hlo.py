"""Reading modules: text written by hand in the forms that XLA prints, and a real one."""

import jax
import jax.numpy as jnp
import pytest

from pdrec_jax.plan.cost import (
    UNKNOWN_TRIPS,
    Collective,
    cost_of,
    group_size,
    product_flops,
)
from pdrec_jax.plan.hlo import Shape, parse, parse_instruction, parse_shapes

TEXT = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8,4])->f32[8]}, num_partitions=16

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%rows (p0: f32[1000,4], p1: s32[8]) -> f32[8,4] {
  %p0 = f32[1000,4]{1,0} parameter(0)
  %p1 = s32[8]{0} parameter(1)
  ROOT %g = f32[8,4]{1,0} gather(%p0, %p1), offset_dims={1}, slice_sizes={1,4}
}

%body (s: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %s = (s32[], f32[8,4]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %z = f32[8,4]{1,0} get-tuple-element(%s), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%n, %one)
  %w = f32[4,4]{1,0} constant({...})
  %m = f32[8,4]{1,0} dot(%z, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %r = f32[8,4]{1,0} all-reduce(%m), channel_id=1, replica_groups=[4,4]<=[16], to_apply=%add
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%next, %r)
}

%cond (s: (s32[], f32[8,4])) -> pred[] {
  %s.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  %n.1 = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  %ten = s32[]{:T(128)} constant(10)
  ROOT %lt = pred[]{:T(512)} compare(%n.1, %ten), direction=LT
}

ENTRY %main (a: f32[8,4], table: f32[1000,4], ids: s32[8]) -> f32[8,4] {
  %a = f32[8,4]{1,0:T(8,128)} parameter(0), sharding={devices=[4,1,4]<=[16]}
  %table = f32[1000,4]{1,0} parameter(1)
  %ids = s32[8]{0} parameter(2)
  %zero = s32[] constant(0)
  %read = f32[8,4]{1,0:T(8,128)S(1)} fusion(%table, %ids), kind=kLoop, calls=%rows
  %start = (s32[], f32[8,4]{1,0}) tuple(%zero, %a)
  %loop = (s32[], /*index=1*/f32[8,4]{1,0}) while(%start), condition=%cond, body=%body
  %out = f32[8,4]{1,0} get-tuple-element(%loop), index=1
  %c = f32[8,6]{1,0} convolution(%out, %kernel), dim_labels=bf_io->bf
  %kernel = f32[4,6]{1,0} constant({...})
  ROOT %sum.1 = f32[8,4]{1,0} add(%out, %read)
}
"""


def test_an_instruction_is_read() -> None:
    found = parse_instruction(
        "  ROOT %x.1 = (f32[2,3]{1,0:T(8,128)S(1)}, /*index=1*/pred[]) custom-call(%a.b, %c-d), "
        'called_computations={%f}, metadata={op_name="jit(f)/x"}'
    )
    assert found is not None
    assert (found.name, found.opcode, found.operands) == ("x.1", "custom-call", ("a.b", "c-d"))
    assert found.shapes == (Shape("f32", (2, 3), 1), Shape("pred", ()))
    assert found.callees == ["f"]
    assert [shape.bytes for shape in found.shapes] == [24, 1]
    assert parse_instruction("} // computation") is None
    assert parse_shapes("bf16[4,<=8]{1,0}")[0].dims == (4, 8)


def test_loops_count_as_often_as_they_turn() -> None:
    module = parse(TEXT)
    assert (module.entry, module.partitions) == ("main", 16)
    cost = cost_of(module)
    assert cost.guessed_loops == 0
    assert cost.flops == 10 * (2 * 8 * 4 * 4) + 2 * 8 * 6 * 4
    assert cost.collectives == (Collective("all-reduce", 8 * 4 * 4, 4, 10),)
    assert cost.sent == 10 * 2 * 3 / 4 * 128


def test_a_gather_reads_its_rows_and_near_memory_is_free() -> None:
    main = [i for i in parse(TEXT).computations["main"] if i.opcode == "fusion"]
    assert main[0].shapes[0].space == 1
    # 8 rows of 4 numbers and 8 ids; nothing of the other rows, nor of the result in space 1.
    alone = TEXT.replace("while(%start)", "tuple(%start)").replace("convolution(", "tuple(")
    added = 2 * 128  # the sum's operand and result in main memory
    assert cost_of(parse(alone)).bytes == 8 * 4 * 4 + 8 * 4 + added


def test_a_fusion_within_a_fusion_is_looked_into() -> None:
    outer = """%outer (q0: s32[8], q1: f32[1000,4]) -> f32[8,4] {
  %q0 = s32[8]{0} parameter(0)
  %q1 = f32[1000,4]{1,0} parameter(1)
  ROOT %inner = f32[8,4]{1,0} fusion(%q1, %q0), kind=kCustom, calls=%rows
}

%body"""
    nested = TEXT.replace("%body", outer, 1)
    nested = nested.replace(
        "fusion(%table, %ids), kind=kLoop, calls=%rows",
        "fusion(%ids, %table), kind=kLoop, calls=%outer",
    )
    assert "calls=%outer" in nested
    assert cost_of(parse(nested)).bytes == cost_of(parse(TEXT)).bytes


def test_a_loop_that_depends_on_data_is_guessed() -> None:
    module = parse(TEXT.replace("direction=LT", "direction=NE"))
    cost = cost_of(module)
    assert cost.guessed_loops == 1
    assert cost.collectives[0].times == UNKNOWN_TRIPS


def test_a_known_number_of_turns_is_believed() -> None:
    known = 'body=%body, backend_config={"known_trip_count":{"n":"3"}}'
    assert cost_of(parse(TEXT.replace("body=%body", known))).collectives[0].times == 3


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, x", 4),
        ("replica_groups=[2,8]<=[16]", 8),
        ("replica_groups=[4,4]<=[4,4]T(1,0)", 4),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=8] {'axis_0'}, use", 4),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([4,4]T(1,0)) {'a','b'}, use", 8),
        ("channel_id=1", 16),
    ],
)
def test_groups_of_collectives(text: str, size: int) -> None:
    assert group_size(text, 16) == size


def test_what_a_device_sends() -> None:
    assert Collective("all-gather", 100, 4, 2).sent == 150
    assert Collective("all-reduce", 100, 4, 1).sent == 150
    assert Collective("collective-permute", 100, 4, 3).sent == 300


def test_a_real_module_agrees_with_the_products_in_it() -> None:
    def f(x: jax.Array, w: jax.Array) -> jax.Array:
        step = lambda z, _: (jnp.tanh(z @ w), None)  # noqa: E731
        return jax.lax.scan(step, x, None, length=7)[0] @ w

    shapes = (
        jax.ShapeDtypeStruct((32, 16), jnp.float32),
        jax.ShapeDtypeStruct((16, 16), jnp.float32),
    )
    module = parse(jax.jit(f).lower(*shapes).compile().as_text())
    assert cost_of(module).flops == 8 * 2 * 32 * 16 * 16


def test_text_without_a_module_is_refused() -> None:
    with pytest.raises(ValueError, match="entry"):
        parse("nothing")


def _product(line: str, *operands: tuple[int, ...]) -> float:
    instruction = parse_instruction(line)
    assert instruction is not None
    return product_flops(instruction, [Shape("f32", dims) for dims in operands])


@pytest.mark.parametrize("batch", [1, 8, 512])
def test_a_batched_product_of_a_tpu_is_counted_once(batch: int) -> None:
    """As XLA writes ``einsum("rqd,rkd->rqk")`` for TPUs, of which most windows meet nothing."""
    line = (
        f"%c = f32[{batch},16,32]{{2,1,0}} convolution(%a, %b), window={{size={batch} "
        f"stride={max(batch - 1, 1)} lhs_dilate={batch}}}, dim_labels=0bf_0oi->0bf"
    )
    assert _product(line, (batch, 16, 4), (batch, 32, 4)) == 2 * batch * 16 * 32 * 4


def test_a_window_without_dilation_is_summed_over() -> None:
    """A kernel's gradient: ``einsum("rld,rlk->dk")``."""
    line = "%c = f32[1,4,6]{2,1,0} convolution(%a, %b), window={size=8}, dim_labels=0fb_0io->0bf"
    assert _product(line, (8, 16, 4), (8, 16, 6)) == 2 * 8 * 16 * 4 * 6


@pytest.mark.parametrize(
    ("window", "given", "kernel", "made"),
    [
        ("size=3 pad=1_1", 10, 3, 10),
        ("size=3 stride=2 pad=0_1", 10, 3, 5),
        ("size=4 pad=3_3 lhs_dilate=2", 7, 4, 16),
        ("size=3 pad=-1_2 rhs_dilate=2 rhs_reversal=1", 12, 3, 9),
        ("", 5, 1, 5),
    ],
)
def test_a_window_counts_what_xla_computes(window: str, given: int, kernel: int, made: int) -> None:
    """Against the convolution itself, of ones: its outputs sum to the number of products."""
    fields = dict(part.split("=") for part in window.split())
    low, high = (int(side) for side in fields.get("pad", "0_0").split("_"))
    out = jax.lax.conv_general_dilated(
        jnp.ones((1, 1, given)),
        jnp.ones((1, 1, kernel)),
        (int(fields.get("stride", 1)),),
        [(low, high)],
        (int(fields.get("lhs_dilate", 1)),),
        (int(fields.get("rhs_dilate", 1)),),
    )
    assert out.shape == (1, 1, made)
    said = f", window={{{window}}}" * bool(window)
    line = f"%c = f32[1,1,{made}]{{2,1,0}} convolution(%a, %b){said}, dim_labels=bf0_oi0->bf0"
    assert _product(line, (1, 1, given), (1, 1, kernel)) == 2 * float(out.sum())
