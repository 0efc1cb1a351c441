"""A training step that looks at a part of the slots: noise on one window, error on another.

Dense, a step is five products of B x H x I. Two of them carry the noise into the first layer, three
serve the output's error. With a share q of the slots in the noise's window and p in the error's

- the noise has variance 1/q on its window and is 0 elsewhere, so that ``z = x_t W_x`` and the
  gradient keep their mean and covariance over the draw of the window;
- of the squared error ``sum_i (x_i - f_i)^2`` the terms of a user's own items and of the head, the
  most popular slots, are taken as they are, and of the others those in the window, times 1/p: the
  expectation, and that of the gradient, is the whole sum. What is large is thus never left to
  chance, which would feed Adam's second moment and so slow it down.

What enters is a gather of a dozen rows a user and two windows of rows, so that a step reads and
moves those rows of the two tables alone (``row_adam``). Only x0 prediction without input
normalisation has this form.

Letters: V slots of the noise's window, W of head and window of the error, P tokens of the batch.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdrec_jax.diffusion.denoiser import Params
from pdrec_jax.diffusion.inference import DiffusionModel
from pdrec_jax.diffusion.process import normal_from_bits
from pdrec_jax.diffusion.timesteps import LossHistory, sample_timesteps
from pdrec_jax.diffusion.vectors import SparseBatch
from pdrec_jax.random_bits import hashed_bits

_DROPOUT_LEVELS = 512  # dropout reads the 9 bits of a random word that the normal leaves


def keep_factors(bits: Array, rate: float) -> Array:
    """Dropout factors, 0 or 1 / (1 - rate), from the low bits of random words."""
    kept = (bits & (_DROPOUT_LEVELS - 1)) >= round(rate * _DROPOUT_LEVELS)
    return kept.astype(jnp.float32) / (1 - rate)


class Window(NamedTuple):
    """One of the windows of equal size that the slots are split into, each equally likely.

    Attributes:
      slots: [W] int32, neighbours.
      inside: [W] bool; the last window is cut, and its shape filled up with slots before it.
      number: how many windows there are.
    """

    slots: Array
    inside: Array
    number: int


def number_of_windows(fraction: float) -> int:
    """Returns into how many windows the slots are split."""
    return round(1 / fraction)


def draw_window(key: Array, num_slots: int, fraction: float) -> Window:
    """Draws a window.

    Args:
      key: a jax key.
      num_slots: I.
      fraction: share of the slots in a window, rounded so that a whole number of windows fits.
    """
    number = number_of_windows(fraction)
    width = -(-num_slots // number)
    start = jax.random.randint(key, (), 0, number) * width
    begin = jnp.minimum(start, num_slots - width)
    slots = begin + jnp.arange(width, dtype=jnp.int32)
    return Window(slots, slots >= start, number)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WindowedStep:
    """All that a step reads but parameters.

    Attributes:
      noise: [B, V], what enters the first layer at the window's slots, after dropout.
      corrupted: the batch as it enters the first layer: scaled, after dropout.
      batch: the batch itself, the target.
      inputs: [V + P] int32, rows of W_x: the window's slots, then the tokens'.
      outputs: [W + P] int32, rows of W_o, likewise.
      share: [W], how often the squared output of each of these slots counts.
      place: [P] int32, where a token's slot stands among these; W where it does not.
      t: [B] int32.
      probability: [B], T p_t.
    """

    noise: Array
    corrupted: SparseBatch
    batch: SparseBatch
    inputs: Array
    outputs: Array
    share: Array
    place: Array
    t: Array
    probability: Array


def draw_step(
    model: DiffusionModel, history: LossHistory, batch: SparseBatch, size: int, key: Array
) -> WindowedStep:
    """Draws timesteps, windows, noise and dropout.

    Args:
      model: static.
      history: losses so far.
      batch: interaction vectors.
      size: B.
      key: of this step.
    """
    c = model.coefficients()
    key_t, key_noise, key_bits, key_tokens, key_error = jax.random.split(key, 5)
    t, probability = sample_timesteps(key_t, history, size)
    entry = draw_window(key_noise, model.num_slots, model.noise_fraction)
    bits = hashed_bits(key_bits, (size, entry.slots.shape[0]))
    scale = c.noise_scale[t][:, None] * entry.number**0.5
    noise = normal_from_bits(bits) * keep_factors(bits, model.dropout) * scale
    kept = keep_factors(hashed_bits(key_tokens, batch.slots.shape), model.dropout)
    signal = jnp.concatenate([c.signal_scale[t], jnp.zeros(1)])[batch.rows]
    window = draw_window(key_error, model.num_slots, model.error_fraction)
    outputs, share, place = error_slots(model, window, batch)
    return WindowedStep(
        jnp.where(entry.inside[None, :], noise, 0),
        SparseBatch(batch.slots, batch.rows, batch.weights * kept * signal),
        batch,
        jnp.concatenate([entry.slots, batch.slots]),
        outputs,
        share,
        place,
        t,
        probability,
    )


def error_slots(
    model: DiffusionModel, window: Window, batch: SparseBatch
) -> tuple[Array, Array, Array]:
    """Lists the slots whose error a step looks at: ``outputs``, ``share``, ``place``.

    Args:
      model: static.
      window: of the error.
      batch: interaction vectors.
    """
    head = jnp.asarray(model.head, jnp.int32)
    in_head = jnp.zeros(model.num_slots, bool).at[head].set(True)
    # A slot of the head that falls into the window too counts where it stands in the head.
    counted = window.inside & ~in_head[window.slots]
    width = head.shape[0] + window.slots.shape[0]
    place = jnp.full(model.num_slots, width, jnp.int32)
    place = place.at[jnp.where(counted, window.slots, model.num_slots)].set(
        head.shape[0] + jnp.arange(window.slots.shape[0], dtype=jnp.int32), mode="drop"
    )
    place = place.at[head].set(jnp.arange(head.shape[0], dtype=jnp.int32))
    return (
        jnp.concatenate([head, window.slots, batch.slots]),
        jnp.concatenate([jnp.ones(head.shape[0]), jnp.where(counted, float(window.number), 0.0)]),
        place[batch.slots],
    )


def project_rows(step: WindowedStep, entry: Array) -> Array:
    """Takes the noisy batch to z = x_t W_x, [B, H].

    Args:
      step: from ``draw_step``.
      entry: [V + P, H], rows ``step.inputs`` of W_x.
    """
    size, window = step.noise.shape
    tokens = step.corrupted
    return jnp.dot(step.noise, entry[:window]) + jax.ops.segment_sum(
        entry[window:] * tokens.weights[:, None],
        tokens.rows,
        num_segments=size,
        indices_are_sorted=True,
    )


def losses_of_rows(
    model: DiffusionModel, params: Params, step: WindowedStep, entry: Array, exit: Array
) -> Array:
    """Weighted squared error of each row of the batch, [B], before division by T p_t.

    Args:
      model: static.
      params: of the denoiser; of its two tables nothing is read.
      step: from ``draw_step``.
      entry: see ``project_rows``.
      exit: [W + P, H'], rows ``step.outputs`` of W_o.
    """
    denoiser = model.denoiser(params)
    size = step.noise.shape[0]
    h = denoiser.trunk(project_rows(step, entry), step.t)

    bias = denoiser.output.bias[...][step.outputs]
    window = step.share.shape[0]
    output = jnp.dot(h, exit[:window].T) + bias[None, :window]
    x, rows = step.batch.weights, step.batch.rows
    # A user's own items are taken apart below; an unused token has row B, which is dropped here
    # and which no segment takes.
    output = output.at[rows, step.place].set(0, mode="drop")
    error = jnp.dot(jnp.square(output), step.share)
    of_items = jnp.sum(h[jnp.minimum(rows, size - 1)] * exit[window:], axis=1) + bias[window:]
    error = error + jax.ops.segment_sum(
        jnp.square(x - of_items), rows, num_segments=size, indices_are_sorted=True
    )
    return model.coefficients().loss_weight[step.t] * error / model.num_slots
