"""Ranks of an encoder against scores of one user at a time on left-padded rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.data.batches import extend_train
from pdrec_jax.encoders.ranking import Evaluation

LENGTH = 12
MARGIN = 1e-5  # of scores between -5 and 5


@pytest.fixture
def evaluation(small_model, world) -> tuple[Evaluation, dict]:
    model, params = small_model(200, encoder__heads=2, encoder__blocks=1)
    offsets, items, _ = extend_train(world.split)
    users = np.flatnonzero(world.split.train.lengths >= 2)
    assert (np.diff(offsets)[users] > LENGTH).sum() > 5
    scorer = Evaluation(
        model=model,
        offsets=offsets,
        items=items,
        users=users,
        candidates=world.candidates,
        half_ties=True,
        block=16,
        num_items=200,
    )
    assert len(users) % 16
    return scorer, params


@pytest.fixture
def scores(evaluation, padded_sasrec) -> np.ndarray:
    """[U, I + 1] scores of each ranked user, one by one."""
    scorer, params = evaluation
    twin = padded_sasrec(heads=2, attend_padding=True, temperature=5.0)

    @jax.jit
    def score(row):
        state = twin.states(params, row)[:, -1:]
        return twin.logits(params, state, jnp.arange(201)[None])[0]

    table = []
    for user in scorer.users:
        own = scorer.items[scorer.offsets[user] : scorer.offsets[user + 1]][-LENGTH:]
        row = np.zeros((1, LENGTH), np.int32)
        row[0, LENGTH - len(own) :] = own
        table.append(np.asarray(score(row)))
    return np.stack(table)


def assert_counts(found, scores, positives, negatives):
    """Items whose score is within the margin of the positive's may count or not."""
    for line, positive, others, above, ties in zip(
        scores, positives, negatives, found.above, found.ties, strict=True
    ):
        gap = line[others] - line[positive]
        assert (gap > MARGIN).sum() <= above <= (gap > -MARGIN).sum()
        assert ties <= (np.abs(gap) <= MARGIN).sum()


def test_sampled(evaluation, scores, world):
    scorer, params = evaluation
    found = scorer.sampled(params)
    table = world.candidates[scorer.users]
    assert_counts(found, scores, table[:, 0], table[:, 1:])
    assert (found.negatives == 99).all()
    assert np.ptp(found.above) > 50


def test_full(evaluation, scores, world):
    scorer, params = evaluation
    found = scorer.full(params)
    positives = world.candidates[scorer.users, 0]
    others = []
    for user, positive in zip(scorer.users, positives, strict=True):
        own = scorer.items[scorer.offsets[user] : scorer.offsets[user + 1]]
        others.append(np.setdiff1d(np.arange(1, 201), [*own, positive]))
    assert_counts(found, scores, positives, others)
    assert found.negatives.tolist() == [len(rest) for rest in others]


def test_neither_order_nor_block_size_matters(evaluation):
    scorer, params = evaluation
    order = np.random.default_rng(0).permutation(len(scorer.users))
    other = dataclasses.replace(scorer, users=scorer.users[order], block=24, half_ties=False)
    for kind in ("sampled", "full"):
        wanted, found = (getattr(one, kind)(params) for one in (scorer, other))
        np.testing.assert_array_equal(found.above, wanted.above[order])
        np.testing.assert_array_equal(found.ties, wanted.ties[order])
        np.testing.assert_array_equal(found.negatives, wanted.negatives[order])
        np.testing.assert_array_equal(found.ranks, wanted.above[order])


def test_ties_count_half_or_nothing(evaluation):
    scorer, params = evaluation
    # All items alike: every negative ties.
    same = params | {"item_embedding": jnp.ones_like(params["item_embedding"])}
    for kind in ("sampled", "full"):
        found = getattr(scorer, kind)(same)
        assert (found.above == 0).all()
        np.testing.assert_array_equal(found.ties, found.negatives)
        np.testing.assert_array_equal(found.ranks, found.negatives / 2)
        strict = getattr(dataclasses.replace(scorer, half_ties=False), kind)(same)
        assert (strict.ranks == 0).all()


def test_nobody(evaluation):
    scorer, params = evaluation
    nobody = dataclasses.replace(scorer, users=scorer.users[:0])
    assert nobody.sampled(params).metrics() == {}
    assert nobody.full(params).metrics() == {}
