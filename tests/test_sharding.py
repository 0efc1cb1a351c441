"""Meshes of devices: everything on a mesh equals the same on one device.

Devices of a CPU are virtual, and their number is fixed when JAX starts. So this file runs itself,
in a process that has eight of them, and that checks many things at once.
"""

import dataclasses
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pdrec_jax.checkpoints import Store
from pdrec_jax.diffusion import stage as diffusion_stage
from pdrec_jax.diffusion.inference import couple, score_all
from pdrec_jax.diffusion.optimise import train_steps_on
from pdrec_jax.diffusion.preferences import PoolRules, Preferences, cut_pools
from pdrec_jax.diffusion.redraw import packed
from pdrec_jax.diffusion.sharded_optimise import train_steps_on_windows_on
from pdrec_jax.diffusion.sharded_pools import cut_block_on, joined_parts
from pdrec_jax.diffusion.sharded_vectors import place_batch, shares
from pdrec_jax.diffusion.windows import SplitBatch
from pdrec_jax.encoders import registry
from pdrec_jax.encoders import stage as encoder_stage
from pdrec_jax.encoders.model import Batch
from pdrec_jax.encoders.on_mesh import as_the_only, cut_out, event_budget, of_steps
from pdrec_jax.encoders.on_mesh import train_steps_on as encoder_steps_on
from pdrec_jax.encoders.sasrec import SASRec
from pdrec_jax.errors import UserError
from pdrec_jax.given import Given, pool_rules, prepare
from pdrec_jax.plan.cost import cost_of
from pdrec_jax.plan.hlo import parse
from pdrec_jax.random_bits import hashed_bits, hashed_bits_at
from pdrec_jax.settings import default_config, put, seeded
from pdrec_jax.sharding import is_item_table, made_in_place, make_mesh, mesh_shape, tables_in

ROOT = Path(__file__).resolve().parents[1]
ITEMS = 211  # with the padding id no multiple of any axis below
DIFFUSION: dict[str, dict[str, Any]] = {  # fields of the config
    "diffusion": {},
    "epsilon": {"target": "epsilon"},
    "windows": {"noise_fraction": 0.25, "error_fraction": 0.2},
    "noise_window": {"noise_fraction": 0.25},
    "error_window": {"error_fraction": 0.5},
    "normalise": {"normalise": True},
    "start_noise": {"target": "epsilon", "sampling_steps": 4},
    "step_noise": {"sampling_noise": True},
    "every_noise": {"normalise": True, "sampling_noise": True, "sampling_steps": 2},
}


class TestShape:
    @pytest.mark.parametrize(
        ("wanted", "devices", "shape"),
        [((-1, 1), 8, (8, 1)), ((-1, 4), 8, (2, 4)), ((2, -1), 8, (2, 4)), ((1, 1), 8, (1, 1))],
    )
    def test_fills_in_what_is_left_open(self, wanted, devices, shape) -> None:
        assert mesh_shape(wanted, devices, all_of_them=False) == shape

    @pytest.mark.parametrize(
        ("wanted", "devices", "every"),
        [((-1, 3), 8, False), ((4, 4), 8, False), ((-1, 9), 8, False), ((2, 2), 8, True)],
    )
    def test_refuses_what_does_not_fit(self, wanted, devices, every) -> None:
        with pytest.raises(UserError, match=r"config\.mesh.*8 devices"):
            mesh_shape(wanted, devices, all_of_them=every)

    def test_one_device_is_no_mesh(self) -> None:
        assert make_mesh((1, 1)) is None


def test_item_tables_are_known_by_name_and_so_are_their_moments() -> None:
    def tables(tree: Any) -> set[int]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {leaf for path, leaf in leaves if is_item_table(path, tables_in(tree))}

    output = {"output": {"kernel": 0, "bias": 1}, "middle": [{"kernel": 2}], "output2": 3}
    denoiser = {
        "params": {**output, "item_kernel": 4},
        "optimiser": ({"mu": {"item_kernel": 5, "output": {"kernel": 6}, "middle": [7]}},),
    }
    assert tables(denoiser) == {0, 1, 4, 5, 6}
    # An own encoder may have a layer that is called so.
    encoder = {
        "params": {**output, "item_embedding": 4},
        "optimiser": ({"mu": {"item_embedding": 5, "output": {"kernel": 6}}}, {"row_age": 7}),
    }
    assert tables(encoder) == {4, 5, 7}


def test_bits_of_a_part_are_those_of_the_whole() -> None:
    key, rows, columns = jax.random.key(3), jnp.array([0, 5, 6]), jnp.array([1, 2, 30])
    whole = hashed_bits(key, (7, 31))
    part = hashed_bits_at(key, rows, columns, 31)
    np.testing.assert_array_equal(part, whole[rows][:, columns])


def test_bits_do_not_repeat_beyond_32_bits() -> None:
    # 2^31 columns: the third row begins where 32 bits end.
    bits = hashed_bits_at(jax.random.key(0), jnp.array([0, 2]), jnp.arange(50), 2**31)
    assert not (bits[0] == bits[1]).any()


def test_cut_out_users_keep_their_events() -> None:
    offsets, items = np.array([0, 2, 2, 5]), np.array([7, 8, 4, 5, 6])
    users = np.array([2, 0, 2])
    own, (cut,) = cut_out(offsets, users, 10, items)
    assert own.tolist() == [0, 3, 5, 8]
    assert cut.tolist() == [4, 5, 6, 7, 8, 4, 5, 6, 0, 0]

    event, segment = np.array([[0, 1, 3, 4, 0]]), np.array([[1, 1, 2, 2, 3]])
    batch = as_the_only(Batch(users, (event,), (segment,), np.array([0])), offsets)
    assert batch.users.tolist() == [0, 1, 2]
    assert batch.event[0].tolist() == [[3, 4, 6, 7, 0]]


def on_devices(*checks: str) -> None:
    """Runs functions of this file in a process of eight devices."""
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, __file__, *checks],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == list(checks)


def test_a_mesh_of_eight_equals_one_device() -> None:
    on_devices("pools", "diffusion:4,2", "windows:4,2", "every_noise:2,4", "encoder:4,2", "own:2,4")


def test_rows_that_a_mesh_does_not_divide_are_not_gathered() -> None:
    on_devices("uneven_sasrec:8,1", "uneven_cl4srec:4,2")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["8,1", "1,8", "2,4", "5,1"])
@pytest.mark.parametrize("what", [*DIFFUSION, "encoder", "drawn", "gru4rec", "cl4srec"])
def test_other_meshes_and_models_equal_one_device(what, mesh) -> None:
    on_devices(f"{what}:{mesh}")


# What follows runs in the process of eight devices.


def close(found: Any, expected: Any) -> None:
    # The same sums in another order.
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def pools() -> None:
    """Cuts by a mesh are those of one device, ties, empty places and padding included."""
    rng = np.random.default_rng(0)
    size, width = 8, 216
    scores = rng.integers(-9, 10, (size, width)).astype(np.float32) / 3
    scores[0, : ITEMS + 1] = 1.0
    scores[:, ITEMS + 1 :] = 99.0  # padding, which nothing may choose
    scores[1] = rng.normal(size=width)
    scores[scores == 0] *= -1.0
    seen = np.zeros((size, 16), np.int32)
    excluded = np.zeros((size, 18), np.int32)  # what is held out besides
    for row, line in enumerate(excluded):
        line[: row * 2 + 2] = rng.choice(np.arange(1, ITEMS + 1), row * 2 + 2, replace=False)
        seen[row, : row * 2] = line[: row * 2]
    users, key = np.arange(size), jax.random.key(5)
    keys = jax.vmap(lambda user: jax.random.fold_in(key, user))(users)
    mesh = make_mesh((2, 4))
    assert mesh is not None
    for rules in (
        PoolRules(10, True, 12, 0.5, 1.0, False),
        PoolRules(60, False, 12, 0.5, 0.99, True, whole_pools=True),
        PoolRules(10, True, 300, 0.9, 0.99, False),
    ):
        own = jnp.asarray(scores), jnp.asarray(seen), jnp.asarray(excluded)
        expected = jax.jit(cut_pools, static_argnums=(4, 5))(*own, keys, rules, ITEMS)
        found = cut_block_on(mesh, scores, seen, seen, excluded, key, users, rules, ITEMS)
        *parts, whole = expected
        for part, other in zip(found, parts, strict=False):
            np.testing.assert_array_equal(part, other)
        if rules.whole_pools:
            joined = joined_parts(np.asarray(found[5]), width, mesh, ITEMS)
            np.testing.assert_array_equal(joined, whole)
        else:
            assert not found[5].size
        np.testing.assert_array_equal(found[3], np.take_along_axis(scores, seen, axis=1))
        np.testing.assert_array_equal(found[4], scores[:, 0])


def tiny() -> Given:
    config = default_config()
    fields = {
        "seed": 3,
        "simulation.num_users": 101,
        "simulation.num_items": ITEMS,
        "simulation.mean_length": 8.0,
        "diffusion.hidden": (16,),
        "diffusion.batch_size": 37,
        "diffusion.block": 60,
        "diffusion.learning_rate": 1e-2,
        "encoder.width": 8,
        "encoder.blocks": 1,
        "encoder.max_length": 20,
        "encoder.batch_size": 37,
        "encoder.block": 60,
        "nns.kept": 16,
        "nns.refresh_epochs": 1,
        "dpa.coarse": 10,
    }
    for field, value in fields.items():
        put(config, field, value)
    return prepare(config, None)[0]


def trained(task: Any, epochs: int = 1) -> Any:
    state = task.initial()
    for epoch in range(1, epochs + 1):
        state, values = task.run_epoch(state, epoch, lambda _: None)
    return state, values


def same_state(found: Any, expected: Any) -> None:
    """A state on a mesh is that of one device, its padding 0."""
    tables = tables_in(expected)

    def compare(path: Any, one: jax.Array, other: jax.Array) -> None:
        found = np.asarray(one)
        if is_item_table(path, tables):
            assert not found[len(other) :].any()
            found = found[: len(other)]
        close(found, other)

    jax.tree_util.tree_map_with_path(compare, found, expected)


def same_ranks(found: Any, expected: Any, params: Any, others: Any) -> None:
    for kind in ("sampled", "full"):
        one, other = getattr(found, kind)(params), getattr(expected, kind)(others)
        np.testing.assert_array_equal(one.ranks, other.ranks)
        np.testing.assert_array_equal(one.negatives, other.negatives)


def diffusion(mesh: Mesh, name: str) -> None:
    given = tiny()
    section = seeded(given.config, "diffusion")
    section.update(DIFFUSION[name])
    made = []
    for where in (None, mesh):
        task, scorers = diffusion_stage.build(
            section,
            given.split,
            given.users.diffusion,
            protocol=given.protocol,
            candidates=given.candidates,
            validation=given.validation,
            mesh=where,
        )
        # A second epoch reads rows that have waited.
        made.append((task, scorers["test"], *trained(task, 1 + task.model.windowed)))
    (one, ranks, state, values), (other, mesh_ranks, mesh_state, mesh_values) = made
    close(mesh_values["loss"], values["loss"])
    same_state(mesh_state, state)
    same_ranks(mesh_ranks, ranks, mesh_state["params"], state["params"])
    if mesh.shape["model"] > 1:
        nowhere_whole(scoring(other, mesh_state), other)
    preferences = [preferences_of(given, task, state["params"]) for task, _, state, _ in made]
    for field in dataclasses.fields(preferences[0]):
        close(*(getattr(found, field.name) for found in preferences))
    if name in ("diffusion", "windows"):
        restored_elsewhere(other, mesh_state, one)
        if mesh.shape["model"] > 1:
            nowhere_whole(training_step(other, mesh_state), other)


def preferences_of(given: Given, task: Any, params: Any) -> Any:
    """Preferences by the task's model, as ``stage.infer_preferences`` computes them."""
    with tempfile.TemporaryDirectory() as place:
        store = Store(place)
        store.save("best", 1, params, {})
        config = given.config.copy_and_resolve_references()
        return diffusion_stage.infer_preferences(
            task.config,
            given.split,
            given.users.preferences,
            pool_rules(config, given.protocol),
            store,
            Silent(),
            exclude_heldout=given.protocol.nns_excludes_heldout,
            mesh=task.model.mesh,
        )


class Silent:
    """A log that keeps nothing."""

    def progress(self, *_: Any) -> Any:
        from pdrec_jax.metric_log import MetricLog

        return MetricLog(None, stream=open(os.devnull, "w"), progress=False).progress("", 1, "")


def restored_elsewhere(task: Any, state: Any, alone: Any) -> None:
    """A state is restored on other meshes, and on one device: the same but for the padding."""
    with tempfile.TemporaryDirectory() as place:
        store = Store(place)
        store.save("state", 1, state, {"epoch": 1})
        back = {}
        for shape in ((1, 8),):
            there = make_mesh(shape)
            model = dataclasses.replace(task.model, mesh=there)
            make = made_in_place(alone.initialise, there)
            like = dataclasses.replace(task, model=model, initialise=make).abstract()
            found, _ = store.restore("state", like)
            places = jax.tree.map(lambda leaf, want: leaf.sharding == want.sharding, found, like)
            assert all(jax.tree.leaves(places))
            back[shape] = found
        found, meta = store.restore("state", alone.abstract())
        assert meta == {"epoch": 1}
        for other in (state, *back.values()):
            same_state(other, found)


def training_step(task: Any, state: Any) -> Any:
    """A step, compiled."""
    mesh, config = task.model.mesh, task.config
    users = shares(task._draw(1)[:1], mesh)
    batches = [place_batch(mesh, part, users, 512) for part in task._parts]
    given: tuple[Any, ...] = (state, batches[0], np.arange(1), 0.1)
    train = train_steps_on
    if task.model.windowed:
        split = SplitBatch(*batches)
        given = (state, split, np.arange(1), 0.1, task._held_head, task._tails)
        train = train_steps_on_windows_on
    return train.lower(*given, task.model, 0.5, 0, config.batch_size).compile()


def scoring(task: Any, state: Any) -> Any:
    """The scores of a block of users, compiled."""
    model, users = task.model, np.arange(56)
    batch = place_batch(model.mesh, task.vectors, shares(users, model.mesh), 512)
    coupled = couple(model, state["params"])
    score = jax.jit(score_all, static_argnums=0)
    given = model, state["params"], coupled, batch, jax.random.key(0), users
    return score.lower(*given).compile()


def nowhere_whole(compiled: Any, task: Any) -> None:
    """In a compiled program no array is as long as the catalogue."""
    model = task.model
    shapes = re.findall(r"[fsu]\d+\[([\d,]+)\]|pred\[([\d,]+)\]", compiled.as_text())
    sizes = {int(size) for shape in shapes for size in "".join(shape).split(",")}
    assert model.width // model.mesh.shape["model"] in sizes
    assert not sizes & set(range(ITEMS, model.width + 1))


class Output(SASRec):
    """Has a layer that is called as the denoiser's is."""

    def __init__(self, config: ConfigDict, num_items: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, num_items, rngs=rngs)
        self.output = nnx.Linear(config.width, config.width, rngs=rngs)

    def __call__(self, *given: Any, **more: Any) -> jax.Array:
        return self.output(super().__call__(*given, **more))


def encoder_on(
    mesh: Mesh | None, given: Given, variant: str, preferences: Preferences | None
) -> tuple[Any, Any]:
    """The task of a variant, and its scorers."""
    return encoder_stage.build(
        given.config,
        variant,
        given.split,
        preferences,
        drawn=given.users.preferences,
        ranked=given.users.encoder,
        protocol=given.protocol,
        candidates=given.candidates,
        validation=given.validation,
        name="encoder",
        mesh=mesh,
    )


def encoder(mesh: Mesh, name: str = "sasrec") -> None:
    given = tiny()
    config = given.config
    config.encoder.name = "sasrec" if name == "drawn" else name
    if name == "own":
        registry.register("own", "Own", Output)
        config.encoder.width = 10  # of which four devices would have unequal parts
    config.dpa.drawn = 2 * (name == "drawn")
    config.encoder.history_weight = 0.1 * (name == "drawn")
    users, rng = given.split.train.num_users, np.random.default_rng(0)
    preferences = Preferences(
        np.ones(users, bool),
        rng.integers(1, ITEMS, (users, 10)).astype(np.int32),
        rng.integers(1, ITEMS, (users, 16)).astype(np.int32),
        rng.random(given.split.train.num_events).astype(np.float32),
        rng.random(users).astype(np.float32),
        packed(rng.random((users, ITEMS)) < 0.3),
    )
    made = []
    for where in (None, mesh):
        task, scorers = encoder_on(where, given, "hbr+nns+dpa", preferences)
        # NNS's negatives are drawn anew for a second epoch.
        made.append((scorers["test"], *trained(task, 1 + (name == "encoder"))))
    (ranks, state, values), (mesh_ranks, mesh_state, mesh_values) = made
    close(mesh_values["loss"], values["loss"])
    same_state(mesh_state, state)
    same_ranks(mesh_ranks, ranks, mesh_state["params"], state["params"])


def uneven(mesh: Mesh, name: str) -> None:
    """Rows that ``data`` does not divide stay split, and what is trained is that of one device."""
    given, places = tiny(), mesh.shape["data"]
    config = given.config
    config.encoder.name, config.encoder.max_length, config.encoder.batch_size = name, 32, 230
    config.encoder.dropout, config.encoder.contrast_weight = 0.5, 1.0
    made = []
    for where in (None, mesh):
        task, _ = encoder_on(where, given, "base", None)
        made.append((task, *trained(task)))
    (_, state, values), (task, mesh_state, mesh_values) = made
    (rows,) = task._usual_rows
    assert rows % places
    close(mesh_values["loss"], values["loss"])
    same_state(mesh_state, state)
    if name != "sasrec":  # views are stacked on the rows, and cut off again
        return

    drawn, shape = task._drawn(1)
    data, batches = of_steps(task.data, task._pack(drawn, shape), event_budget(task.offsets, drawn))
    steps = encoder_steps_on.lower(state, data, batches, np.arange(len(drawn)), 0.1, task.model, 0)
    cost = cost_of(parse(steps.compile().as_text()))
    assert not [c for c in cost.collectives if c.kind in ("all-gather", "all-to-all")]
    # The table's gradient is summed up once, whatever a step reads of it; other sums are small, and
    # the compiler may put several into one.
    table = len(drawn) * mesh_state["params"]["item_embedding"].nbytes
    summed = sum(c.bytes * c.times for c in cost.collectives if c.kind == "all-reduce")
    assert table <= summed < 2 * table


def main() -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")
    for check in sys.argv[1:]:
        name, _, shape = check.partition(":")
        if name == "pools":
            pools()
        else:
            data, model = map(int, shape.split(","))
            mesh = make_mesh((data, model))
            assert mesh is not None
            if name in DIFFUSION:
                diffusion(mesh, name)
            elif name.startswith("uneven_"):
                uneven(mesh, name.removeprefix("uneven_"))
            else:
                encoder(mesh, "sasrec" if name == "encoder" else name)
        print(check, flush=True)


if __name__ == "__main__":
    main()
