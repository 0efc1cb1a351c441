"""Counting, for each user, the candidates that beat the relevant item."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdrec_jax.data.compressed import gathered
from pdrec_jax.evaluation.metrics import summarise
from pdrec_jax.rows import by_rows, count_true

# Users whose scores of the whole catalogue a CPU's cache holds, more or less.
SCORED_TOGETHER = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Ranks:
    """What a ranking of each user's candidates comes down to.

    Attributes:
      above: [U] int64, negatives scored strictly higher than the relevant item.
      ties: [U] int64, negatives scored equal; negative where a score is not finite, for such a one
        is above nothing and below nothing.
      negatives: [U] int64, how many negatives there were.
      half_ties: whether a tie counts half a place (``strict``) or none (``reference``).
    """

    above: np.ndarray
    ties: np.ndarray
    negatives: np.ndarray
    half_ties: bool

    @property
    def ranks(self) -> np.ndarray:
        """[U] float64, 0 is the best."""
        return self.above + (self.ties / 2 if self.half_ties else 0.0)

    @property
    def finite(self) -> bool:
        """Whether all scores were numbers."""
        return bool((self.ties >= 0).all())

    def metrics(self) -> dict[str, float]:
        """Means over users, see ``metrics.summarise``; NaN where a score was not finite."""
        return dict.fromkeys(self._means(), np.nan) if not self.finite else self._means()

    def _means(self) -> dict[str, float]:
        return summarise(self.ranks, self.above, self.ties, self.negatives)


class Scorer(Protocol):
    """What ranks the users of one held-out item with a model's parameters."""

    def sampled(self, params: Any) -> Ranks:
        """Ranks among the sampled candidates."""

    def full(self, params: Any) -> Ranks:
        """Ranks in the whole catalogue."""


def ranks_of_blocks(
    counts: Sequence[tuple[Array, Array]],
    real: Sequence[int],
    negatives: np.ndarray,
    *,
    half_ties: bool,
) -> Ranks:
    """Puts together what blocks of users have counted, and is the first to wait for the device.

    Args:
      counts: above [B] and ties [B] of each block.
      real: how many users of each block are not filling; together U.
      negatives: see ``Ranks``, and so is the next.
      half_ties: see there.
    """
    found = jax.device_get(list(counts))

    def column(which: int) -> np.ndarray:
        parts = [pair[which][:size] for pair, size in zip(found, real, strict=True)]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    return Ranks(column(0), column(1), negatives, half_ties)


def count_candidates(scores: Array, items: Array) -> tuple[Array, Array]:
    """Counts on sampled candidates.

    ``reference`` may draw the relevant item as a negative of itself. It is level with itself then,
    though a product's rounding may depend on the column, and on the mesh.

    Args:
      scores: [B, 1 + N], the relevant item in column 0.
      items: [B, 1 + N] the candidates.

    Returns:
      above [B] and ties [B], int32; ties of -1 where a score is not finite.
    """
    positive, negative = scores[:, :1], scores[:, 1:]
    itself = items[:, 1:] == items[:, :1]
    above = jnp.sum((negative > positive) & ~itself, axis=1, dtype=jnp.int32)
    ties = jnp.sum((negative == positive) | itself, axis=1, dtype=jnp.int32)
    return above, jnp.where(jnp.isfinite(scores).all(axis=1), ties, -1)


def count_catalogue(
    scores: Array, positive: Array, seen: Array, *, last_item: int
) -> tuple[Array, Array]:
    """Counts on the whole catalogue, the user's seen items left out.

    The items left out are counted and subtracted, so no mask over the catalogue is built. The
    relevant item itself never counts, seen before or not.

    Args:
      scores: [B, I] over item ids (column 0 is the padding id and never counts).
      positive: [B] int32, the relevant item.
      seen: [B, K] int32, distinct seen items, 0 where there are fewer.
      last_item: last id of the catalogue, which begins with 1.

    Returns:
      above [B] and ties [B], int32; ties of -1 where the relevant item's score is not finite. (A
      pass over all others would cost as much as the count.)
    """

    def count(scores: Array, positive: Array, seen: Array) -> tuple[Array, Array]:
        own = scores[positive]
        catalogue = scores[1 : last_item + 1]
        above, level = count_true(catalogue > own), count_true(catalogue >= own)
        of_seen = scores[seen]
        counts = (seen > 0) & (seen <= last_item) & (seen != positive)
        above = above - count_true(counts & (of_seen > own))
        level = level - count_true(counts & (of_seen >= own))
        return above, jnp.where(jnp.isfinite(own), level - above - 1, -1)

    return by_rows(count, scores, positive, seen)


def catalogue_negatives(seen: np.ndarray, positive: np.ndarray, last_item: int) -> np.ndarray:
    """How many items of the catalogue ``count_catalogue`` looks at beside the relevant one, [B].

    Args:
      seen: [B, K], see there, and so are the others.
      positive: [B].
      last_item: see there.
    """
    left_out = (seen > 0) & (seen <= last_item) & (seen != positive[:, None])
    return last_item - 1 - left_out.sum(axis=1)


def distinct_rows(
    offsets: np.ndarray, items: np.ndarray, users: np.ndarray, width: int = 1
) -> np.ndarray:
    """Distinct items of each of some users, [B, K] int32, padded with 0.

    Args:
      offsets: [U+1], CSR.
      items: [E] int32.
      users: [B] indices.
      width: least K; the largest number of distinct items, if that is more.
    """
    lengths = offsets[users + 1] - offsets[users]
    rows = np.repeat(np.arange(len(users)), lengths)
    _, events = gathered(offsets[users], lengths)
    pairs = np.unique((rows << 32) | items[events])
    rows, found = pairs >> 32, (pairs & 0xFFFFFFFF).astype(np.int32)
    counts = np.bincount(rows, minlength=len(users))
    column = np.arange(len(pairs)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.zeros((len(users), max(width, int(counts.max(initial=0)))), np.int32)
    table[rows, column] = found
    return table


def common_width(offsets: np.ndarray, users: np.ndarray) -> int:
    """A width for ``distinct_rows`` that serves every block of these users: one shape to compile.

    Args:
      offsets: [U+1], CSR.
      users: [U'] indices.
    """
    longest = int((offsets[1:] - offsets[:-1])[users].max(initial=1))
    return -(-longest // 16) * 16
