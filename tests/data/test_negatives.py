"""Uniform negatives: never a training item, and exactly uniform on the rest."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrec_jax.data import negatives
from pdrec_jax.data.negatives import complement_table, draw_outside
from pdrec_jax.errors import UserError

DRAWS = 4000


def offsets_of(rows) -> np.ndarray:
    return np.cumsum([0, *map(len, rows)])


def table_of(rows, num_items):
    return complement_table(offsets_of(rows), np.concatenate(rows).astype(np.int32), num_items)


def chi_square_bound(degrees: int) -> float:
    """Exceeded with a probability of about 1e-6 (Wilson and Hilferty, 1931)."""
    return degrees * (1 - 2 / (9 * degrees) + 4.75 * np.sqrt(2 / (9 * degrees))) ** 3


# One shape for all examples, so that drawing is compiled once.
@jax.jit
def draw(key, table, users):
    return draw_outside(key, table, users)


def test_the_search_in_more_than_half_of_what_int32_counts() -> None:
    """Two billion keys are too many for a test, so the step of the search alone."""
    low, high = jnp.array([0, 2**30, 2**31 - 2]), jnp.array([5, 2**30 + 8, 2**31 - 1])
    assert negatives._middle(low, high).tolist() == [2, 2**30 + 4, 2**31 - 2]


def test_items_of_another_domain_take_no_part():
    """Those above I are neither drawn nor counted."""
    rows = [[13, 1, 14], [20, 20, 20], [2, 13, 4, 19, 2]]
    own = [[item for item in row if item <= 12] for row in rows]
    for one, other in zip(
        dataclasses.astuple(table_of(rows, 12)), dataclasses.astuple(table_of(own, 12)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


class TestDrawOutside:
    NUM_ITEMS = 12
    ROWS = (
        [1],
        [12],
        [1, 2, 3],
        [10, 11, 12],
        [5, 5, 5, 2, 2],
        [2, 4, 6, 8, 10, 12],
        [1, 3, 5, 7, 9, 11],
        [item for item in range(1, 13) if item != 1],
        [item for item in range(1, 13) if item != 7],
        [item for item in range(1, 13) if item != 12],
        [],
        [9, 1, 5],
    )

    def test_never_a_training_item_and_uniform_on_the_rest(self):
        users = np.repeat(np.arange(len(self.ROWS)), DRAWS).astype(np.int32)
        drawn = np.asarray(draw(jax.random.key(7), table_of(self.ROWS, self.NUM_ITEMS), users))
        assert drawn.dtype == np.int32
        assert drawn.min() >= 1
        assert drawn.max() <= self.NUM_ITEMS
        counts = np.zeros((len(self.ROWS), self.NUM_ITEMS + 1), int)
        np.add.at(counts, (users, drawn), 1)
        for user, row in enumerate(self.ROWS):
            assert (counts[user, row] == 0).all()
            rest = sorted(set(range(1, self.NUM_ITEMS + 1)) - set(row))
            expected = DRAWS / len(rest)
            statistic = ((counts[user, rest] - expected) ** 2 / expected).sum()
            assert statistic < chi_square_bound(max(len(rest) - 1, 1)), user

    def test_every_rank_hits_the_item_of_that_rank(self, monkeypatch):
        # Exactly uniform if the ranks are: each rank stands for one item of the complement.
        table = table_of(self.ROWS, self.NUM_ITEMS)
        for user, row in enumerate(self.ROWS):
            rest = sorted(set(range(1, self.NUM_ITEMS + 1)) - set(row))
            ranks = jnp.minimum(jnp.arange(12, dtype=jnp.int32), len(rest) - 1)
            monkeypatch.setattr(jax.random, "randint", lambda *a, ranks=ranks, **k: ranks)
            drawn = draw_outside(jax.random.key(0), table, jnp.full(12, user, jnp.int32))
            assert drawn[: len(rest)].tolist() == rest

    def test_draws_follow_the_key(self):
        table, users = table_of(self.ROWS, self.NUM_ITEMS), jnp.zeros((5, 10), jnp.int32)
        one, again, other = (draw(jax.random.key(seed), table, users) for seed in (1, 1, 2))
        assert one.shape == users.shape
        np.testing.assert_array_equal(one, again)
        assert (one != other).any()


@given(rows=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=30), min_size=1, max_size=6))
@settings(deadline=None, max_examples=50)
def test_table(rows):
    table = table_of(rows, 40)
    offsets, keys = np.asarray(table.offsets), np.asarray(table.keys)
    most = max(len(set(row)) for row in rows)
    assert 2**table.steps > most
    for user, row in enumerate(rows):
        own = keys[offsets[user] : offsets[user + 1]]
        distinct = sorted(set(row))
        assert own.tolist() == [item - place - 1 for place, item in enumerate(distinct)]
        assert (np.diff(own) >= 0).all()


def test_a_large_catalogue_does_not_overflow():
    users, items = 2000, 2**20
    rows = [[1 + user, items - user] for user in range(users)]
    table = table_of(rows, items)
    drawn = np.asarray(draw(jax.random.key(0), table, jnp.arange(users, dtype=jnp.int32)))
    assert drawn.min() >= 1
    assert drawn.max() <= items
    assert (drawn[:, None] != np.array(rows)).all()


def test_a_user_with_every_item_is_refused():
    with pytest.raises(
        UserError, match=r"user 1 \(counted from 0\) has interacted with all 3 items"
    ):
        table_of([[1], [3, 1, 2, 2]], 3)
    given = np.array([0, 1, 4]), np.array([1, 3, 1, 2], np.int32), 3
    with pytest.raises(UserError, match=r"^negatives: user bob has interacted with all 3 items, "):
        complement_table(*given, user_ids=["ann", "bob"])


def test_on_the_host_events_are_counted_in_64_bits() -> None:
    offsets, items = np.array([0, 2]), np.array([1, 3], np.int32)
    assert complement_table(offsets, items, 5, on_host=True).offsets.dtype == np.int64
    assert complement_table(offsets, items, 5).offsets.dtype == np.int32
