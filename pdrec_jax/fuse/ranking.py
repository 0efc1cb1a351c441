"""Ranks with the sum of two models' scores, for several weights at a time.

Letters: U users, B of a block, I items, W and V widths of the two models' vectors, G weights.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdrec_jax.data.interactions import Interactions
from pdrec_jax.evaluation.protocol import Candidates
from pdrec_jax.evaluation.ranking import (
    SCORED_TOGETHER,
    Ranks,
    catalogue_negatives,
    common_width,
    count_candidates,
    count_catalogue,
    distinct_rows,
    ranks_of_blocks,
)
from pdrec_jax.recommend.fused import Standardised
from pdrec_jax.recommend.histories import Histories
from pdrec_jax.rows import by_blocks

BLOCK = 512  # users whose vectors are made at once


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Ranks the held-out item of each user by one score plus a weight times another.

    Attributes:
      parts: the two models.
      history: what each user did before the held-out event.
      users: [U'] the users that are ranked.
      candidates: [U, 1 + N] the relevant item and its negatives, all users.
      half_ties: see ``Ranks``.
      num_items: target items, ids 1..num_items.
    """

    parts: tuple[Standardised, Standardised]
    history: Interactions
    users: np.ndarray
    candidates: Candidates
    half_ties: bool
    num_items: int

    def sampled(self, weights: Sequence[float]) -> list[Ranks]:
        """Ranks among the sampled candidates, by each of some weights."""
        tables, given = self._tables(), np.asarray(weights, np.float32)
        counts, real = [], []
        for users, vectors, count in self._blocks():
            counts.append(_count_sampled(*vectors, *tables, self.candidates[users], given))
            real.append(count)
        return self._ranks_of(counts, real, len(given))

    def both(self, weight: float) -> tuple[Ranks, Ranks]:
        """Ranks by one weight: among the sampled candidates, and among all items not seen."""
        tables, history = self._tables(), self.history
        width = common_width(history.offsets, self.users)
        sampled, full, real, negatives = [], [], [], []
        for users, vectors, count in self._blocks():
            candidates = self.candidates[users]
            given = np.asarray([weight], np.float32)
            sampled.append(_count_sampled(*vectors, *tables, candidates, given))
            positive = candidates[:, 0]
            seen = distinct_rows(history.offsets, history.items, users, width)
            left = *vectors, *tables, positive, seen, given[0]
            full.append(_count_full(*left, self.num_items))
            real.append(count)
            negatives.append(catalogue_negatives(seen, positive, self.num_items)[:count])
        others = np.concatenate([np.zeros(0, np.int64), *negatives])
        (of_sampled,) = self._ranks_of(sampled, real, 1)
        return of_sampled, ranks_of_blocks(full, real, others, half_ties=self.half_ties)

    def _ranks_of(
        self, counts: Sequence[tuple[Array, Array]], real: Sequence[int], weights: int
    ) -> list[Ranks]:
        """Ranks of each weight, from what blocks have counted in the sampled candidates."""
        negatives = np.full(len(self.users), self.candidates.shape[1] - 1)
        found = jax.device_get(list(counts))
        return [
            ranks_of_blocks(
                [(above[:, which], ties[:, which]) for above, ties in found],
                real,
                negatives,
                half_ties=self.half_ties,
            )
            for which in range(weights)
        ]

    def _tables(self) -> tuple[Array, Array]:
        first, second = self.parts
        return first.item_vectors(), second.item_vectors()

    def _blocks(self) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, np.ndarray], int]]:
        """Yields users [B], their vectors by both models, and how many of them are not filling."""
        history = self.history
        everyone = Histories(history.user_ids, history.offsets, history.items, history.times)
        first, second = self.parts
        for begin in range(0, len(self.users), BLOCK):
            some = self.users[begin : begin + BLOCK]
            own = everyone.select(some)
            filling = ((0, BLOCK - len(some)), (0, 0))
            vectors = (
                np.pad(first.user_vectors(own), filling),
                np.pad(second.user_vectors(own), filling),
            )
            yield np.pad(some, filling[0], mode="edge"), vectors, len(some)


@jax.jit
def _count_sampled(
    users: Array,
    others: Array,
    items: Array,
    other_items: Array,
    candidates: Array,
    weights: Array,
) -> tuple[Array, Array]:
    """Counts of each weight, [B, G] twice."""

    def count(users: Array, others: Array, candidates: Array) -> tuple[Array, Array]:
        first = jnp.einsum("bw,bcw->bc", users, items[candidates])
        second = jnp.einsum("bv,bcv->bc", others, other_items[candidates])
        counts = [count_candidates(first + weight * second, candidates) for weight in weights]
        above, ties = (jnp.stack(column, axis=1) for column in zip(*counts, strict=True))
        return above, ties

    counts: tuple[Array, Array] = by_blocks(count, SCORED_TOGETHER, users, others, candidates)
    return counts


@functools.partial(jax.jit, static_argnums=7)
def _count_full(
    users: Array,
    others: Array,
    items: Array,
    other_items: Array,
    positive: Array,
    seen: Array,
    weight: Array,
    num_items: int,
) -> tuple[Array, Array]:
    def count(users: Array, others: Array, positive: Array, seen: Array) -> tuple[Array, Array]:
        scores = jnp.dot(users, items.T) + weight * jnp.dot(others, other_items.T)
        return count_catalogue(scores, positive, seen, last_item=num_items)

    counts: tuple[Array, Array] = by_blocks(count, SCORED_TOGETHER, users, others, positive, seen)
    return counts
