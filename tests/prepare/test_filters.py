"""Filters against plain loops over the records."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrec_jax.errors import UserError
from pdrec_jax.prepare.filters import (
    Records,
    compact,
    core,
    guess_unit,
    in_order,
    in_range,
    share_of_other_units,
    to_seconds,
    without_duplicates,
)

ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3)), max_size=40)


def records(rows: list, timed: bool = True) -> Records:
    users, items, times = zip(*rows, strict=True) if rows else ((), (), ())
    return Records(
        np.array(users, np.int32),
        np.array(items, np.int32),
        np.array(times, np.float64) if timed else None,
    )


def rows_of(found: Records) -> list:
    times = [0] * len(found) if found.times is None else found.times.tolist()
    return list(zip(found.users.tolist(), found.items.tolist(), times, strict=True))


class TestOrder:
    @given(ROWS)
    def test_by_user_and_time_with_ties_as_they_were(self, rows) -> None:
        assert rows_of(in_order(records(rows))) == sorted(rows, key=lambda row: (row[0], row[2]))

    @given(ROWS)
    def test_without_times(self, rows) -> None:
        found = in_order(records(rows, timed=False))
        expected = [(u, i, 0) for u, i, _ in sorted(rows, key=lambda row: row[0])]
        assert rows_of(found) == expected

    def test_a_log_in_order_is_not_copied(self) -> None:
        for timed in (True, False):
            given = records([(0, 1, 1), (0, 0, 2), (3, 1, 0)], timed)
            assert in_order(given) is given


class TestDuplicates:
    @given(ROWS, st.sampled_from(["exact", "first", "last", "keep"]))
    def test_rules(self, rows, rule) -> None:
        given = in_order(records(rows))
        ordered = rows_of(given)
        if rule == "last":
            expected = _once(ordered[::-1], lambda row: row[:2])[::-1]
        elif rule == "keep":
            expected = ordered
        else:
            expected = _once(ordered, lambda row: row if rule == "exact" else row[:2])
        assert rows_of(without_duplicates(given, rule)) == expected

    def test_exact_without_times_is_a_record_said_twice_in_a_row(self) -> None:
        given = records([(0, 1, 0), (0, 1, 0), (0, 2, 0), (0, 1, 0), (1, 1, 0)], timed=False)
        found = rows_of(without_duplicates(given, "exact"))
        assert [row[:2] for row in found] == [(0, 1), (0, 2), (0, 1), (1, 1)]

    def test_an_unknown_rule(self) -> None:
        with pytest.raises(UserError, match="one of keep, exact, first, last is expected, not 'x'"):
            without_duplicates(records([(0, 0, 0)]), "x")


def _once(rows: list, key) -> list:
    seen = set()
    return [row for row in rows if not (key(row) in seen or seen.add(key(row)))]


class TestCore:
    @given(ROWS, st.integers(1, 4), st.integers(1, 4))
    def test_against_a_loop(self, rows, least_of_user, least_of_item) -> None:
        left = list(rows)
        while True:
            users = collections.Counter(row[0] for row in left)
            items = collections.Counter(row[1] for row in left)
            fewer = [
                row
                for row in left
                if users[row[0]] >= least_of_user and items[row[1]] >= least_of_item
            ]
            if len(fewer) == len(left):
                break
            left = fewer
        assert rows_of(core(records(rows), least_of_user, least_of_item)[0]) == left

    def test_nothing_to_do(self) -> None:
        given = records([(0, 0, 0)])
        assert core(given, 1, 1) == (given, 0)


def test_compact() -> None:
    codes, used = compact(np.array([5, 2, 5, 9], np.int32))
    assert (codes.tolist(), used.tolist()) == ([1, 0, 1, 2], [2, 5, 9])
    assert codes.dtype == np.int32


class TestTimes:
    @pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)])
    def test_units(self, unit, factor) -> None:
        for seconds in (1e9, 1.7e9, 4e9):
            times = np.array([0.0, seconds * factor, seconds * factor])
            assert guess_unit(times) == unit
            assert to_seconds(times, unit)[1] == pytest.approx(seconds)

    def test_small_numbers_are_seconds(self) -> None:
        assert guess_unit(np.array([1.0, 2.0])) == "s"
        assert guess_unit(np.array([0.0, 0.0, 1.6e12])) == "ms"
        assert guess_unit(np.zeros(3)) == "s"

    def test_mixed_units(self) -> None:
        assert share_of_other_units(np.array([1.6e9, 1.6e9, 1.6e12, 1.6e9]), "s") == 0.25
        assert share_of_other_units(np.array([1.6e12, 1.6e9, -1.0, 1.6e12]), "ms") == 0.5
        assert share_of_other_units(np.array([1.6e15, 1.6e12, 1.6e15, 0.0, 1.6e9]), "us") == 0.5
        assert share_of_other_units(np.array([1.6e18, 1.6e15]), "ns") == 0.5
        assert share_of_other_units(np.array([1.6e9, 1.7e9]), "ms") == 1
        assert share_of_other_units(np.array([1.6e12, 1.2e12]), "ms") == 0
        assert share_of_other_units(np.array([0.0, 5.0]), "s") == 0
        assert share_of_other_units(np.array([0.0, 1.6e12]), "ms") == 0
        assert share_of_other_units(np.zeros(2), "ms") == 0

    def test_range(self) -> None:
        years = np.array([-6.3e10, -6.2e10, 0.0, 2.5e11, 2.6e11])
        assert in_range(years).tolist() == [False, True, True, True, False]
