"""Exact selection by rank without sorting the catalogue.

Items of a row are ordered by score, the highest first, equal scores by id, as a stable descending
sort would. Sorting a row is the slowest thing a CPU backend can be asked for here; counting how
many scores exceed a guess is one of the fastest, and a few good guesses settle it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdrec_jax.rows import count_both, count_true, row_sums

_GROUP = 64
_LANES = 8  # numbers of a group that a CPU takes at a time
_WORD, _HALF = 32, 16
_SAMPLE = 1024
_FAN_BITS, _FAN_STEPS = 3, 6  # of the search in the sample: 6 times into 8 parts
_FAN = 1 << _FAN_BITS


MASKED = jnp.iinfo(jnp.int32).min  # the key of an item that takes no part


def sortable(scores: Array) -> Array:
    """Maps float32 to int32 that order in the same way; ``MASKED`` is below every finite score."""
    bits = jax.lax.bitcast_convert_type(_one_zero(scores), jnp.int32)
    return bits ^ ((bits >> 31) & jnp.int32(0x7FFFFFFF))


def _one_zero(scores: Array) -> Array:
    """Replaces -0.0, an equal score, by 0.0; a compiler drops the addition of 0 that would do."""
    return jnp.where(scores == 0, jnp.zeros_like(scores), scores)


def _score(keys: Array) -> Array:
    """The inverse of ``sortable``."""
    bits = keys ^ ((keys >> 31) & jnp.int32(0x7FFFFFFF))
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


class Threshold(NamedTuple):
    """Where a rank cuts a row: items before it have a larger key, or the same and a smaller index.

    Attributes:
      key: [] int32.
      index: [] int32.
    """

    key: Array
    index: Array  # type: ignore[assignment]  # a tuple has one too

    def before(self, keys: Array, index: Array) -> Array:
        """Whether items rank before the cut.

        Args:
          keys: [N] of some items.
          index: [N] their indices.
        """
        return (keys > self.key) | ((keys == self.key) & (index < self.index))


def rank_threshold(keys: Array, rank: Array, total: Array) -> Threshold:
    """Finds the cut of a row that has ``rank`` items before it.

    Narrows an interval of keys down until just the wanted number lie above it: any value between
    two neighbours will do, so the last bits matter to equal scores alone. A sample of the row gives
    the first interval; then two guesses to either side of where the scores would cut, were they
    even, narrow it, and from time to time its thirds, whatever the scores are.

    Args:
      keys: [N] int32 from ``sortable``.
      rank: [] int32, below ``total``.
      total: [] int32, the row's number of keys that are not ``MASKED``.
    """
    if keys.shape[0] > 4 * _SAMPLE:
        low, high, ahead, through = _sampled_interval(keys, rank, total)
    else:
        low, high = _ends(keys)
        ahead, through = jnp.zeros_like(rank), total

    def unsettled(state: tuple[_Interval, Array]) -> Array:
        interval = state[0]
        return (interval.ahead != rank) & (interval.high - 1 > interval.low)

    def guesses_in(interval: _Interval) -> Array:
        low, high, _, _, turn = interval
        even = jnp.isfinite(_score(high) - _score(low)) & (turn % 4 != 3)
        guesses = jnp.where(even, _straight(interval, rank), _middles(low, high))
        return jnp.clip(guesses, low + 1, high - 1)

    def narrow(state: tuple[_Interval, Array]) -> tuple[_Interval, Array]:
        # The guesses are carried, so that the compiler cannot compute them twice, once for the
        # counts and once for the new ends, with other rounding.
        (low, high, ahead, through, turn), guesses = state
        counts = count_both(keys >= guesses[0], keys >= guesses[1])
        above, below = counts <= rank, counts > rank
        interval = _Interval(
            jnp.max(jnp.where(below, guesses, low)),
            jnp.min(jnp.where(above, guesses, high)),
            jnp.max(jnp.where(above, counts, ahead)),
            jnp.min(jnp.where(below, counts, through)),
            turn + 1,
        )
        return interval, guesses_in(interval)

    start = _Interval(low, high, ahead, through, jnp.zeros((), jnp.int32))
    (low, high, ahead, _, _), _ = jax.lax.while_loop(unsettled, narrow, (start, guesses_in(start)))
    settled = ahead == rank
    key = jnp.where(settled, high - 1, low)
    index = jax.lax.cond(
        settled, jnp.zeros_like, lambda skip: _nth_equal(keys == key, skip), rank - ahead
    )
    return Threshold(key, index)


class _Interval(NamedTuple):
    """Keys between which the cut lies, [] int32 each.

    Attributes:
      low: with more than ``rank`` keys that are not below it.
      high: with at most ``rank``.
      ahead: how many these are.
      through: how many are not below ``low``.
      turn: guesses made.
    """

    low: Array
    high: Array
    ahead: Array
    through: Array
    turn: Array


def _middles(low: Array, high: Array) -> Array:
    """The middle of an interval of keys and that of its upper half, [2], without overflow."""
    middle = (low & high) + ((low ^ high) >> 1)
    return jnp.stack([middle, (middle & high) + ((middle ^ high) >> 1)])


def _straight(state: _Interval, rank: Array) -> Array:
    """Two keys, [2], a little before and after a rank, if the scores in between are even."""
    left = (state.through - state.ahead).astype(jnp.float32)
    margin = 0.5 * jnp.sqrt(left)  # a standard deviation, at the middle
    wanted = (rank - state.ahead).astype(jnp.float32)
    share = jnp.stack([wanted + 0.5 - margin, wanted + 0.5 + margin]) / left
    top, bottom = _score(state.high), _score(state.low)
    return sortable(top - (top - bottom) * jnp.clip(share, 0.0, 1.0))


def _ends(keys: Array) -> tuple[Array, Array]:
    """The least key that is not ``MASKED``, and the first beyond the largest."""
    least = jnp.min(jnp.where(keys == MASKED, jnp.iinfo(jnp.int32).max, keys))
    return least, jnp.max(keys) + 1


def _sampled_interval(keys: Array, rank: Array, total: Array) -> tuple[Array, Array, Array, Array]:
    """An interval that holds the cut, from a sample of the row: (low, high, ahead, through)."""
    sample = keys[:: keys.shape[0] // _SAMPLE]
    low, high = _ends(sample)
    size = count_true(sample != MASKED).astype(jnp.float32)
    wanted = rank.astype(jnp.float32) / total.astype(jnp.float32) * size
    margin = 1.5 * jnp.sqrt(size)  # three standard deviations at the median

    targets = jnp.stack([wanted - margin, wanted + margin])
    steps = jnp.arange(1, _FAN, dtype=jnp.int32)

    def narrow(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        """Cuts both intervals into ``_FAN`` and keeps the part that the target falls into."""
        below, above = ends
        width = (above >> _FAN_BITS) - (below >> _FAN_BITS)
        guesses = below[:, None] + width[:, None] * steps[None, :]
        reached = sample[None, :] >= guesses.reshape(-1, 1)
        ahead = row_sums(reached.astype(jnp.float32)).reshape(guesses.shape)
        part = jnp.sum(ahead > targets[:, None], axis=1, dtype=jnp.int32)
        below = below + width * part
        return below, jnp.where(part == _FAN - 1, above, below + width)

    ends = jnp.stack([low, low]), jnp.stack([high, high])
    (upper, lower), _ = jax.lax.fori_loop(0, _FAN_STEPS, narrow, ends)
    above_upper, above_lower = count_both(keys >= upper, keys >= lower)
    # A sample can mislead: an end that does not hold the cut is put where all keys are.
    fits_above, fits_below = above_upper <= rank, above_lower > rank
    extremes = jnp.iinfo(jnp.int32)
    return (
        jnp.where(fits_below, lower, extremes.min + 1),
        jnp.where(fits_above, upper, extremes.max),
        jnp.where(fits_above, above_upper, 0),
        jnp.where(fits_below, above_lower, total),
    )


def _nth_equal(equal: Array, skip: Array) -> Array:
    """The column before which ``skip`` entries of ``equal`` [N] are true."""
    columns = jnp.arange(equal.shape[0], dtype=jnp.int32)
    bits = equal.shape[0].bit_length()

    def narrow(step: Array, found: Array) -> Array:
        guess = found + (1 << (bits - 1 - step))
        fewer = count_true(equal & (columns < guess)) <= skip
        return jnp.where(fewer, guess, found)

    return jax.lax.fori_loop(0, bits, narrow, jnp.zeros_like(skip))


def top(scores: Array, count: int) -> Array:
    """Returns the indices of the ``count`` highest scores of a row, best first, [count].

    The ``count`` groups with the highest maxima hold them all, so only those are looked at.

    Args:
      scores: [N] float32.
      count: at most N.
    """
    width = scores.shape[0]
    groups = -(-width // _GROUP)
    if groups <= count:
        return jax.lax.top_k(_one_zero(scores), count)[1]
    whole = width // _GROUP
    lanes = jnp.max(_one_zero(scores[: whole * _GROUP]).reshape(whole, -1, _LANES), axis=1)
    highest = jnp.max(lanes, axis=1)
    if whole < groups:
        highest = jnp.append(highest, jnp.max(_one_zero(scores[whole * _GROUP :])))
    _, best = jax.lax.top_k(highest, count)
    # In the order of ids again, so that equal scores keep the lower id first.
    best = jnp.sort(best)
    ids = (best[:, None] * _GROUP + jnp.arange(_GROUP, dtype=jnp.int32)[None, :]).reshape(-1)
    # Padding the row instead would copy all of it.
    found = jnp.where(ids < width, _one_zero(scores[jnp.minimum(ids, width - 1)]), -jnp.inf)
    _, place = jax.lax.top_k(found, count)
    return ids[place].astype(jnp.int32)


def pack_bits(mask: Array) -> Array:
    """Packs a row's marks [N] into words of 32, the first mark in the lowest bit, uint32."""
    whole = mask.shape[0] // _HALF * _HALF
    powers = 2.0 ** jnp.arange(_HALF, dtype=jnp.float32)
    marks = mask.astype(jnp.float32)
    # As products, since half a word is exact in a float.
    product = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
    halves = product(marks[:whole].reshape(-1, _HALF), powers)
    if whole < mask.shape[0]:
        rest = marks[whole:]
        halves = jnp.append(halves, product(rest, powers[: len(rest)]))
    halves = jnp.pad(halves.astype(jnp.uint32), (0, len(halves) % 2)).reshape(-1, 2)
    return halves[:, 0] | (halves[:, 1] << _HALF)


def nth_true(words: Array, ordinals: Array) -> Array:
    """Returns the index of the n-th mark, counting from 0, [B, R] int32.

    Args:
      words: [B, W] uint32, each row from ``pack_bits``.
      ordinals: [B, R] int32, each below the row's number of marks.
    """
    ends = jnp.cumsum(jax.lax.population_count(words).astype(jnp.int32), axis=1)
    word = jax.vmap(lambda e, o: jnp.searchsorted(e, o, side="right"))(ends, ordinals)
    word = jnp.minimum(word, words.shape[1] - 1)
    bits = jnp.take_along_axis(words, word, axis=1)
    count = jax.lax.population_count(bits).astype(jnp.int32)
    left = ordinals - (jnp.take_along_axis(ends, word, axis=1) - count)
    place = jnp.zeros_like(left)
    for half in (16, 8, 4, 2, 1):
        lower = (bits >> place.astype(jnp.uint32)) & jnp.uint32((1 << half) - 1)
        below = jax.lax.population_count(lower).astype(jnp.int32)
        beyond = left >= below
        place = jnp.where(beyond, place + half, place)
        left = jnp.where(beyond, left - below, left)
    return (word * _WORD + place).astype(jnp.int32)


def draw_subset(keys: Array, sizes: Array, count: int, most: int) -> Array:
    """Draws a uniform subset of ``count`` of the numbers 0 .. size - 1 (Floyd; Bentley, 1987).

    Args:
      keys: [B] jax keys.
      sizes: [B] int32, each at least 1.
      count: R. Where a size is smaller, all its numbers are taken, over and over, from one that is
        drawn on, so that none comes more often than another over many rows.
      most: no size is above.

    Returns:
      [B, R] int32, distinct where the size allows.
    """
    steps = jnp.arange(count, dtype=jnp.int32)
    begin = jax.vmap(lambda key, size: jax.random.randint(jax.random.fold_in(key, 1), (), 0, size))
    cycle = (begin(keys, sizes)[:, None] + steps[None, :]) % sizes[:, None]
    if count > most:
        return cycle
    rows = sizes.shape[0]
    enough = sizes >= count
    last = jnp.where(enough, sizes - count, 0)

    def draw(key: Array, last: Array) -> Array:
        # Integers, because a float32 has too few bits to be even over a large catalogue.
        return jax.random.randint(key, (count,), 0, last + steps + 1)

    draws = jax.vmap(draw, out_axes=1)(keys, last)

    def take(chosen: Array, inputs: tuple[Array, Array]) -> tuple[Array, None]:
        step, value = inputs
        taken = jnp.any(chosen == value[None, :], axis=0)
        value = jnp.where(taken, last + step, value).astype(jnp.int32)
        return jax.lax.dynamic_update_slice(chosen, value[None, :], (step, 0)), None

    # [R, B], so that a CPU looks at many rows at a time.
    subset, _ = jax.lax.scan(take, jnp.full((count, rows), -1, jnp.int32), (steps, draws))
    return jnp.where(enough[:, None], subset.T, cycle)
