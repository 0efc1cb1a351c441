"""Ranking with the diffusion model, in blocks, against scores of all users at once."""

import dataclasses

import jax
import numpy as np
import pytest

from pdrec_jax.diffusion.inference import couple, score_all
from pdrec_jax.diffusion.ranking import Evaluation, gather_blocks
from pdrec_jax.diffusion.vectors import InteractionVectors, gather_batch, token_budget

USERS, ITEMS = 11, 40
SLOTS = ITEMS + 4  # three slots of a source domain, which are never ranked


@pytest.fixture(scope="module")
def history() -> tuple[np.ndarray, np.ndarray]:
    """offsets and items of some users; the second one has none."""
    rng = np.random.default_rng(0)
    rows = [rng.choice(ITEMS, 0 if u == 1 else 2 + u % 5, replace=False) + 1 for u in range(USERS)]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return offsets, np.concatenate(rows).astype(np.int32)


@pytest.fixture(scope="module")
def vectors(history) -> InteractionVectors:
    offsets, items = history
    weights = np.random.default_rng(1).uniform(0.5, 1, len(items)).astype(np.float32)
    return InteractionVectors(offsets, items, weights, SLOTS)


@pytest.fixture(scope="module")
def candidates() -> np.ndarray:
    rng = np.random.default_rng(2)
    return np.stack([rng.choice(ITEMS, 10, replace=False) + 1 for _ in range(USERS)]).astype(
        np.int32
    )


class TestBlocks:
    def test_gathered(self, vectors):
        users = np.array([3, 1, 8])
        found = list(gather_blocks(vectors, users, 2))
        assert [(block.tolist(), real) for block, _, real in found] == [([3, 1], 2), ([8, 8], 1)]
        tokens = {batch.slots.shape for _, batch, _ in found}
        assert len(tokens) == 1
        assert list(gather_blocks(vectors, users[:0], 2)) == []


def test_evaluation(random_model, history, vectors, candidates):
    model, params = random_model(0, SLOTS)
    users = np.array([9, 1, 4, 10, 2])
    evaluation = Evaluation(
        model, vectors, users, candidates, history, True, seed=0, block=3, num_items=ITEMS
    )
    batch = gather_batch(vectors, users, token_budget(vectors, users))
    scores = np.asarray(
        jax.jit(score_all, static_argnums=0)(
            model, params, couple(model, params), batch, jax.random.key(0), users
        )
    )
    sampled, full = evaluation.sampled(params), evaluation.full(params)
    offsets, items = history
    for row, user in enumerate(users):
        own = scores[row, candidates[user, 0]]
        assert sampled.above[row] == (scores[row, candidates[user, 1:]] > own).sum()
        seen = set(items[offsets[user] : offsets[user + 1]].tolist()) - {int(candidates[user, 0])}
        others = [i for i in range(1, ITEMS + 1) if i not in seen and i != candidates[user, 0]]
        assert full.above[row] == (scores[row, others] > own).sum()
        assert full.negatives[row] == len(others)
    assert not sampled.ties.any()
    assert not full.ties.any()
    np.testing.assert_array_equal(sampled.negatives, np.full(5, 9))
    assert sampled.half_ties
    assert full.half_ties
    assert not dataclasses.replace(evaluation, half_ties=False).sampled(params).half_ties
    nobody = dataclasses.replace(evaluation, users=users[:0])
    assert nobody.sampled(params).metrics() == nobody.full(params).metrics() == {}
