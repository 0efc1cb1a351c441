"""Training steps on windows of the slots on a mesh, many to a dispatch.

The whole scan runs within ``shard_map``, so that the tables are those of ``window_tables`` on a
device's part of the rows. What crosses ``model`` is [b, H], the first layer's sum and its gradient;
what crosses ``data`` is the gradient of the rows that a step reads: summed, or for far tokens put
side by side. Letters: see ``sharded_windows``.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from pdrec_jax.diffusion.denoiser import Params
from pdrec_jax.diffusion.inference import DiffusionModel
from pdrec_jax.diffusion.optimise import (
    Slopes,
    State,
    join_tables,
    make_optimiser,
    moved,
    split_tables,
    steps_by_rows,
)
from pdrec_jax.diffusion.sharded_windows import HeldHead, draw_share, widths_of
from pdrec_jax.diffusion.timesteps import LossHistory, record
from pdrec_jax.diffusion.windows import (
    Head,
    SplitBatch,
    TableRows,
    WindowedStep,
    errors_of_rows,
    gather_rows,
    project_rows,
)
from pdrec_jax.row_adam import Tails
from pdrec_jax.sharding import DATA, MODEL, OF_DENOISER, axis, is_item_table

_WHOLE, _BY_SLOT = PartitionSpec(), PartitionSpec(MODEL)


def _slopes(
    params: Params,
    history: LossHistory,
    step: WindowedStep,
    entry: TableRows,
    exit: TableRows,
    *,
    model: DiffusionModel,
    head: Head,
    size: int,
) -> Slopes:
    """Gradients of the mean loss; those of the rows are of this place's users, not summed yet."""
    rows = step.t.shape[0]
    user = jax.lax.axis_index(DATA).astype(jnp.int32) * rows + jnp.arange(rows, dtype=jnp.int32)
    weight = jnp.where(user < size, 1 / (step.probability * size), 0)
    z, back = jax.vjp(functools.partial(project_rows, step), entry)
    z = jax.lax.psum(z, MODEL)

    def share(params: Params, z: Array, exit: TableRows) -> tuple[Array, Array]:
        losses = errors_of_rows(model, params, head, step, z, exit)
        return jnp.sum(losses * weight), losses

    (gradient, of_z, of_exit), losses = jax.grad(share, argnums=(0, 1, 2), has_aux=True)(
        params, z, exit
    )
    (of_entry,) = back(jax.lax.psum(of_z, MODEL))

    def add(path: Any, part: Array) -> Array:
        return jax.lax.psum(part, DATA if is_item_table(path, OF_DENOISER) else (DATA, MODEL))

    def every(part: Array) -> Array:
        return jax.lax.all_gather(part, DATA, tiled=True)[:size]

    losses = every(jax.lax.psum(losses, MODEL))
    far = jnp.asarray(step.batch.far.slots)
    return Slopes(
        jax.tree_util.tree_map_with_path(add, gradient),
        of_entry,
        of_exit,
        # A table has no such row, so that nothing is written.
        far if step.held is None else jnp.where(step.held.far, far, head.inside.shape[0]),
        record(history, every(step.t), losses),
        jnp.mean(losses),
    )


def _everyone(rows: TableRows) -> TableRows:
    """Sums gradients of rows over the users of all places; far ones are put side by side."""
    head, window = jax.lax.psum((rows.head, rows.window), DATA)
    return TableRows(head, window, jax.lax.all_gather(rows.far, DATA, tiled=True))


@functools.partial(jax.jit, static_argnums=(6, 7, 9), donate_argnums=0)
def train_steps_on_windows_on(
    state: State,
    batches: SplitBatch,
    numbers: Array,
    rate: float,
    head: HeldHead,
    tail: Tails,
    model: DiffusionModel,
    weight_decay: float,
    seed: int,
    size: int,
) -> tuple[State, Array]:
    """``optimise.train_steps_by_rows`` on the model's mesh; batches are [steps, d, P] each.

    Where the error is taken of all slots it is ``optimise.train_steps_on_windows``.
    """
    mesh = model.mesh
    assert mesh is not None

    def lies(path: Any, leaf: Any) -> PartitionSpec:
        del leaf
        return _BY_SLOT if is_item_table(path, OF_DENOISER) else _WHOLE

    places = jax.tree_util.tree_map_with_path(lies, state)

    def own(
        state: State,
        batches: SplitBatch,
        numbers: Array,
        rate: Array,
        head: HeldHead,
        tail: Tails,
        seed: Array,
    ) -> tuple[State, Array]:
        batches = jax.tree.map(lambda part: part[:, 0], batches)
        make = _by_rows if model.error_fraction < 1 else _dense
        given = state, batches, numbers, rate, head, tail
        return make(*given, model, weight_decay, seed, size)

    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(places, PartitionSpec(None, DATA), _WHOLE, _WHOLE, _BY_SLOT, _WHOLE, _WHOLE),
        out_specs=(places, _WHOLE),
        check_vma=False,
    )(state, batches, numbers, jnp.float32(rate), head, tail, jnp.asarray(seed))


def _by_rows(
    state: State,
    batches: SplitBatch,
    numbers: Array,
    rate: Array,
    head: HeldHead,
    tail: Tails,
    model: DiffusionModel,
    weight_decay: float,
    seed: Array,
    size: int,
) -> tuple[State, Array]:
    key, mine = jax.random.key(seed), Head(head.slots, head.inside)

    def draw(history: LossHistory, batch: SplitBatch, number: Array) -> WindowedStep:
        return draw_share(model, head, history, batch, size, jax.random.fold_in(key, number))

    def differentiate(
        params: Params, history: LossHistory, drawn: WindowedStep, *rows: TableRows
    ) -> Slopes:
        found = _slopes(params, history, drawn, *rows, model=model, head=mine, size=size)
        return found._replace(
            entry=_everyone(found.entry),
            exit=_everyone(found.exit),
            far=jax.lax.all_gather(found.far, DATA, tiled=True),
        )

    return steps_by_rows(
        state,
        batches,
        numbers,
        rate,
        mine,
        tail,
        model,
        weight_decay,
        widths=widths_of(model),
        far_tokens=batches.far.slots.shape[-1] * axis(model.mesh, DATA),
        draw=draw,
        differentiate=differentiate,
    )


def _gather(head: Head, begin: Array, width: int, far: Array, table: Array) -> TableRows:
    return gather_rows(table, head, begin, width, far)


def _dense(
    state: State,
    batches: SplitBatch,
    numbers: Array,
    rate: Array,
    head: HeldHead,
    tail: Tails,
    model: DiffusionModel,
    weight_decay: float,
    seed: Array,
    size: int,
) -> tuple[State, Array]:
    del tail
    key, mine, optimiser = (
        jax.random.key(seed),
        Head(head.slots, head.inside),
        make_optimiser(weight_decay),
    )
    widths = widths_of(model)

    def step(state: State, one: tuple[SplitBatch, Array]) -> tuple[State, Array]:
        batch, number = one
        params, tables = split_tables(state["params"])
        step_key = jax.random.fold_in(key, number)
        drawn = draw_share(model, head, state["history"], batch, size, step_key)
        far = jnp.asarray(drawn.batch.far.slots)
        (entry, to_entry), (exit, to_exit) = (
            jax.vjp(functools.partial(_gather, mine, begin, width, far), table)
            for table, begin, width in zip(tables, (drawn.entry, drawn.exit), widths, strict=True)
        )
        history = state["history"]
        found = _slopes(params, history, drawn, entry, exit, model=model, head=mine, size=size)
        slopes = jax.lax.psum((*to_entry(found.entry), *to_exit(found.exit)), DATA)
        gradient = join_tables(found.params, *slopes)
        return moved(optimiser, state, gradient, found.history, rate), found.loss

    return jax.lax.scan(step, state, (batches, numbers))
