"""Ranking with the diffusion model, in blocks of users of one static shape."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from pdrec_jax.data.batches import blocks
from pdrec_jax.diffusion.denoiser import Params
from pdrec_jax.diffusion.inference import DiffusionModel, couple, score_all, score_items
from pdrec_jax.diffusion.sharded_vectors import place_batch, share_budget, shares
from pdrec_jax.diffusion.vectors import (
    InteractionVectors,
    SparseBatch,
    gather_batch,
    token_budget,
)
from pdrec_jax.evaluation.protocol import Candidates
from pdrec_jax.evaluation.ranking import (
    Ranks,
    catalogue_negatives,
    common_width,
    count_candidates,
    count_catalogue,
    distinct_rows,
    ranks_of_blocks,
)
from pdrec_jax.evaluation.sharded import count_catalogue_on
from pdrec_jax.sharding import DATA, axis, round_up, spread


def gather_blocks(
    vectors: InteractionVectors, users: np.ndarray, size: int, mesh: Mesh | None = None
) -> Iterator[tuple[np.ndarray, SparseBatch, int]]:
    """Yields (users [B], their sparse batch, how many of the users are not filling)."""
    size = round_up(size, axis(mesh, DATA))
    cut = blocks(users, size)
    if not cut:
        return
    gather = gatherer(vectors, cut, mesh)
    for number, block in enumerate(cut):
        real = min(size, len(users) - number * size)
        yield block, gather(block), real


def gatherer(
    vectors: InteractionVectors, cut: Sequence[np.ndarray], mesh: Mesh | None
) -> Callable[[np.ndarray], SparseBatch]:
    """Returns what collects the vectors of a block, in one shape for all the given blocks.

    Args:
      vectors: of all users.
      cut: blocks of one size, which the mesh's ``data`` divides.
      mesh: None for one device.
    """
    if mesh is None:
        tokens = token_budget(vectors, np.stack(cut))
        return lambda block: gather_batch(vectors, block, tokens)
    tokens = share_budget(vectors, shares(np.stack(cut), mesh))
    return lambda block: place_batch(mesh, vectors, shares(block, mesh), tokens)


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Ranks the held-out item of each user with the diffusion model's scores.

    Attributes:
      model: static description.
      vectors: the input of each user.
      users: [U'] the users that are ranked.
      candidates: [U, 1 + N] the relevant item and its negatives, all users.
      seen: (offsets, items) that full ranking leaves out.
      half_ties: see ``Ranks``.
      seed: for the options that draw noise.
      block: users at a time.
      num_items: target items, ids 1..num_items.
    """

    model: DiffusionModel
    vectors: InteractionVectors
    users: np.ndarray
    candidates: Candidates
    seen: tuple[np.ndarray, np.ndarray]
    half_ties: bool
    seed: int
    block: int
    num_items: int

    def sampled(self, params: Params) -> Ranks:
        """Ranks among the sampled candidates."""
        coupled, key = couple(self.model, params), jax.random.key(self.seed)
        counts, real = [], []
        for users, batch, some in self._blocks():
            items = self.candidates[users]
            counts.append(_count_sampled(params, coupled, batch, key, users, items, self.model))
            real.append(some)
        negatives = np.full(len(self.users), self.candidates.shape[1] - 1)
        return ranks_of_blocks(counts, real, negatives, half_ties=self.half_ties)

    def full(self, params: Params) -> Ranks:
        """Ranks among all target items that the user has not seen."""
        coupled, key = couple(self.model, params), jax.random.key(self.seed)
        counts, real, negatives = [], [], []
        num_items = self.num_items
        width = common_width(self.seen[0], self.users)
        for users, batch, some in self._blocks():
            positive = self.candidates[users, 0]
            seen = distinct_rows(*self.seen, users, width)
            given = params, coupled, batch, key, users, positive, seen
            counts.append(_count_full(*given, self.model, num_items))
            real.append(some)
            negatives.append(catalogue_negatives(seen, positive, num_items)[:some])
        others_of_all = np.concatenate([np.zeros(0, np.int64), *negatives])
        return ranks_of_blocks(counts, real, others_of_all, half_ties=self.half_ties)

    def _blocks(self) -> Iterator[tuple[np.ndarray, SparseBatch, int]]:
        return gather_blocks(self.vectors, self.users, self.block, self.model.mesh)


@functools.partial(jax.jit, static_argnums=6)
def _count_sampled(
    params: Params,
    coupled: tuple[Array, Array] | None,
    batch: SparseBatch,
    key: Array,
    users: Array,
    items: Array,
    model: DiffusionModel,
) -> tuple[Array, Array]:
    scores = score_items(model, params, coupled, batch, key, users, items)
    return spread(count_candidates(scores, items), model.mesh)


@functools.partial(jax.jit, static_argnums=(7, 8))
def _count_full(
    params: Params,
    coupled: tuple[Array, Array] | None,
    batch: SparseBatch,
    key: Array,
    users: Array,
    positive: Array,
    seen: Array,
    model: DiffusionModel,
    num_items: int,
) -> tuple[Array, Array]:
    scores = score_all(model, params, coupled, batch, key, users, 1 + num_items)
    if model.mesh is not None:
        return count_catalogue_on(model.mesh, scores, positive, seen, last_item=num_items)
    return count_catalogue(scores, positive, seen, last_item=num_items)
