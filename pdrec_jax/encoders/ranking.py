"""Ranking with an encoder, in blocks of users of one static shape."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from pdrec_jax.data.batches import blocks, enough_rows, pack
from pdrec_jax.data.scratch import is_mapped
from pdrec_jax.encoders.model import (
    Batch,
    EncoderModel,
    Params,
    final_states,
    normalise,
    score_items,
    score_table,
)
from pdrec_jax.encoders.on_mesh import as_the_only, cut_out, event_budget
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
from pdrec_jax.evaluation.sharded import count_catalogue_on
from pdrec_jax.rows import by_blocks
from pdrec_jax.sharding import DATA, axis, round_up, spread


class _Block(NamedTuple):
    """Users that are ranked at once.

    Attributes:
      users: [B].
      batch: their layout; on a mesh of users that have been renamed.
      histories: offsets and items; on a mesh of these users alone.
      real: how many are not filling.
    """

    users: np.ndarray
    batch: Batch
    histories: tuple[Array | np.ndarray, Array | np.ndarray]
    real: int


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
      by_batch: whether each block is handed its own users' events, see ``on_mesh``.
    """

    model: EncoderModel
    offsets: np.ndarray
    items: np.ndarray
    users: np.ndarray
    candidates: Candidates
    half_ties: bool
    block: int
    num_items: int
    by_batch: bool = False

    @property
    def _blocks(self) -> Iterable[_Block]:
        """The packed users in blocks; kept between epochs, but those of a mapped log."""
        return self._packed() if is_mapped(self.items) else self._kept

    @functools.cached_property
    def _kept(self) -> list[_Block]:
        return list(self._packed())

    @functools.cached_property
    def _cut(self) -> tuple[list[np.ndarray], tuple[int, ...], int]:
        """Users in blocks of one size, filled up; rows and events that each block fits in."""
        size = round_up(self.block, axis(self.model.mesh, DATA))
        full = blocks(self.users, size)
        rows = enough_rows(self.offsets, full, self.model.max_length, self.model.layout)
        return full, rows, event_budget(self.offsets, np.stack(full)) if full else 0

    def _packed(self) -> Iterator[_Block]:
        length, layout = self.model.max_length, self.model.layout
        full, rows, budget = self._cut
        left = len(self.users)
        for users in full:
            real = min(left, len(users))
            left -= real
            cells = pack(self.offsets, users, length, rows, layout)
            batch = Batch(users.astype(np.int32), cells.event, cells.segment, cells.last)
            if not self.by_batch:
                yield _Block(users, jax.device_put(batch), self._histories, real)
            else:
                offsets, (items,) = cut_out(self.offsets, users, budget, self.items)
                batch = as_the_only(batch, self.offsets)
                yield _Block(users, batch, (offsets, items), real)

    @functools.cached_property
    def _histories(self) -> tuple[Array, Array]:
        return jax.device_put((self.offsets.astype(np.int32), self.items.astype(np.int32)))

    def sampled(self, params: Params) -> Ranks:
        """Ranks among the sampled candidates."""
        counts, real = [], []
        for block in self._blocks:
            candidates = self.candidates[block.users]
            given = params, *block.histories, block.batch, candidates
            counts.append(_count_sampled(*given, self.model))
            real.append(block.real)
        negatives = np.full(len(self.users), self.candidates.shape[1] - 1)
        return ranks_of_blocks(counts, real, negatives, half_ties=self.half_ties)

    def full(self, params: Params) -> Ranks:
        """Ranks among all items that are not in the user's input."""
        counts, real, negatives = [], [], []
        table = _normalise(params["item_embedding"])
        width = common_width(self.offsets, self.users)
        for block in self._blocks:
            positive = self.candidates[block.users, 0]
            seen = distinct_rows(self.offsets, self.items, block.users, width)
            given = params, table, *block.histories, block.batch, positive, seen
            counts.append(_count_full(*given, self.model, self.num_items))
            others = catalogue_negatives(seen, positive, self.num_items)
            negatives.append(others[: block.real])
            real.append(block.real)
        others_of_all = np.concatenate([np.zeros(0, np.int64), *negatives])
        return ranks_of_blocks(counts, real, others_of_all, half_ties=self.half_ties)


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
    scores = score_items(params, model, states, candidates)
    return spread(count_candidates(scores, candidates), model.mesh)


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
    if model.mesh is not None:
        scores = score_table(table, model, states)
        return count_catalogue_on(model.mesh, scores, positive, seen, last_item=num_items)

    def count(states: Array, positive: Array, seen: Array) -> tuple[Array, Array]:
        scores = score_table(table, model, states)
        return count_catalogue(scores, positive, seen, last_item=num_items)

    counts: tuple[Array, Array] = by_blocks(count, SCORED_TOGETHER, states, positive, seen)
    return counts
