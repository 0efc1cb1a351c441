"""Exact selection by rank without sorting the catalogue.

Items of a row are ordered by score, the highest first, equal scores by id, as a stable descending
sort would. Sorting [B, I] is the slowest thing a CPU backend can be asked for here; counting how
many scores exceed a guess is one of the fastest, and about 20 guesses settle a row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

_GROUP = 64


MASKED = jnp.iinfo(jnp.int32).min  # the key of an item that takes no part


def sortable(scores: Array) -> Array:
    """Maps float32 to int32 that order in the same way; ``MASKED`` is below every finite score."""
    bits = jax.lax.bitcast_convert_type(_one_zero(scores), jnp.int32)
    return bits ^ ((bits >> 31) & jnp.int32(0x7FFFFFFF))


def _one_zero(scores: Array) -> Array:
    """Replaces -0.0, an equal score, by 0.0; a compiler drops the addition of 0 that would do."""
    return jnp.where(scores == 0, jnp.zeros_like(scores), scores)


class Threshold(NamedTuple):
    """Where a rank cuts a row: items before it have a larger key, or the same and a smaller index.

    Attributes:
      key: [B] int32.
      index: [B] int32.
    """

    key: Array
    index: Array  # type: ignore[assignment]  # a tuple has one too

    def before(self, keys: Array, index: Array) -> Array:
        """Whether items rank before the cut.

        Args:
          keys: [B, N] of some items.
          index: [B, N] or [1, N] their indices.
        """
        cut, place = self.key[:, None], self.index[:, None]
        return (keys > cut) | ((keys == cut) & (index < place))


def rank_threshold(keys: Array, rank: Array) -> Threshold:
    """Finds the cut of each row that has ``rank`` items before it.

    Bisects between the row's lowest and highest key and stops as soon as every row is settled: any
    value between the two neighbours will do, so the last bits matter to equal scores alone.

    Args:
      keys: [B, N] int32 from ``sortable``.
      rank: [B] int32, each below the row's number of keys that are not ``MASKED``.
    """
    low = jnp.min(jnp.where(keys == MASKED, jnp.iinfo(jnp.int32).max, keys), axis=1)
    high = jnp.max(keys, axis=1) + 1

    def unsettled(state: tuple[Array, Array, Array]) -> Array:
        low, high, ahead = state
        return jnp.any((ahead != rank) & (high - 1 > low))

    def halve(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        # More than `rank` keys are >= low, and `ahead` <= rank are >= high.
        low, high, ahead = state
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
        count = jnp.sum(keys >= middle[:, None], axis=1, dtype=jnp.int32)
        settled, up = ahead == rank, count > rank
        return (
            jnp.where(up & ~settled, middle, low),
            jnp.where(up | settled, high, middle),
            jnp.where(up | settled, ahead, count),
        )

    low, high, ahead = jax.lax.while_loop(unsettled, halve, (low, high, jnp.zeros_like(rank)))
    settled = ahead == rank
    key = jnp.where(settled, high - 1, low)

    def among_equal(_: None) -> Array:
        return _nth_equal(keys == key[:, None], rank - ahead)

    index = jax.lax.cond(jnp.all(settled), lambda _: jnp.zeros_like(rank), among_equal, None)
    return Threshold(key, jnp.where(settled, 0, index))


def _nth_equal(equal: Array, skip: Array) -> Array:
    """The column before which ``skip`` entries of each row of ``equal`` [B, N] are true."""
    columns = jnp.arange(equal.shape[1], dtype=jnp.int32)[None, :]
    bits = equal.shape[1].bit_length()

    def narrow(step: Array, found: Array) -> Array:
        guess = found + (1 << (bits - 1 - step))
        fewer = jnp.sum(equal & (columns < guess[:, None]), axis=1, dtype=jnp.int32) <= skip
        return jnp.where(fewer, guess, found)

    return jax.lax.fori_loop(0, bits, narrow, jnp.zeros_like(skip))


def top(scores: Array, count: int) -> Array:
    """Returns the indices of the ``count`` highest scores of each row, best first, [B, count].

    The ``count`` groups with the highest maxima hold them all, so only those are looked at.

    Args:
      scores: [B, N] float32.
      count: at most N.
    """
    scores = _one_zero(scores)
    rows, width = scores.shape
    groups = -(-width // _GROUP)
    if groups <= count:
        return jax.lax.top_k(scores, count)[1]
    padded = jnp.pad(scores, ((0, 0), (0, groups * _GROUP - width)), constant_values=-jnp.inf)
    grouped = padded.reshape(rows, groups, _GROUP)
    _, best = jax.lax.top_k(jnp.max(grouped, axis=2), count)
    # In the order of ids again, so that equal scores keep the lower id first.
    best = jnp.sort(best, axis=1)
    pool = jnp.take_along_axis(grouped, best[:, :, None], axis=1).reshape(rows, count * _GROUP)
    _, place = jax.lax.top_k(pool, count)
    group = jnp.take_along_axis(best, place // _GROUP, axis=1)
    return (group * _GROUP + place % _GROUP).astype(jnp.int32)


def nth_true(mask: Array, ordinals: Array) -> Array:
    """Returns the index of the n-th true entry of each row, counting from 0, [B, R].

    Args:
      mask: [B, N] bool.
      ordinals: [B, R] int32, each below the row's number of true entries.
    """
    rows, width = mask.shape
    groups = -(-width // _GROUP)
    padded = jnp.pad(mask, ((0, 0), (0, groups * _GROUP - width))).reshape(rows, groups, _GROUP)
    ends = jnp.cumsum(jnp.sum(padded, axis=2, dtype=jnp.int32), axis=1)
    group = jax.vmap(lambda e, o: jnp.searchsorted(e, o, side="right"))(ends, ordinals)
    group = jnp.minimum(group, groups - 1)
    begin = jnp.take_along_axis(ends, group, axis=1) - jnp.take_along_axis(
        jnp.sum(padded, axis=2, dtype=jnp.int32), group, axis=1
    )
    members = jnp.take_along_axis(padded, group[:, :, None], axis=1)
    within = jnp.cumsum(members, axis=2, dtype=jnp.int32) > (ordinals - begin)[:, :, None]
    return (group * _GROUP + jnp.argmax(within, axis=2)).astype(jnp.int32)


def draw_subset(key: Array, sizes: Array, count: int) -> Array:
    """Draws a uniform subset of ``count`` of the numbers 0 .. size - 1 (Floyd; Bentley, 1987).

    Args:
      key: a jax key.
      sizes: [B] int32, each at least 1.
      count: R. Where a size is smaller, all its numbers are taken, over and over.

    Returns:
      [B, R] int32, distinct where the size allows.
    """
    rows = sizes.shape[0]
    enough = sizes >= count
    last = jnp.where(enough, sizes - count, 0)
    # Integers, because a float32 has too few bits to be even over a large catalogue.
    steps = jnp.arange(count, dtype=jnp.int32)
    draws = jax.random.randint(key, (count, rows), 0, (last[None, :] + steps[:, None]) + 1)

    def take(chosen: Array, inputs: tuple[Array, Array]) -> tuple[Array, None]:
        step, value = inputs
        high = last + step
        taken = jnp.any(chosen == value[:, None], axis=1)
        chosen = jax.lax.dynamic_update_slice(
            chosen, jnp.where(taken, high, value)[:, None].astype(jnp.int32), (0, step)
        )
        return chosen, None

    empty = jnp.full((rows, count), -1, jnp.int32)
    subset, _ = jax.lax.scan(take, empty, (steps, draws))
    cycle = steps[None, :] % sizes[:, None]
    return jnp.where(enough[:, None], subset, cycle)
