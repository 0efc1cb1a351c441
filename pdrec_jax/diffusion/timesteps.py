"""Importance sampling of timesteps as pure state (iDDPM, Nichol and Dhariwal, 2021, Sec. 3.3).

Timesteps are drawn uniformly until each has ``HISTORY`` losses on record, then in proportion to the
root mean square of those, mixed with a little of the uniform distribution.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

HISTORY = 10
UNIFORM_SHARE = 0.001


class LossHistory(NamedTuple):
    """The last losses of each timestep.

    Attributes:
      losses: [T, HISTORY], oldest first, zero where nothing is recorded yet.
      count: [T] int32, how many are recorded, at most HISTORY.
    """

    losses: Array
    count: Array  # type: ignore[assignment]  # a tuple counts too


def empty_history(steps: int, dtype: DTypeLike = jnp.float32) -> LossHistory:
    """Returns the history before the first loss."""
    return LossHistory(jnp.zeros((steps, HISTORY), dtype), jnp.zeros(steps, jnp.int32))


def probabilities(history: LossHistory) -> Array:
    """Returns the probability of each timestep, [T], summing to 1."""
    steps = history.count.shape[0]
    root_mean_square = jnp.sqrt(jnp.mean(jnp.square(history.losses), axis=-1))
    total = jnp.sum(root_mean_square)
    importance = root_mean_square / jnp.where(total > 0, total, 1)
    mixed = importance * (1 - UNIFORM_SHARE) + UNIFORM_SHARE / steps
    warm = jnp.all(history.count == HISTORY) & (total > 0)
    return jnp.where(warm, mixed, jnp.full(steps, 1 / steps, history.losses.dtype))


def sample_timesteps(key: Array, history: LossHistory, batch: int) -> tuple[Array, Array]:
    """Draws timesteps.

    Args:
      key: a jax key.
      history: the losses so far.
      batch: B.

    Returns:
      t [B] int32, and T p_t [B], by which the loss is divided to stay unbiased.
    """
    p = probabilities(history)
    edges = jnp.cumsum(p)
    draw = jax.random.uniform(key, (batch,), p.dtype) * edges[-1]
    t = jnp.searchsorted(edges, draw, side="right", method="compare_all").astype(jnp.int32)
    t = jnp.minimum(t, p.shape[0] - 1)
    return t, p[t] * p.shape[0]


def record(history: LossHistory, t: Array, losses: Array) -> LossHistory:
    """Appends a batch's losses in batch order, keeping the last HISTORY of each timestep.

    Args:
      history: before.
      t: [B] int32.
      losses: [B], weighted, not divided by p_t.
    """
    steps = history.count.shape[0]
    at = (t[:, None] == jnp.arange(steps, dtype=t.dtype)[None, :]).astype(jnp.int32)
    # How many of the batch came before, same timestep.
    before = jnp.cumsum(at, axis=0) - at
    order = jnp.take_along_axis(before, t[:, None], axis=1)[:, 0]
    arrived = jnp.sum(at, axis=0, dtype=jnp.int32)
    total = history.count + arrived
    kept = jnp.minimum(total, HISTORY)
    dropped = total - kept  # how many of the oldest fall out of each row
    slot = jnp.arange(HISTORY, dtype=jnp.int32)[None, :]
    source = slot + dropped[:, None]
    old = jnp.take_along_axis(history.losses, jnp.minimum(source, HISTORY - 1), axis=1)
    old = jnp.where(source < history.count[:, None], old, 0)
    place = history.count[t] + order - dropped[t]
    place = jnp.where(place >= 0, place, HISTORY)  # out of range: dropped by the scatter
    losses = jax.lax.stop_gradient(losses).astype(old.dtype)
    return LossHistory(old.at[t, place].set(losses, mode="drop"), kept.astype(jnp.int32))
