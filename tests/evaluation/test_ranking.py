"""Counts of the candidates that beat the relevant item, against sorting and sets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.evaluation.ranking import (
    Ranks,
    common_width,
    count_candidates,
    count_catalogue,
    distinct_rows,
)


def different(scores):
    """Items that are none of them the same as another, [B, 1 + N]."""
    return jnp.broadcast_to(jnp.arange(scores.shape[1]), scores.shape)


@pytest.mark.parametrize("levels", [3, 1000])
def test_candidates(levels):
    scores = np.random.default_rng(0).integers(0, levels, (50, 20)).astype(np.float32)
    above, ties = jax.jit(count_candidates)(scores, different(scores))
    assert above.dtype == ties.dtype == jnp.int32
    np.testing.assert_array_equal(above, (scores[:, 1:] > scores[:, :1]).sum(axis=1))
    np.testing.assert_array_equal(ties, (scores[:, 1:] == scores[:, :1]).sum(axis=1))


def test_an_item_is_level_with_itself():
    scores = np.array(
        [[1.0, np.nextafter(np.float32(1), 2), 2.0, 1.0], [3.0, 1.0, 2.0, 4.0]], np.float32
    )
    items = np.array([[7, 7, 8, 9], [1, 2, 3, 4]], np.int32)
    above, ties = count_candidates(scores, items)
    assert (above.tolist(), ties.tolist()) == ([1, 1], [2, 0])


def test_goldens(goldens):
    golden = goldens("evaluate")
    scores = jnp.asarray(golden["predictions"])
    above, ties = count_candidates(scores, different(scores))
    np.testing.assert_array_equal(above, golden["rank"])
    assert not ties.any()


@pytest.mark.parametrize("levels", [3, 1000])
def test_catalogue(levels):
    """Repeated relevant items, seen relevant items, slot 0 and items past the catalogue."""
    rng = np.random.default_rng(1)
    size, last = 30, 25
    scores = rng.integers(0, levels, (40, size)).astype(np.float32)
    positive = rng.integers(1, last + 1, 40).astype(np.int32)
    seen = np.zeros((40, 9), np.int32)
    for row in seen:
        count = rng.integers(0, 9)
        row[rng.permutation(9)[:count]] = rng.choice(np.arange(1, last + 1), count, replace=False)
    seen[0, 0] = positive[0] if positive[0] not in seen[0] else seen[0, 0]
    count = jax.jit(count_catalogue, static_argnames="last_item")
    above, ties = count(scores, positive, seen, last_item=last)
    for row in range(40):
        out = {0, *seen[row].tolist(), int(positive[row])}
        others = scores[row, [i for i in range(1, last + 1) if i not in out]]
        own = scores[row, positive[row]]
        assert above[row] == (others > own).sum()
        assert ties[row] == (others == own).sum()


def test_ties_by_protocol():
    above, ties, negatives = np.array([0, 4]), np.array([3, 0]), np.array([9, 9])
    np.testing.assert_array_equal(Ranks(above, ties, negatives, True).ranks, [1.5, 4])
    np.testing.assert_array_equal(Ranks(above, ties, negatives, False).ranks, [0, 4])


def test_distinct_rows():
    offsets, items = np.array([0, 3, 3, 7]), np.array([5, 2, 5, 9, 9, 1, 3], np.int32)
    table = distinct_rows(offsets, items, np.array([2, 0, 1, 0]))
    assert table.dtype == np.int32
    np.testing.assert_array_equal(table, [[1, 3, 9], [2, 5, 0], [0, 0, 0], [2, 5, 0]])
    assert distinct_rows(offsets, items, np.array([1])).shape == (1, 1)
    wide = distinct_rows(offsets, items, np.array([2, 0]), common_width(offsets, np.array([0, 2])))
    np.testing.assert_array_equal(wide, np.pad([[1, 3, 9], [2, 5, 0]], ((0, 0), (0, 13))))


def test_distinct_rows_like_sets():
    rng = np.random.default_rng(3)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 9, 50))])
    items = rng.integers(1, 2**31 - 1, offsets[-1]).astype(np.int32)
    items[rng.random(len(items)) < 0.7] = 7
    users = rng.integers(0, 50, 80)
    for row, user in zip(distinct_rows(offsets, items, users), users, strict=True):
        kept = sorted(set(items[offsets[user] : offsets[user + 1]].tolist()))
        np.testing.assert_array_equal(row, kept + [0] * (len(row) - len(kept)))


def test_seen_items_beyond_the_catalogue_do_not_count():
    scores = jnp.asarray([[0.0, 1.0, 5.0, 3.0, 9.0, 9.0]])
    positive, seen = jnp.asarray([3]), jnp.asarray([[2, 4, 5, 0]])
    above, ties = count_catalogue(scores, positive, seen, last_item=3)
    assert (above.tolist(), ties.tolist()) == ([0], [0])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_ranks_nowhere(wrong):
    """It is above nothing and below nothing, so that a diverged model would come out as perfect."""
    scores = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32)
    scores[1, 4] = wrong
    positive, none = jnp.array([4, 4, 2]), jnp.zeros((3, 1), jnp.int32)
    sampled = count_candidates(jnp.asarray(scores), different(scores))
    full = count_catalogue(jnp.asarray(scores), positive, none, last_item=8)
    for above, ties in (sampled, full):
        ranks = Ranks(np.asarray(above), np.asarray(ties), np.full(3, 8), half_ties=True)
        assert np.asarray(ties).tolist()[1] == -1
        assert (np.asarray(ties)[[0, 2]] >= 0).all()
        assert not ranks.finite
        assert all(np.isnan(value) for value in ranks.metrics().values())
