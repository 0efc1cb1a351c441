"""A training step on windows of the slots (``windows``), on a mesh. Draws are those of one device.

Users lie on ``data`` and slots on ``model``. A window begins where it does on one device, and each
device of ``model`` works on what of it lies in its own rows. That may be all of it, a piece or
nothing, and shapes are fixed: so the work is that of min(W, i) rows on every device, and what is not
its own is masked. The head's slots lie where they lie. What crosses ``model`` is [b, H], forward and
back; what crosses ``data`` is the gradient of the rows that a step reads.

All of this runs within ``shard_map``. Letters: those of ``windows``, d places on ``data``, b users of
one, m places on ``model``, i slots of one.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pdrec_jax.diffusion.denoiser import Params
from pdrec_jax.diffusion.inference import DiffusionModel
from pdrec_jax.diffusion.optimise import (
    Slopes,
    State,
    join_tables,
    make_optimiser,
    split_tables,
    steps_by_rows,
)
from pdrec_jax.diffusion.process import normal_from_bits
from pdrec_jax.diffusion.timesteps import LossHistory, record, sample_timesteps
from pdrec_jax.diffusion.vectors import SparseBatch
from pdrec_jax.diffusion.windows import (
    Head,
    Held,
    SplitBatch,
    TableRows,
    WindowedStep,
    draw_start,
    errors_of_rows,
    gather_rows,
    keep_factors,
    number_of_windows,
    place_in,
    project_rows,
    size_of_head,
    width_of_windows,
)
from pdrec_jax.random_bits import hashed_bits_at
from pdrec_jax.row_adam import Tails
from pdrec_jax.sharding import DATA, MODEL, axis, is_item_table, round_up

_WHOLE, _BY_SLOT = PartitionSpec(), PartitionSpec(MODEL)


class HeldHead(NamedTuple):
    """The head, each device of ``model`` having its own slots of it, K' at most.

    Attributes:
      slots: [m K'] int32, rows of the device's part of a table, ascending; i where there are fewer.
      inside: [m i] bool, which slots these are.
      first: [m] int32, the place in the whole head of the device's first one.
      count: [m] int32, how many it has.
    """

    slots: Array | np.ndarray
    inside: Array | np.ndarray
    first: Array | np.ndarray
    count: Array | np.ndarray


def place_head(head: Head, mesh: Mesh) -> HeldHead:
    """Splits a head and puts it where it belongs; every process has all of it on the host."""
    parts = axis(mesh, MODEL)
    slots, inside = np.asarray(head.slots), np.asarray(head.inside)
    width = round_up(len(inside), parts) // parts
    place = slots // width
    count = np.bincount(place, minlength=parts).astype(np.int32)
    first = (np.cumsum(count) - count).astype(np.int32)
    own = np.full((parts, count.max()), width, np.int32)
    own[place, np.arange(len(slots)) - first[place]] = slots % width
    whole = HeldHead(own.ravel(), np.pad(inside, (0, width * parts - len(inside))), first, count)
    where = NamedSharding(mesh, _BY_SLOT)
    return jax.tree.map(
        lambda part: jax.make_array_from_callback(part.shape, where, lambda index: part[index]),
        whole,
    )


class Overlap(NamedTuple):
    """Where a window and a device's slots meet.

    Attributes:
      begin: [] int32, the first of the device's slots in question.
      column: [n] int32, their columns in the window.
      held: [n] bool, which are inside it.
    """

    begin: Array
    column: Array
    held: Array


def overlap(begin: Array, width: int, first: Array, count: int) -> Overlap:
    """Finds min(width, count) neighbouring slots of a device among which its part of a window is.

    Args:
      begin: [] int32, first slot of the window.
      width: of the window.
      first: [] int32, first slot of the device.
      count: of the device's slots.
    """
    size = min(width, count)
    own = jnp.clip(begin - first, 0, count - size)
    column = own + jnp.arange(size, dtype=jnp.int32) + first - begin
    return Overlap(own, column, (column >= 0) & (column < width))


def _widths(model: DiffusionModel) -> tuple[int, int]:
    """V and W of a device's part of the slots."""
    part = model.width // axis(model.mesh, MODEL)
    fractions = model.noise_fraction, model.error_fraction
    widths = [min(width_of_windows(model.num_slots, fraction), part) for fraction in fractions]
    return widths[0], widths[1]


def _rows(model: DiffusionModel, size: int) -> int:
    places = axis(model.mesh, DATA)
    return round_up(size, places) // places


def _before(count: Array) -> Array:
    """Sum of a number over the places of ``data`` before this one."""
    counts = jax.lax.all_gather(count, DATA)
    earlier = jnp.arange(counts.shape[0], dtype=jnp.int32) < jax.lax.axis_index(DATA)
    return jnp.sum(jnp.where(earlier, counts, 0), dtype=jnp.int32)


def draw_share(
    model: DiffusionModel,
    head: HeldHead,
    history: LossHistory,
    batch: SplitBatch,
    size: int,
    key: Array,
) -> WindowedStep:
    """``windows.draw_step`` of a device's own users and slots; see there.

    Args:
      model: static, with a mesh.
      head: this device's.
      history: losses so far, of all.
      batch: of this place's users, with slots and places in the head of the whole catalogue.
      size: B.
      key: of this step.

    Returns:
      a step of which all slots are rows of this device's tables, and all places in the head those
      in its own; users that only fill up a place have probability 1.
    """
    c, rows = model.coefficients(), _rows(model, size)
    split = axis(model.mesh, MODEL) > 1
    part = jnp.asarray(head.inside).shape[0]
    first = jax.lax.axis_index(MODEL).astype(jnp.int32) * part
    key_t, key_noise, key_head, key_bits, key_near, key_far, key_error = jax.random.split(key, 7)
    users = jax.lax.axis_index(DATA).astype(jnp.int32) * rows + jnp.arange(rows, dtype=jnp.int32)
    drawn = sample_timesteps(key_t, history, size)
    spare = rows * axis(model.mesh, DATA) - size
    t, probability = (
        jnp.pad(values, (0, spare), constant_values=fill)[users]
        for values, fill in zip(drawn, (0, 1), strict=True)
    )

    number = number_of_windows(model.noise_fraction)
    width = width_of_windows(model.num_slots, model.noise_fraction)
    start, begin = draw_start(key_noise, model.num_slots, model.noise_fraction)
    entry = overlap(begin, width, first, part)
    carries = entry.held & (begin + entry.column >= start)
    carries = carries & ~_slice(jnp.asarray(head.inside), entry)
    popular, places = size_of_head(model.num_slots, model.error_fraction), len(head.slots)
    head_width = width_of_windows(popular, model.noise_fraction)
    start, begin = draw_start(key_head, popular, model.noise_fraction)
    near = overlap(begin, head_width, head.first[0], places)
    real = jnp.arange(places, dtype=jnp.int32) < head.count[0]
    head_carries = near.held & (begin + near.column >= start) & _slice(real, near)
    columns = jnp.concatenate(
        [
            jnp.clip(entry.column, 0, width - 1),
            width + jnp.clip(near.column, 0, head_width - 1),
        ]
    )
    bits = hashed_bits_at(key_bits, users, columns, width + head_width)
    scale = c.noise_scale[t][:, None] * number**0.5
    noise = normal_from_bits(bits) * keep_factors(bits, model.dropout) * scale
    noise = jnp.where(jnp.concatenate([carries, head_carries])[None, :], noise, 0)
    signal = jnp.concatenate([c.signal_scale[t], jnp.zeros(1)])

    def own(tokens: SparseBatch, first: Array, count: Array | int) -> tuple[SparseBatch, Array]:
        place = jnp.asarray(tokens.slots) - first
        held = (place >= 0) & (place < count)
        weights = jnp.where(held, tokens.weights, 0)
        return SparseBatch(jnp.where(held, place, 0), tokens.rows, weights), held

    def corrupt(tokens: SparseBatch, key: Array) -> SparseBatch:
        # Of a batch the tokens follow one another, whatever places its users are at.
        begin = _before(jnp.sum(tokens.rows < rows, dtype=jnp.int32))
        number = begin + jnp.arange(tokens.rows.shape[0], dtype=jnp.int32)
        kept = keep_factors(hashed_bits_at(key, jnp.zeros(1, jnp.int32), number, 1)[0], model.dropout)
        return SparseBatch(tokens.slots, tokens.rows, tokens.weights * kept * signal[tokens.rows])

    (near_tokens, _), (far_tokens, far_held) = (
        own(batch.near, head.first[0], head.count[0]),
        own(batch.far, first, part),
    )
    width = width_of_windows(model.num_slots, model.error_fraction)
    start, begin = draw_start(key_error, model.num_slots, model.error_fraction)
    exit = overlap(begin, width, first, part)
    counted = exit.held & (begin + exit.column >= start)
    counted = counted & ~_slice(jnp.asarray(head.inside), exit)
    return WindowedStep(
        noise[:, : entry.column.shape[0]],
        noise[:, entry.column.shape[0] :],
        entry.begin,
        near.begin,
        SplitBatch(corrupt(near_tokens, key_near), corrupt(far_tokens, key_far)),
        SplitBatch(near_tokens, far_tokens),
        exit.begin,
        jnp.where(counted, float(number_of_windows(model.error_fraction)), 0.0),
        place_in(exit.begin, exit.column.shape[0], jnp.where(far_held, far_tokens.slots, part)),
        t,
        probability,
        Held(real, far_held, entry.held, exit.held) if split else None,
    )


def _slice(values: Array, place: Overlap) -> Array:
    return jax.lax.dynamic_slice_in_dim(values, place.begin, place.column.shape[0])


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
        return jax.lax.psum(part, DATA if is_item_table(path) else (DATA, MODEL))

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


@functools.partial(jax.jit, static_argnums=(6, 7, 8, 9), donate_argnums=0)
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
        return _BY_SLOT if is_item_table(path) else _WHOLE

    places = jax.tree_util.tree_map_with_path(lies, state)

    def own(
        state: State,
        batches: SplitBatch,
        numbers: Array,
        rate: Array,
        head: HeldHead,
        tail: Tails,
    ) -> tuple[State, Array]:
        batches = jax.tree.map(lambda part: part[:, 0], batches)
        make = _by_rows if model.error_fraction < 1 else _dense
        given = state, batches, numbers, rate, head, tail
        return make(*given, model, weight_decay, seed, size)

    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(places, PartitionSpec(None, DATA), _WHOLE, _WHOLE, _BY_SLOT, _WHOLE),
        out_specs=(places, _WHOLE),
        check_vma=False,
    )(state, batches, numbers, jnp.float32(rate), head, tail)


def _by_rows(
    state: State,
    batches: SplitBatch,
    numbers: Array,
    rate: Array,
    head: HeldHead,
    tail: Tails,
    model: DiffusionModel,
    weight_decay: float,
    seed: int,
    size: int,
) -> tuple[State, Array]:
    key, mine = jax.random.key(seed), Head(head.slots, head.inside)

    def draw(history: LossHistory, batch: SplitBatch, number: Array) -> WindowedStep:
        return draw_share(model, head, history, batch, size, jax.random.fold_in(key, number))

    def differentiate(
        params: Params, history: LossHistory, drawn: WindowedStep, *rows: TableRows
    ) -> Slopes:
        given = params, history, drawn, *rows
        found = _slopes(*given, model=model, head=mine, size=size)
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
        widths=_widths(model),
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
    seed: int,
    size: int,
) -> tuple[State, Array]:
    del tail
    key, mine, optimiser = jax.random.key(seed), Head(head.slots, head.inside), make_optimiser(weight_decay)
    widths = _widths(model)

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
        given = params, state["history"], drawn, entry, exit
        found = _slopes(*given, model=model, head=mine, size=size)
        slopes = jax.lax.psum((*to_entry(found.entry), *to_exit(found.exit)), DATA)
        gradient = join_tables(found.params, *slopes)
        params = state["params"]
        updates, optimiser_state = optimiser.update(gradient, state["optimiser"], params)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        state = {"params": params, "optimiser": optimiser_state, "history": found.history}
        return state, found.loss

    return jax.lax.scan(step, state, (batches, numbers))
