"""Windows of the slots on a mesh: a device's part of the head, of a window and of a step's draws.

Users lie on ``data`` and slots on ``model``. A window begins where it does on one device, and each
device of ``model`` works on what of it lies in its own rows. That may be all of it, a piece or
nothing, and shapes are fixed: so each has the work of min(W, i) rows, and what is not its own is
masked. The head's slots stay where their rows are. Draws are those of one device.

Letters: those of ``windows``, d places on ``data``, b users of one, m places on ``model``, i slots
of one.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pdrec_jax.diffusion.inference import DiffusionModel
from pdrec_jax.diffusion.process import normal_from_bits
from pdrec_jax.diffusion.timesteps import LossHistory, sample_timesteps
from pdrec_jax.diffusion.vectors import SparseBatch
from pdrec_jax.diffusion.windows import (
    Head,
    Held,
    SplitBatch,
    WindowedStep,
    draw_start,
    keep_factors,
    number_of_windows,
    place_in,
    size_of_head,
    width_of_windows,
)
from pdrec_jax.random_bits import hashed_bits_at
from pdrec_jax.sharding import DATA, MODEL, axis, round_up


class HeldHead(NamedTuple):
    """The head, each device of ``model`` having its own slots of it, K' at most.

    Attributes:
      slots: [m K'] int32, rows of the device's part of a table, ascending; i where there are fewer.
      inside: [m i] bool, which slots these are.
      first: [m] int32, the place in the whole head of the device's first one.
      length: [m] int32, how many it has.
    """

    slots: Array | np.ndarray
    inside: Array | np.ndarray
    first: Array | np.ndarray
    length: Array | np.ndarray


def place_head(head: Head, mesh: Mesh) -> HeldHead:
    """Splits a head and puts it where it belongs; every process has all of it on the host."""
    parts = axis(mesh, MODEL)
    slots, inside = np.asarray(head.slots), np.asarray(head.inside)
    width = round_up(len(inside), parts) // parts
    place = slots // width
    length = np.bincount(place, minlength=parts).astype(np.int32)
    first = (np.cumsum(length) - length).astype(np.int32)
    own = np.full((parts, length.max()), width, np.int32)
    own[place, np.arange(len(slots)) - first[place]] = slots % width
    whole = HeldHead(own.ravel(), np.pad(inside, (0, width * parts - len(inside))), first, length)
    where = NamedSharding(mesh, PartitionSpec(MODEL))
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


def widths_of(model: DiffusionModel) -> tuple[int, int]:
    """Returns V and W of a device's part of the slots."""
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
    real = jnp.arange(places, dtype=jnp.int32) < head.length[0]
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
        kept = keep_factors(
            hashed_bits_at(key, jnp.zeros(1, jnp.int32), number, 1)[0], model.dropout
        )
        return SparseBatch(tokens.slots, tokens.rows, tokens.weights * kept * signal[tokens.rows])

    (near_tokens, _), (far_tokens, far_held) = (
        own(batch.near, head.first[0], head.length[0]),
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
