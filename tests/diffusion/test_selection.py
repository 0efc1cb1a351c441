"""Selection by rank against stable sorts, with ties, signed zeros and extremes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.diffusion.selection import (
    MASKED,
    draw_subset,
    nth_true,
    pack_bits,
    rank_threshold,
    sortable,
    top,
)
from pdrec_jax.rows import by_rows

jit_sortable = jax.jit(sortable)
jit_draw_subset = jax.jit(
    lambda key, sizes, count, most=1_000_000: draw_subset(
        jax.random.split(key, sizes.shape[0]), sizes, count, most
    ),
    static_argnums=(2, 3),
)


@functools.partial(jax.jit, static_argnums=1)
def jit_top(scores, count):
    return by_rows(lambda row: top(row, count), scores)


@jax.jit
def jit_nth_true(mask, ordinals):
    return nth_true(by_rows(pack_bits, mask), ordinals)


@pytest.fixture(autouse=True)
def quick_compilation() -> None:
    """None: an optimising compiler may drop what sets -0.0 right."""


@jax.jit
def ahead_of_rank(keys, rank):
    columns = jnp.arange(keys.shape[1], dtype=jnp.int32)

    def ahead(row, wanted):
        total = jnp.sum(row != MASKED, dtype=jnp.int32)
        return rank_threshold(row, wanted, total).before(row, columns)

    return by_rows(ahead, keys, rank)


ROWS, COLUMNS = 6, 200
SPECIAL = np.float32(
    [0, -0.0, 1, -1, np.inf, -np.inf, 3.4e38, -3.4e38, 1.2e-38, -1.2e-38, 1 + 2**-23, 1 - 2**-24]
)


def scores_of(kind: str, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    rng = np.random.default_rng(0)
    if kind == "normal":
        scores = rng.normal(size=(rows, columns))
    elif kind == "rounded":
        scores = rng.normal(size=(rows, columns)).round(1)
    elif kind == "ties":
        scores = rng.integers(-2, 3, (rows, columns)) / 4
    elif kind == "zeros":
        scores = rng.choice([0.0, -0.0], (rows, columns))
    elif kind == "special":
        scores = rng.choice(SPECIAL, (rows, columns))
    else:  # neighbours: distinct in the last bit alone
        scores = np.nextafter(np.float32(1), 2) * (1 + rng.permutation(columns) * 2.0**-23)
        scores = np.tile(scores, (rows, 1))
    return scores.astype(np.float32)


KINDS = ("normal", "rounded", "ties", "zeros", "special", "neighbours")


def order_of(scores: np.ndarray) -> np.ndarray:
    """Columns of each row, best first, equal scores by index."""
    return np.argsort(-scores, axis=1, kind="stable")


class TestSortable:
    def test_orders_like_the_scores(self):
        values = np.concatenate([SPECIAL, scores_of("normal").ravel()[:60]])
        keys = np.asarray(jit_sortable(values[None, :]))[0]
        np.testing.assert_array_equal(
            keys[:, None] < keys[None, :], values[:, None] < values[None, :]
        )
        assert keys.dtype == np.int32
        assert keys.min() > MASKED


class TestRankThreshold:
    @pytest.mark.parametrize("kind", KINDS)
    def test_like_a_stable_sort(self, kind):
        scores = scores_of(kind)
        keys, order = jit_sortable(scores), order_of(scores)
        place = np.argsort(order, axis=1)
        ranks = np.random.default_rng(1).integers(0, COLUMNS, (8, ROWS)).astype(np.int32)
        ranks[0], ranks[1] = 0, COLUMNS - 1
        for rank in ranks:
            np.testing.assert_array_equal(ahead_of_rank(keys, rank), place < rank[:, None])

    @pytest.mark.parametrize("kind", KINDS)
    def test_masked_keys_take_no_part(self, kind):
        scores = scores_of(kind)
        masked = np.random.default_rng(2).random(scores.shape) < 0.4
        keys = jnp.where(masked, MASKED, jit_sortable(scores))
        order = [[c for c in row if not masked[r, c]] for r, row in enumerate(order_of(scores))]
        for share in (0, 0.5, 0.999):
            rank = np.array([int(share * len(row)) for row in order], np.int32)
            expected = np.zeros_like(masked)
            for r, row in enumerate(order):
                expected[r, row[: rank[r]]] = True
            np.testing.assert_array_equal(ahead_of_rank(keys, rank), expected)

    @pytest.mark.parametrize("careless", [False, True])
    def test_many_short_rows_with_ties(self, careless):
        """A compiler that computes a guess twice, with other rounding, cuts some of them wrong."""
        rng = np.random.default_rng(0)
        rows, columns = 1500, 10
        scores = rng.normal(size=(rows, columns)).astype(np.float32)
        scores[::3] = np.round(scores[::3])
        scores[1::3] = np.where(rng.random((len(scores[1::3]), columns)) < 0.5, 0, scores[1::3])
        keys = np.asarray(sortable(jnp.asarray(scores))).copy()
        keys[rng.random(keys.shape) < 0.3] = MASKED
        keys[:, 0] = 5
        total = (keys != MASKED).sum(axis=1)
        rank = rng.integers(0, total).astype(np.int32)

        def found(given):
            row, wanted, size = given
            places = jnp.arange(columns, dtype=jnp.int32)
            before = rank_threshold(row, wanted, size).before(row, places)
            return jnp.sum(before & (row != MASKED), dtype=jnp.int32)

        given = keys, rank, total.astype(np.int32)
        options = {"xla_backend_optimization_level": 0} if careless else {}
        count = jax.jit(lambda *given: jax.lax.map(found, given), compiler_options=options)
        np.testing.assert_array_equal(count(*given), rank)


class TestSampledThreshold:
    """Rows that are long enough for a sample to give the first interval."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("order", ["shuffled", "sorted"])
    def test_like_a_stable_sort(self, kind, order):
        scores = scores_of(kind, rows=4, columns=5000)
        if order == "sorted":
            scores = np.sort(scores, axis=1)
        place = np.argsort(order_of(scores), axis=1)
        for share in (0, 0.0003, 0.02, 0.5, 0.9, 0.9998):
            rank = np.full(4, int(share * 5000), np.int32)
            np.testing.assert_array_equal(
                ahead_of_rank(jit_sortable(scores), rank), place < rank[:, None]
            )

    def test_a_sample_that_misleads(self):
        """Every fifth entry, all that the sample sees, is larger than all the others."""
        scores = scores_of("normal", rows=4, columns=5000)
        scores[:, ::4] += 100
        place = np.argsort(order_of(scores), axis=1)
        for wanted in (10, 1249, 1250, 1251, 3000, 4999):
            rank = np.full(4, wanted, np.int32)
            np.testing.assert_array_equal(
                ahead_of_rank(jit_sortable(scores), rank), place < rank[:, None]
            )


class TestTop:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("count", [1, 5, COLUMNS])
    def test_like_a_stable_sort(self, kind, count):
        scores = scores_of(kind, columns=COLUMNS)
        found = jit_top(scores, count)
        assert found.dtype == jnp.int32
        np.testing.assert_array_equal(found, order_of(scores)[:, :count])

    @pytest.mark.parametrize("kind", KINDS)
    def test_many_groups(self, kind):
        scores = scores_of(kind, rows=3, columns=1001)
        scores[0] = np.sort(scores[0])  # the best are in the last group, which is short
        np.testing.assert_array_equal(jit_top(scores, 15), order_of(scores)[:, :15])


class TestNthTrue:
    @pytest.mark.parametrize("width", [1, 64, 200])
    def test_every_ordinal(self, width):
        rng = np.random.default_rng(width)
        mask = rng.random((5, width)) < np.linspace(0.1, 1, 5)[:, None]
        mask[:, rng.integers(width)] = True
        places = [np.flatnonzero(row) for row in mask]
        ordinals = np.stack([np.arange(width) % len(row) for row in places]).astype(np.int32)
        expected = np.stack([row[o] for row, o in zip(places, ordinals, strict=True)])
        found = jit_nth_true(mask, ordinals)
        assert found.dtype == jnp.int32
        np.testing.assert_array_equal(found, expected)


class TestDrawSubset:
    SIZES = np.array([1, 2, 5, 11] + [12, 13, 40, 1000] * 20, np.int32)

    def test_every_subset_is_equally_likely(self):
        """Chi-square with 9 degrees of freedom: 40 is exceeded once in 130,000 seeds."""
        rows = 50_000
        drawn = np.sort(jit_draw_subset(jax.random.key(0), jnp.full(rows, 5), 3), axis=1)
        subsets, counts = np.unique(drawn, axis=0, return_counts=True)
        assert [tuple(s) for s in subsets] == list(itertools.combinations(range(5), 3))
        assert np.sum((counts - rows / 10) ** 2 / (rows / 10)) < 40

    def test_numbers_of_a_large_catalogue_are_equally_likely(self):
        """A float has too few bits for this: a third of the numbers would come 10 % less often."""
        size, rows = 3 * 2**18, 50_000
        drawn = np.asarray(jit_draw_subset(jax.random.key(1), jnp.full(rows, size), 3))
        assert drawn.max() < size
        for modulus in (2, 3, 7):
            counts = np.bincount((drawn % modulus).ravel(), minlength=modulus)
            expected = drawn.size / modulus
            assert np.sum((counts - expected) ** 2 / expected) < 40

    def test_distinct_within_the_sizes(self):
        drawn = np.asarray(jit_draw_subset(jax.random.key(2), sizes := self.SIZES, 12))
        assert drawn.dtype == np.int32
        assert drawn.min() == 0
        assert (drawn < sizes[:, None]).all()
        assert all(len(set(row)) == 12 for row in drawn[sizes >= 12])
        assert (np.sort(drawn[sizes == 12], axis=1) == np.arange(12)).all()

    def test_small_sizes_are_taken_over_and_over(self):
        drawn = np.asarray(jit_draw_subset(jax.random.key(3), self.SIZES, 12))
        for row in range(4):
            size = self.SIZES[row]
            np.testing.assert_array_equal(drawn[row], (drawn[row][0] + np.arange(12)) % size)

    def test_more_than_any_size_takes_no_draws(self):
        """What a draw costs grows with the square of its count."""
        drawn = np.asarray(jit_draw_subset(jax.random.key(5), self.SIZES[:4], 10**6, 11))
        for row, size in zip(drawn, self.SIZES, strict=False):
            np.testing.assert_array_equal(row, (row[0] + np.arange(10**6)) % size)

    def test_no_number_of_a_small_size_is_preferred(self):
        """Five numbers fill twelve places unevenly, but not the same ones in every row."""
        rows = 50_000
        drawn = np.asarray(jit_draw_subset(jax.random.key(4), jnp.full(rows, 5), 12))
        first = np.bincount(drawn[:, 0], minlength=5)
        assert np.sum((first - rows / 5) ** 2 / (rows / 5)) < 30  # of 4 degrees of freedom
        every = np.bincount(drawn.ravel(), minlength=5)
        np.testing.assert_allclose(every / every.mean(), 1, atol=0.01)
