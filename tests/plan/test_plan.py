"""Topologies, meshes, roofline, the search for a mesh, and the command line."""

from collections.abc import Iterator
from importlib import util
from pathlib import Path

import numpy as np
import pytest

from pdrec_jax.errors import UserError
from pdrec_jax.plan import __main__ as command
from pdrec_jax.plan import analytic, search
from pdrec_jax.plan.compile import TooLarge, needed, whole_arrays
from pdrec_jax.plan.cost import Collective, Cost
from pdrec_jax.plan.hardware import DEVICES, meshes, parse_mesh, parse_topology
from pdrec_jax.plan.hlo import parse
from pdrec_jax.plan.report import amount, seconds, total_lines
from pdrec_jax.plan.roofline import Memory, Program, fits, hours, times
from pdrec_jax.plan.sizes import Sizes
from pdrec_jax.settings import default_config

CONFIG = Path(__file__).resolve().parents[2] / "configs/custom.py"


def program(total: float = 1e9, cost: Cost | None = None, runs: float = 1) -> Program:
    cost = Cost(0, 0, ()) if cost is None else cost
    return Program("stage: step", runs, "a step", Memory(int(total), 0, 0), cost)


def test_topologies_are_read() -> None:
    assert parse_topology("v5e:16x16").count == 256
    assert parse_topology("v5p:4x4x8").name == "v5p:4x4x8"
    assert parse_topology("h100:8x2").count == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "v7:2x2",
            "one of v4, v5e, v5p, v6e, a100, h100, h200 is expected before ':', got 'v7:2x2'",
        ),
        ("v5e", "sizes such as v5e:16x16 are expected, got 'v5e'"),
        ("v5e:0x4", "sizes such as v5e:16x16"),
        ("v5p:4x4", "3 sizes are expected of v5p, got 'v5p:4x4'"),
        ("h100:8x2x2", "2 sizes are expected of h100"),
    ],
)
def test_a_wrong_topology_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match="--topology: ") as caught:
        parse_topology(text)
    assert message in str(caught.value)


def test_meshes_are_read() -> None:
    assert parse_mesh("4,4", 16) == (4, 4)
    assert parse_mesh("-1,8", 16) == (2, 8)
    assert parse_mesh("(16, -1)", 16) == (16, 1)
    assert meshes(6) == [(6, 1), (3, 2), (2, 3), (1, 6)]
    for text, message in [
        ("4", "DATA,MODEL is expected"),
        ("3,5", "sizes whose product is 16 are expected, got '3,5'"),
        ("-1,3", "sizes whose product is 16"),
        ("-1,-1", "sizes whose product is 16"),
        ("0,16", "DATA,MODEL is expected"),
    ]:
        with pytest.raises(UserError, match=message):
            parse_mesh(text, 16)


def test_published_figures_are_those_of_their_tables() -> None:
    # A pod of v5e: 256 chips, 1,600 Gbps a chip, 1.6 TB/s across the middle of its 16 x 16.
    v5e = parse_topology("v5e:16x16")
    per_link = v5e.device.link / (2 * v5e.device.axes)
    assert v5e.device.link * 8 == 1600e9
    assert 2 * 16 * per_link == 1.6e12
    for device in DEVICES.values():
        assert 50 < device.flops / device.bandwidth < 600
        assert device.memory < 2e11


def test_the_longest_of_three_binds() -> None:
    v5e = parse_topology("v5e:4x4")
    reduce = Collective("all-reduce", 1000, 4, 10)
    found = times(Cost(197e12, 819e9 / 2, (reduce,)), v5e)
    assert (found.compute, found.memory, found.least, found.binds) == (1, 0.5, 1, "compute")
    assert found.network == pytest.approx(10 * 1000 * 1.5 / 100e9)
    assert times(Cost(0, 819e9, ()), v5e).binds == "memory"
    assert hours(program(cost=Cost(0, 819e9, ()), runs=7200), v5e) == 2


def test_between_machines_gpus_are_slower() -> None:
    h100 = parse_topology("h100:8x2")
    assert h100.sending(8) == 450e9
    assert h100.sending(16) == 50e9
    inside = Collective("all-reduce", 1000, 4, 1)
    across = Collective("all-reduce", 1000, 4, 1, span=16)
    fast, slow = (times(Cost(0, 0, (one,)), h100).network for one in (inside, across))
    assert slow == pytest.approx(9 * fast)


def test_cost_is_hours_times_devices() -> None:
    v5e = parse_topology("v5e:4x4")
    lines = total_lines([program(cost=Cost(0, 819e9, ()), runs=7200)], v5e, 1.2)
    assert lines[0].split() == ["stage", "2", "h", "38.40", "$"]
    assert "list price of June 2025" in lines[-1]
    assert "as given" in total_lines([program()], v5e, 2.0)[-1]
    assert "--price" in total_lines([program()], parse_topology("h100:8x1"), None)[-1]


def test_amounts_are_short() -> None:
    assert [amount(v, "B") for v in (0, 12, 1234, 999_600, 2.5e12)] == [
        "0 B", "12 B", "1.23 kB", "1.00 MB", "2.50 TB",
    ]  # fmt: skip
    assert [seconds(v) for v in (5e-6, 0.0123, 59, 90, 7200)] == [
        "5 us", "12.3 ms", "59 s", "1.5 min", "2 h",
    ]  # fmt: skip


def module_of(*shapes: str) -> str:
    lines = "\n".join(f"  %x{n} = {shape} parameter({n})" for n, shape in enumerate(shapes))
    return f"HloModule m, num_partitions=8\n\nENTRY %main () -> f32[] {{\n{lines}\n}}\n"


def test_long_arrays_are_found() -> None:
    module = parse(
        module_of(
            "f32[12501,64]{1,0}",  # a part
            "f32[100008,64]{1,0}",  # all of it, with what fills up the mesh
            "f32[4,100001]{1,0}",
            "s32[1563,64]{1,0}",  # all of it in groups
            "f32[200000]{0}",  # of users
            "f32[99999]{0}",
            "f32[120000]{0}",
        )
    )
    assert whole_arrays(module, (20_000, 1_563)) == []  # too short to tell
    assert whole_arrays(module, (200_000, 100_000)) == [
        "x1 f32[100008, 64]", "x2 f32[4, 100001]", "x3 s32[1563, 64]", "x4 f32[200000]",
    ]  # fmt: skip


def test_what_does_not_fit_is_refused_with_a_mesh_that_would(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def by_model(config: object, sizes: object, data: int, model: int) -> Iterator[Program]:
        yield program(1e9)
        yield program(8e11 / model)

    monkeypatch.setattr(analytic, "programs", by_model)
    sizes = Sizes(100, 300, np.full(1, 9), "given")
    h100 = parse_topology("h100:8x2")
    assert search.run(default_config(), sizes, h100, (16, 1), None) == 3
    out = capsys.readouterr().out
    assert "does not fit: stage: step: 800 GB of 80.0 GB" in out
    # The first that is large enough, not the largest.
    assert out.endswith("it would fit on --mesh=1,16\n")
    assert search.run(default_config(), sizes, h100, (1, 16), None) == 0
    monkeypatch.setattr(analytic, "programs", lambda *_: iter([program(1e15)]))
    assert search.run(default_config(), sizes, h100, (1, 16), None) == 3
    assert "nor on any other mesh of h100:8x2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.", 20.5 * 2**30),
        ("the total memory required for HLO temporaries (512.0M) exceeds HBM", 512 * 2**20),
    ],
)
def test_the_compilers_refusals_are_read(message: str, size: float) -> None:
    assert needed(message) == size
    assert np.isnan(needed("no room"))


def test_what_the_compiler_refuses_does_not_fit() -> None:
    def refused(size: float) -> Iterator[Program]:
        raise TooLarge(size)
        yield

    v5e = parse_topology("v5e:4x4")
    found = search.first_misfit(refused(20e9), v5e)
    assert found == "20.0 GB of 16.0 GB, as the compiler counts"
    assert search.first_misfit(refused(float("nan")), v5e) == "16.0 GB, as the compiler counts"
    assert search.first_misfit([program(15.9e9)], v5e) is None
    assert not fits(program(16.1e9), v5e)


def run(*arguments: str) -> int:
    return command.main([f"--config={CONFIG}", *arguments])


SIZES = ("--users=1e8", "--items=10_000_000", "--events=50")
PARTS = ("diffusion.batch_size", "diffusion.block", "encoder.batch_size", "encoder.block")
LARGE = (
    *(f"--config.{part}=8192" for part in PARTS),
    "--config.diffusion.hidden=(128,)",
    "--config.encoder.max_length=50",
)


def test_a_plan_for_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--topology=h100:8x8", "--mesh=4,16", *SIZES, *LARGE, "--price=3") == 0
    out = capsys.readouterr().out
    assert out.startswith("custom on h100:8x8, mesh (data 4, model 16), estimated by formulas\n")
    assert "100,000,000 users, 10,000,000 items, 50 events each (given); H 128, D 64" in out
    for name in (
        "diffusion",
        "preferences",
        "SASRec",
        "SASRec+HBR+NNS+DPA",
        "encoders",
        "together",
    ):
        assert f"\n{name} " in out
    # A product a step forward and back, for each device's part of the batch and the catalogue.
    assert f"operations  {amount(5 * 10 * 2048 * 625_001 * 128, 'FLOP')}" in out


WINDOWS = tuple(f"--config.diffusion.{name}_fraction=0.125" for name in ("noise", "error"))


def test_windows_and_the_dense_loop_are_planned_for_gpus(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ("--topology=h100:8x8", "--mesh=64,1", *SIZES, "--items=1e6", *LARGE)
    noisy = ("--config.diffusion.sampling_noise", "--config.stage=diffusion")
    assert run(*given, *noisy, *WINDOWS) == 0
    out = capsys.readouterr().out
    # Two products of the noise's window and that of the head, three of the error's window and head.
    window, head = 125_001, 15_626
    rows, every = 2 * (window + head) + 3 * 2 * window, -(-100_000_000 // 8192)
    steps = -(-every // -(-every // 512))  # of the pieces of an epoch, 24 as equal as may be
    assert f"operations  {amount(2 * steps * 128 * rows * 128, 'FLOP')}" in out
    assert f"each {steps} steps of 8192 users" in out
    # Ten steps of two products with the whole catalogue.
    assert f"operations  {amount(2 * 10 * 128 * 1_000_001 * 256, 'FLOP')}" in out


def test_a_plan_for_gpus_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    fewer = [f"--config.{part}=1024" for part in PARTS]
    assert run("--topology=h100:8x1", "--mesh=8,1", *SIZES, "--items=3e7", *LARGE, *fewer) == 3
    assert "it would fit on --mesh=" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --topology"),
        (["--topology=v9"], "--topology: one of"),
        (["--topology=h100:8x2", "--mesh=3,3"], "--mesh: sizes whose product is 16 are expected"),
        (["--topology=h100:8x2", "--users=many"], "argument --users: a number such as 1e6"),
        (
            ["--topology=h100:8x2", "--users=1", *SIZES[1:]],
            "--users: at least 2 is expected, got 1",
        ),
        (["--topology=h100:8x2", "--price=-1"], "--price: at least 0 is expected, got -1"),
        (["--topology=h100:8x2", "--price=nan"], "--price: at least 0 is expected, got nan"),
        (["--topology=h100:8x2", "--users=1e999"], "argument --users: at most 1e+15 is expected"),
        (["--topology=h100:8x2", "--users=1" + 30 * "0_0"], "argument --users: at most 1e+15"),
        (["--topology=h100:8x2", *SIZES, "--config.seeds=5"], "config.seeds: 1 is planned alone"),
        (
            ["--topology=h100:8x2", *SIZES, "--config.diffusion.both"],
            "config.diffusion.both: False is planned alone, got True",
        ),
        (
            ["--topology=h100:8x2", *SIZES, "--config.diffusion.source_slots"],
            "config.diffusion.source_slots: False is planned alone, got True",
        ),
        (
            ["--topology=h100:8x2", *SIZES, "--config.diffusion_from=runs/a"],
            "config.diffusion_from: '' is planned alone, got 'runs/a'",
        ),
        (
            ["--topology=h100:8x2", *SIZES, "--config.encoder.variants=('base','foo')"],
            "expected 'base' or some of hbr+nns+dpa, got 'foo'",
        ),
        (["--topology=h100:8x2", "--config.nam=x"], "config.nam: unknown field"),
        (["--topology=h100:8x2", "--workdir=runs/a"], "--workdir: says nothing to a plan"),
        (["--topology=h100:8x2", "--coordinator=a:1"], "--coordinator: says nothing to a plan"),
        (["--topology=h100:8x2", "--num_processes=2"], "--num_processes: says nothing to a plan"),
        (["--topology=h100:8x2", "--process_id=0"], "--process_id: says nothing to a plan"),
        (["--topology=h100:8x2", "--other"], "Unknown command line flag 'other'"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message.lower() in printed.err.lower()
    assert printed.err.count("\n") == 1


def test_without_the_extra_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "libtpu" else real(name))
    assert run("--topology=v5e:4x4", "--mesh=4,4", *SIZES) == 2
    assert "pip install '.[tpu]'" in capsys.readouterr().err


def test_without_a_log_the_shortened_run_is_planned(monkeypatch, tmp_path, capsys) -> None:
    planned = []
    monkeypatch.setattr(search, "run", lambda config, *_: planned.append(config) or 0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PDREC_DATA", raising=False)
    toy = CONFIG.with_name("toy.py")
    flags = ["--topology=h100:2x1", "--config.simulation.num_users=300"]
    assert command.main([f"--config={toy}", *flags]) == 0
    assert (planned[0].diffusion.epochs, planned[0].encoder.epochs) == (20, 30)
    # Sizes that are given are of a real job.
    assert command.main([f"--config={toy}", *flags, "--users=1e8", "--items=1e6"]) == 2
    said = "error: --users, --items, --events: the log that the others would be taken from is not"
    assert capsys.readouterr().err.startswith(said)
    sizes = ("--users=1e8", "--items=1e6", "--events=14")
    assert command.main([f"--config={toy}", *flags, *sizes]) == 0
    assert (planned[1].diffusion.epochs, planned[1].encoder.epochs) == (1000, 200)
    given = ("--users=1e8", "--config.data.source=simulated")
    assert command.main([f"--config={toy}", *flags, *given]) == 0
    assert (planned[2].diffusion.epochs, planned[2].encoder.epochs) == (1000, 200)


def test_sizes_come_from_the_log_where_none_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    simulated = (
        "--config.data.source=simulated", "--config.simulation.num_users=300",
        "--config.simulation.num_items=400", "--config.data.target=",
    )  # fmt: skip
    assert run("--topology=h100:2x1", "--mesh=1,2", "--items=5e4", *simulated) == 0
    out = capsys.readouterr().out
    assert " users, 50,000 items, " in out
    assert "(simulated log, the rest given)" in out
    assert "SIMULATED" not in out
    assert run("--topology=h100:2x1", "--mesh=1,2", *simulated) == 0
    assert capsys.readouterr().out.startswith("SIMULATED DATA: a run on a real log has other sizes")


@pytest.mark.tpu
@pytest.mark.loose_jax("dtypes")
@pytest.mark.skipif(util.find_spec("libtpu") is None, reason="needs the extra tpu")
@pytest.mark.parametrize(
    ("topology", "options"),
    [
        ("v5e:4x4", ()),
        # An eighth of an eighth would be as many rows as there are groups of 64 items.
        ("v6e:4x4", (*WINDOWS, "--config.diffusion.noise_fraction=0.25")),
        ("v4:2x2x4", ()),
    ],
)
def test_a_plan_for_tpus(
    topology: str, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    small = (
        "--users=1e5", "--items=1e5", "--events=20", "--config.diffusion.hidden=(64,)",
        "--config.encoder.variants=('hbr+nns+dpa',)", "--config.encoder.max_length=32",
    )  # fmt: skip
    assert run(f"--topology={topology}", "--mesh=4,4", *small, *options) == 0
    out = capsys.readouterr().out
    assert "NOT SPLIT" not in out
    assert out.count("  at best  ") == 8
    assert run("--topology=v5e:3x5", "--mesh=3,5", *small) == 2
    assert "there is no v5e:3x5" in capsys.readouterr().err


def test_negatives_cost_what_a_variant_draws() -> None:
    sizes = Sizes(100, 300, np.full(100, 9), "given")

    def read(variant: str, placement: str) -> float:
        """Bytes of a dispatch of steps."""
        config = default_config()
        config.encoder.negatives, config.nns.drawn, config.nns.placement = 4, 2, placement
        config.encoder.variants = (variant,)
        found = analytic.programs(config, sizes, 1, 1)
        (step,) = (each for each in found if each.name in ("SASRec: train", "SASRec+NNS: train"))
        return step.cost.bytes

    base = read("base", "beside")
    assert read("base", "instead") == base
    assert read("nns", "instead") == base
    assert read("nns", "beside") > base


def test_views_cost_a_pass_each() -> None:
    sizes = Sizes(100, 300, np.full(100, 9), "given")
    flops = {}
    for name, title in (("sasrec", "SASRec"), ("cl4srec", "CL4SRec")):
        config = default_config()
        config.encoder.name, config.encoder.variants = name, ("base",)
        found = analytic.programs(config, sizes, 1, 1)
        (step,) = (each for each in found if each.name == f"{title}: train")
        flops[name] = step.cost.flops
    assert flops["cl4srec"] == 3 * flops["sasrec"]


def test_drawn_positives_cost_what_is_drawn() -> None:
    sizes = Sizes(100, 300, np.full(100, 9), "given")

    def step(variant: str, drawn: int) -> analytic.Program:
        config = default_config()
        config.dpa.drawn, config.encoder.variants = drawn, (variant,)
        found = analytic.programs(config, sizes, 1, 1)
        return next(
            each for each in found if each.name.startswith("SASRec") and "train" in each.name
        )

    base, picked, one, two = step("base", 1), step("dpa", 0), step("dpa", 1), step("dpa", 2)
    assert base.cost.flops == one.cost.flops < picked.cost.flops  # no pass over whole histories
    assert one.cost.bytes - base.cost.bytes == two.cost.bytes - one.cost.bytes > 0
    assert step("base", 0) == base


def test_settings_for_strict_are_planned_with(monkeypatch) -> None:
    planned = []
    monkeypatch.setattr(search, "run", lambda config, *_: planned.append(config) or 0)
    for protocol in ("strict", "reference"):
        flags = ["--topology=h100:8x1", "--users=100", "--items=300", "--events=2000"]
        chosen = "--config.strict_overrides=(('encoder.negatives', 4),)"
        assert run(*flags, chosen, f"--config.protocol={protocol}") == 0
    assert [config.encoder.negatives for config in planned] == [4, 1]
