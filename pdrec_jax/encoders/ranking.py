"""Ranking with an encoder, in blocks of users of one static shape."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
from jax import Array

from pdrec_jax.data.batches import enough_rows, pack
from pdrec_jax.encoders.model import (
    Batch,
    EncoderModel,
    Params,
    final_states,
    normalise,
    score_items,
    score_table,
)
from pdrec_jax.evaluation.ranking import (
    Ranks,
    common_width,
    count_candidates,
    count_catalogue,
    distinct_rows,
)
from pdrec_jax.rows import by_blocks

_SCORED_TOGETHER = 64  # users whose scores of the whole catalogue a CPU's cache holds, more or less


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Ranks the held-out item of each user by the encoder's state after its last event.

    Attributes:
      model: static description.
      offsets: [U+1], CSR of the histories that are the input.
      items: [E] int32.
      users: [U'] the users that are ranked.
      candidates: [U, 1 + N] the relevant item and its negatives, all users.
      half_ties: see ``Ranks``.
      block: users at a time.
      num_items: target items, ids 1..num_items.
    """

    model: EncoderModel
    offsets: np.ndarray
    items: np.ndarray
    users: np.ndarray
    candidates: np.ndarray
    half_ties: bool
    block: int
    num_items: int

    @functools.cached_property
    def _batches(self) -> list[tuple[Batch, int]]:
        """The packed users, and how many of each batch are not filling; kept between epochs."""
        cut = [self.users[i : i + self.block] for i in range(0, len(self.users), self.block)]
        full = [np.concatenate([b, np.full(self.block - len(b), b[0])]) for b in cut]
        length = self.model.max_length
        layout = self.model.layout
        rows = enough_rows(self.offsets, full, length, layout)
        packed = []
        for block, users in zip(cut, full, strict=True):
            cells = pack(self.offsets, users, length, rows, layout)
            batch = Batch(users.astype(np.int32), cells.event, cells.segment, cells.last)
            packed.append((jax.device_put(batch), len(block)))
        return packed

    @functools.cached_property
    def _histories(self) -> tuple[Array, Array]:
        return jax.device_put((self.offsets.astype(np.int32), self.items.astype(np.int32)))

    def sampled(self, params: Params) -> Ranks:
        """Ranks among the sampled candidates."""
        counts = [
            _count_sampled(
                params,
                *self._histories,
                batch,
                self.candidates[np.asarray(batch.users)],
                self.model,
            )
            for batch, _ in self._batches
        ]
        negatives = np.full(len(self.users), self.candidates.shape[1] - 1)
        return self._ranks(counts, negatives)

    def full(self, params: Params) -> Ranks:
        """Ranks among all items that are not in the user's input."""
        counts, negatives = [], []
        table = _normalise(params["item_embedding"])
        width = common_width(self.offsets, self.users)
        for batch, real in self._batches:
            users = np.asarray(batch.users)
            positive = self.candidates[users, 0]
            seen = distinct_rows(self.offsets, self.items, users, width)
            counts.append(
                _count_full(
                    params,
                    table,
                    *self._histories,
                    batch,
                    positive,
                    seen,
                    self.model,
                    self.num_items,
                )
            )
            others = (seen > 0) & (seen <= self.num_items) & (seen != positive[:, None])
            negatives.append((self.num_items - 1 - others.sum(axis=1))[:real])
        return self._ranks(counts, np.concatenate(negatives) if negatives else np.zeros(0))

    def _ranks(self, counts: list[tuple[Array, Array]], negatives: np.ndarray) -> Ranks:
        found = jax.device_get(counts)
        columns = []
        for index in (0, 1):
            parts = [
                pair[index][:real] for pair, (_, real) in zip(found, self._batches, strict=True)
            ]
            columns.append(np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, int))
        return Ranks(columns[0], columns[1], negatives, self.half_ties)


@functools.partial(jax.jit, static_argnums=5)
def _count_sampled(
    params: Params,
    offsets: Array,
    items: Array,
    batch: Batch,
    candidates: Array,
    model: EncoderModel,
) -> tuple[Array, Array]:
    states = final_states(params, model, offsets, items, batch)
    return count_candidates(score_items(params, model, states, candidates))


_normalise = jax.jit(normalise)


@functools.partial(jax.jit, static_argnums=(7, 8))
def _count_full(
    params: Params,
    table: Array,
    offsets: Array,
    items: Array,
    batch: Batch,
    positive: Array,
    seen: Array,
    model: EncoderModel,
    num_items: int,
) -> tuple[Array, Array]:
    states = final_states(params, model, offsets, items, batch)

    def count(states: Array, positive: Array, seen: Array) -> tuple[Array, Array]:
        scores = score_table(table, model, states)
        return count_catalogue(scores, positive, seen, last_item=num_items)

    counts: tuple[Array, Array] = by_blocks(count, _SCORED_TOGETHER, states, positive, seen)
    return counts
