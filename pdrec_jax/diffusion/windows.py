"""A training step that looks at a part of the slots: noise on one window, error on another.

Dense, a step is five products of B x H x I. Two of them carry the noise into the first layer, three
serve the output's error. With a share q of the slots in the noise's window and p in the error's

- the noise has variance 1/q on its window and is 0 elsewhere, so that ``z = x_t W_x`` and the
  gradient keep their mean and covariance over the draw of the window;
- of the squared error ``sum_i (x_i - f_i)^2`` the terms of a user's own items and of the head, the
  most popular slots, are taken as they are, and of the others those in the window, times 1/p: the
  expectation, and that of the gradient, is the whole sum. What is large is thus never left to
  chance, which would feed Adam's second moment and so slow it down.

What enters are the rows of the head, two windows of neighbouring rows, and the rows of those of the
batch's items that are not in the head, so that a step reads and moves those rows of the two tables
alone (``window_tables``). Only x0 prediction without input normalisation has this form.

Letters: K slots of the head, V of the noise's window, W of the error's, N tokens of the batch whose
slots are in the head ("near"), F others ("far").
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdrec_jax.data.compressed import offsets_of
from pdrec_jax.data.scratch import is_mapped, user_blocks
from pdrec_jax.diffusion.denoiser import Params
from pdrec_jax.diffusion.inference import DiffusionModel
from pdrec_jax.diffusion.process import normal_from_bits
from pdrec_jax.diffusion.timesteps import LossHistory, sample_timesteps
from pdrec_jax.diffusion.vectors import InteractionVectors, MappedVectors, SparseBatch
from pdrec_jax.random_bits import hashed_bits

_DROPOUT_LEVELS = 512  # dropout reads the 9 bits of a random word that the normal leaves


def keep_factors(bits: Array, rate: float) -> Array:
    """Dropout factors, 0 or 1 / (1 - rate), from the low bits of random words.

    The rate is that of the nearest of 512 levels, and below 1.
    """
    dropped = min(round(rate * _DROPOUT_LEVELS), _DROPOUT_LEVELS - 1)
    kept = (bits & (_DROPOUT_LEVELS - 1)) >= dropped
    return kept.astype(jnp.float32) / (1 - dropped / _DROPOUT_LEVELS)


class Head(NamedTuple):
    """The slots that every step looks at.

    Attributes:
      slots: [K] int32, ascending, at least one.
      inside: [I] bool, which slots these are.
    """

    slots: Array | np.ndarray
    inside: Array | np.ndarray


def choose_head(counts: np.ndarray, size: int) -> Head:
    """Returns the most frequent slots.

    Args:
      counts: [I] events of each slot.
      size: K.
    """
    slots = np.sort(np.argsort(-counts, kind="stable")[:size]).astype(np.int32)
    inside = np.zeros(len(counts), bool)
    inside[slots] = True
    return Head(slots, inside)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SplitBatch:
    """The vectors of B rows, apart by whether a slot is in the head.

    Attributes:
      near: N tokens; their ``slots`` are places in the head.
      far: F tokens.
    """

    near: SparseBatch
    far: SparseBatch


def split_vectors(
    vectors: InteractionVectors, head: Head
) -> tuple[InteractionVectors, InteractionVectors]:
    """Cuts vectors into their part on the head, by places in it, and the rest.

    Vectors that are mapped are cut in blocks of users, and their parts are mapped as well.
    """
    if not is_mapped(vectors.slots):
        return _split(vectors, head)
    near, far = MappedVectors(len(head.slots)), MappedVectors(vectors.num_slots)
    for first, last in user_blocks(vectors.offsets):
        tokens = slice(vectors.offsets[first], vectors.offsets[last])
        offsets = vectors.offsets[first : last + 1] - tokens.start
        some = vectors.slots[tokens], vectors.weights[tokens]
        parts = _split(InteractionVectors(offsets, *some, vectors.num_slots), head)
        near.add(parts[0])
        far.add(parts[1])
    return near.finish(), far.finish()


def _split(
    vectors: InteractionVectors, head: Head
) -> tuple[InteractionVectors, InteractionVectors]:
    """``split_vectors`` of all users, or of a block of them."""
    near = np.asarray(head.inside)[vectors.slots]
    users = np.repeat(np.arange(len(vectors.lengths)), vectors.lengths)
    place = np.cumsum(head.inside) - 1

    def part(chosen: np.ndarray, slots: np.ndarray, size: int) -> InteractionVectors:
        counts = np.bincount(users[chosen], minlength=len(vectors.lengths))
        offsets = offsets_of(counts)
        kept = slots[vectors.slots[chosen]].astype(np.int32)
        return InteractionVectors(offsets, kept, vectors.weights[chosen], size)

    slots = np.arange(vectors.num_slots)
    return part(near, place, len(head.slots)), part(~near, slots, vectors.num_slots)


class Window(NamedTuple):
    """One of the windows of equal size that some slots are split into, each equally likely.

    Attributes:
      begin: [] int32, its first slot; the others follow.
      inside: [W] bool; the last window is cut, and its shape filled up with slots before it.
      number: how many windows there are.
    """

    begin: Array
    inside: Array
    number: int

    @property
    def slots(self) -> Array:
        """[W] int32."""
        return self.begin + jnp.arange(self.inside.shape[0], dtype=jnp.int32)


def number_of_windows(fraction: float) -> int:
    """Returns into how many windows the slots are split."""
    return round(1 / fraction)


def width_of_windows(num_slots: int, fraction: float) -> int:
    """Returns how many slots a window has."""
    return -(-num_slots // number_of_windows(fraction))


def size_of_head(num_slots: int, fraction: float) -> int:
    """Returns how many slots the head has, K.

    Args:
      num_slots: I.
      fraction: of the error's window. Where the error is taken of all slots one is enough.
    """
    return width_of_windows(num_slots, fraction) if fraction < 1 else 1


def draw_start(key: Array, num_slots: int, fraction: float) -> tuple[Array, Array]:
    """Draws the first slot of a window, and that of its shape; see ``Window``."""
    width = width_of_windows(num_slots, fraction)
    start = jax.random.randint(key, (), 0, number_of_windows(fraction)) * width
    return start, jnp.minimum(start, max(num_slots - width, 0))


def draw_window(key: Array, num_slots: int, fraction: float) -> Window:
    """Draws a window.

    Args:
      key: a jax key.
      num_slots: I.
      fraction: share of the slots in a window, rounded so that a whole number of windows fits.
    """
    number, width = number_of_windows(fraction), width_of_windows(num_slots, fraction)
    start, begin = draw_start(key, num_slots, fraction)
    return Window(begin, begin + jnp.arange(width, dtype=jnp.int32) >= start, number)


class Held(NamedTuple):
    """What of the arrays of a step a device holds that has a part of the slots alone.

    Attributes:
      head: [K] bool, which places of the head are slots of its own; the others are filling.
      far: [F] bool, the far tokens of its slots.
      entry: [V] bool, which rows of the noise's window are inside it.
      exit: [W] bool, the same of the error's.
    """

    head: Array
    far: Array
    entry: Array
    exit: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WindowedStep:
    """All that a step reads but parameters.

    Attributes:
      noise: [B, V], what enters the first layer at the window's slots, after dropout.
      head_noise: [B, V'], the same of a window of the head's slots.
      entry: [] int32, where the noise's window begins.
      head_entry: [] int32, the place in the head where its window begins.
      corrupted: the batch as it enters the first layer: scaled, after dropout.
      batch: the batch itself, the target.
      exit: [] int32, where the error's window begins.
      share: [W], how often the squared output of each of its slots counts.
      place: [F] int32, where in it a far token's slot is; W where it is not.
      t: [B] int32.
      probability: [B], T p_t.
      held: what is this device's own; None for all.
    """

    noise: Array
    head_noise: Array
    entry: Array
    head_entry: Array
    corrupted: SplitBatch
    batch: SplitBatch
    exit: Array
    share: Array
    place: Array
    t: Array
    probability: Array
    held: Held | None = None


def draw_step(
    model: DiffusionModel,
    head: Head,
    history: LossHistory,
    batch: SplitBatch,
    size: int,
    key: Array,
) -> WindowedStep:
    """Draws timesteps, windows, noise and dropout.

    The slots of the head and the others have windows of their own, drawn apart: each slot carries
    noise as often as any other.

    Args:
      model: static.
      head: its slots.
      history: losses so far.
      batch: interaction vectors.
      size: B.
      key: of this step.
    """
    c = model.coefficients()
    key_t, key_noise, key_head, key_bits, key_near, key_far, key_error = jax.random.split(key, 7)
    t, probability = sample_timesteps(key_t, history, size)
    entry = draw_window(key_noise, model.num_slots, model.noise_fraction)
    head_entry = draw_window(key_head, head.slots.shape[0], model.noise_fraction)
    inside = jnp.asarray(head.inside)
    widths = entry.inside.shape[0], head_entry.inside.shape[0]
    bits = hashed_bits(key_bits, (size, sum(widths)))
    carries = jnp.concatenate([entry.inside & ~inside[entry.slots], head_entry.inside])
    scale = c.noise_scale[t][:, None] * entry.number**0.5
    noise = normal_from_bits(bits) * keep_factors(bits, model.dropout) * scale
    noise = jnp.where(carries[None, :], noise, 0)
    signal = jnp.concatenate([c.signal_scale[t], jnp.zeros(1)])

    def corrupt(tokens: SparseBatch, key: Array) -> SparseBatch:
        kept = keep_factors(hashed_bits(key, tokens.slots.shape), model.dropout)
        weights = tokens.weights * kept * signal[tokens.rows]
        return SparseBatch(tokens.slots, tokens.rows, weights)

    window = draw_window(key_error, model.num_slots, model.error_fraction)
    share, place = error_window(window, head, batch)
    return WindowedStep(
        noise[:, : widths[0]],
        noise[:, widths[0] :],
        entry.begin,
        head_entry.begin,
        SplitBatch(corrupt(batch.near, key_near), corrupt(batch.far, key_far)),
        batch,
        window.begin,
        share,
        place,
        t,
        probability,
    )


def error_window(window: Window, head: Head, batch: SplitBatch) -> tuple[Array, Array]:
    """How a window's slots count, and where the far tokens are: ``share``, ``place``.

    Args:
      window: of the error.
      head: its slots, which count elsewhere.
      batch: interaction vectors.
    """
    width = window.inside.shape[0]
    counted = window.inside & ~jnp.asarray(head.inside)[window.slots]
    return jnp.where(counted, float(window.number), 0.0), place_in(
        window.begin, width, jnp.asarray(batch.far.slots)
    )


def place_in(begin: Array, width: int, slots: Array) -> Array:
    """Places of slots in a window, ``width`` for those outside, int32."""
    place = slots - begin
    return jnp.where((place >= 0) & (place < width), place, width)


class TableRows(NamedTuple):
    """What a step reads of a table.

    Attributes:
      head: [K, H], rows of the head.
      window: [V or W, H], rows of the window.
      far: [F, H], rows of the far tokens' slots.
    """

    head: Array
    window: Array
    far: Array


def gather_rows(table: Array, head: Head, begin: Array, width: int, far: Array) -> TableRows:
    """Reads rows of a table [I, H] that is not kept in parts.

    Args:
      table: of parameters.
      head: its slots.
      begin: [] int32, of the window.
      width: of the window.
      far: [F] int32, slots of the far tokens.
    """
    return TableRows(
        table[head.slots], jax.lax.dynamic_slice_in_dim(table, begin, width), table[far]
    )


def _bag(terms: Array, tokens: SparseBatch, size: int) -> Array:
    """Sums the tokens [P, H] of each row, [B, H]; unused tokens have row B, which is left out."""
    return jax.ops.segment_sum(terms, tokens.rows, num_segments=size, indices_are_sorted=True)


def project_rows(step: WindowedStep, rows: TableRows) -> Array:
    """Takes the noisy batch to z = x_t W_x, [B, H]."""
    size, near, far = step.noise.shape[0], step.corrupted.near, step.corrupted.far
    part = jax.lax.dynamic_slice_in_dim(rows.head, step.head_entry, step.head_noise.shape[1])
    noise = jnp.dot(step.noise, rows.window) + jnp.dot(step.head_noise, part)
    return (
        noise
        + _bag(rows.head[near.slots] * near.weights[:, None], near, size)
        + _bag(rows.far * far.weights[:, None], far, size)
    )


def losses_of_rows(
    model: DiffusionModel,
    params: Params,
    head: Head,
    step: WindowedStep,
    entry: TableRows,
    exit: TableRows,
) -> Array:
    """Weighted squared error of each row of the batch, [B], before division by T p_t.

    Args:
      model: static.
      params: of the denoiser; of its two tables nothing is read.
      head: its slots.
      step: from ``draw_step``.
      entry: of W_x.
      exit: of W_o.
    """
    return errors_of_rows(model, params, head, step, project_rows(step, entry), exit)


def errors_of_rows(
    model: DiffusionModel,
    params: Params,
    head: Head,
    step: WindowedStep,
    z: Array,
    exit: TableRows,
) -> Array:
    """``losses_of_rows`` from the projected batch; of a device's own slots if it has a part.

    Args:
      model: static.
      params: of the denoiser; of its two tables nothing is read.
      head: its slots.
      step: from ``draw_step``.
      z: [B, H], from ``project_rows``.
      exit: of W_o.
    """
    denoiser, held = model.denoiser(params), step.held
    size, width = step.noise.shape[0], step.share.shape[0]
    near, far = step.batch.near, step.batch.far
    h = denoiser.trunk(z, step.t)
    bias = denoiser.output.bias[...]
    popular = jnp.dot(h, exit.head.T) + bias[head.slots][None, :]
    popular = popular.at[near.rows, near.slots].add(-near.weights, mode="drop")
    if held is not None:
        popular = jnp.where(held.head[None, :], popular, 0)
    error = jnp.sum(jnp.square(popular), axis=1)
    window = jax.lax.dynamic_slice_in_dim(bias, step.exit, width)
    output = jnp.dot(h, exit.window.T) + window[None, :]
    # A user's own items are taken apart below.
    output = output.at[far.rows, step.place].set(0, mode="drop")
    error = error + jnp.dot(jnp.square(output), step.share)
    own = jnp.sum(h[jnp.minimum(far.rows, size - 1)] * exit.far, axis=1) + bias[far.slots]
    missed = jnp.square(far.weights - own)
    if held is not None:
        missed = jnp.where(held.far, missed, 0)
    error = error + _bag(missed, far, size)
    return model.coefficients().loss_weight[step.t] * error / model.num_slots
