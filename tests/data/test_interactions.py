"""The CSR log: invariants, grouping of columns, selection, merging of domains."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrec_jax.data.domains import merge_domains
from pdrec_jax.data.interactions import Interactions, from_events
from pdrec_jax.errors import UserError

# Few users, items and days: ties and repeats in nearly every example.
EVENTS = st.lists(
    st.tuples(st.integers(-2, 4), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=30
)


def log_of(events, text=False) -> Interactions:
    users, items, times = zip(*events, strict=True)
    if text:
        users, items = [f"u{user}" for user in users], [f"i{item}" for item in items]
    return from_events(users, items, np.array(times, float))


def as_lists(log: Interactions) -> dict:
    """Events of each user in external ids, `(item, time, domain)`."""
    item_ids = log.item_ids[log.items].tolist()
    times = [None] * log.num_events if log.times is None else log.times.tolist()
    domains = [0] * log.num_events if log.domains is None else log.domains.tolist()
    rows = list(zip(item_ids, times, domains, strict=True))
    bounds = itertools.pairwise(log.offsets.tolist())
    pairs = zip(log.user_ids.tolist(), bounds, strict=True)
    return {user: rows[begin:end] for user, (begin, end) in pairs}


def grouped(events, domain=0) -> dict:
    """What `from_events` must give, by plain Python: its sort is stable."""
    found: dict = {}
    for user, item, time in events:
        found.setdefault(user, []).append((item, float(time), domain))
    return {user: sorted(found[user], key=lambda row: row[1]) for user in sorted(found)}


@pytest.fixture
def small() -> Interactions:
    return Interactions(
        offsets=np.array([0, 2, 2, 5]),
        items=np.array([1, 3, 2, 2, 4]),
        times=np.array([1.0, 2.0, 1.0, 1.0, 5.0]),
        domains=np.array([0, 1, 0, 0, 1]),
        user_ids=np.array([7, 8, 9]),
        item_ids=np.array(["", "a", "b", "c", "d"]),
        num_target_items=2,
    )


class TestInteractions:
    def test_sizes_and_dtypes(self, small):
        assert (small.num_users, small.num_items, small.num_events) == (3, 4, 5)
        assert small.lengths.tolist() == [2, 0, 3]
        assert small.event_users.tolist() == [0, 0, 2, 2, 2]
        assert small.offsets.dtype == np.int64
        assert small.items.dtype == np.int32
        assert small.times.dtype == np.float64
        assert small.domains.dtype == np.int8

    @pytest.mark.parametrize(
        "name", ["offsets", "items", "times", "domains", "user_ids", "item_ids"]
    )
    def test_arrays_are_read_only_and_the_callers_stay_his(self, small, name):
        mine = np.array(getattr(small, name))
        log = dataclasses.replace(small, **{name: mine})
        assert mine.flags.writeable
        assert not np.shares_memory(mine, getattr(log, name))
        with pytest.raises(ValueError, match="read-only"):
            getattr(log, name)[0] = mine[0]

    def test_a_read_only_view_of_a_writeable_array_is_copied(self, small):
        mine = np.array(small.items)
        view = mine[:]
        view.flags.writeable = False
        assert not np.shares_memory(dataclasses.replace(small, items=view).items, mine)

    def test_read_only_arrays_are_shared(self, small):
        assert dataclasses.replace(small, num_target_items=2).items is small.items

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"offsets": [0, 2, 5]}, "offsets: one more than users"),
            ({"offsets": [0, 2, 2, 4]}, "offsets: a non-decreasing row from 0"),
            ({"offsets": [1, 2, 2, 5]}, "offsets: a non-decreasing row from 0"),
            ({"offsets": [0, 3, 2, 5]}, "offsets: a non-decreasing row from 0"),
            ({"items": [0, 3, 2, 2, 4]}, "items: ids 1..4 are expected, found 0..4"),
            ({"items": [1, 3, 2, 2, 5]}, "items: ids 1..4 are expected, found 1..5"),
            ({"items": [1.5, 3, 2, 2, 4]}, "items: values of type int32"),
            ({"items": [2**32 + 1, 3, 2, 2, 4]}, "items: values of type int32"),
            ({"items": ["1", "3", "2", "2", "4"]}, "items: values of type int32"),
            ({"items": [[1, 3, 2, 2, 4]]}, "items: one dimension"),
            ({"times": [1.0, 2.0]}, "times: one value an event"),
            ({"times": [2.0, 1.0, 1.0, 1.0, 5.0]}, "times: non-decreasing times"),
            ({"times": [1.0, 2.0, 1.0, np.nan, 5.0]}, "times: finite numbers"),
            ({"times": [1.0, 2.0, 1.0, 1.0, np.inf]}, "times: finite numbers"),
            ({"domains": [0, 1, 0, 0]}, "domains: one value an event"),
            ({"domains": [0, 0, 0, 0, 1]}, "domains: 0 up to item num_target_items"),
            ({"domains": None}, "num_target_items: without domains"),
            ({"num_target_items": 5}, "num_target_items: 0..4 is expected, not 5"),
            ({"item_ids": []}, "item_ids: entry 0"),
        ],
    )
    def test_a_broken_invariant_is_an_error(self, small, changes, message):
        with pytest.raises(UserError, match=f"^{re.escape(message)}") as caught:
            dataclasses.replace(small, **changes)
        assert "\n" not in str(caught.value)

    def test_times_may_fall_from_one_user_to_the_next(self, small):
        assert small.times[1] > small.times[2]

    def test_a_log_may_be_empty(self):
        log = from_events([], [], [])
        assert (log.num_users, log.num_items, log.num_events) == (0, 0, 0)
        assert log.take(np.zeros(0, bool)).select([]).num_users == 0


class TestSelect:
    def test_by_mask(self, small):
        log = small.select([False, True, True])
        assert log.user_ids.tolist() == [8, 9]
        assert log.items.tolist() == [2, 2, 4]
        assert log.domains.tolist() == [0, 0, 1]
        assert log.num_items == small.num_items

    def test_by_indices_in_their_order(self, small):
        log = small.select([2, 0])
        assert log.user_ids.tolist() == [9, 7]
        assert log.items.tolist() == [2, 2, 4, 1, 3]
        assert log.times.tolist() == [1, 1, 5, 1, 2]

    @pytest.mark.parametrize("users", [[True], [3], [-1], [0.0], [[0]], ["7"]])
    def test_what_is_no_selection_is_an_error(self, small, users):
        with pytest.raises(UserError, match=r"^select: "):
            small.select(users)

    @given(EVENTS, st.data())
    def test_keeps_histories(self, events, data):
        log = log_of(events)
        chosen = data.draw(st.lists(st.integers(0, log.num_users - 1), unique=True))
        expected = as_lists(log)
        ids = log.user_ids[chosen].tolist()
        assert as_lists(log.select(chosen)) == {user: expected[user] for user in ids}


class TestTake:
    def test_keeps_users_without_events(self, small):
        log = small.take([True, False, False, False, True])
        assert log.offsets.tolist() == [0, 1, 1, 2]
        assert log.items.tolist() == [1, 4]
        assert log.user_ids.tolist() == [7, 8, 9]

    @pytest.mark.parametrize("mask", [[True], [0, 1, 2, 3, 4], [1, 0, 1, 0, 1]])
    def test_what_is_no_mask_is_an_error(self, small, mask):
        with pytest.raises(UserError, match=r"^take: one bool an event"):
            small.take(mask)

    @given(EVENTS, st.data())
    def test_keeps_order(self, events, data):
        log = log_of(events)
        mask = data.draw(st.lists(st.booleans(), min_size=len(events), max_size=len(events)))
        rows = list(itertools.chain(*as_lists(log).values()))
        taken = as_lists(log.take(mask))
        assert list(taken) == log.user_ids.tolist()
        assert list(itertools.chain(*taken.values())) == list(itertools.compress(rows, mask))


class TestFromEvents:
    @given(EVENTS)
    def test_groups_and_sorts_stably(self, events):
        assert as_lists(log_of(events)) == grouped(events)

    @given(EVENTS)
    def test_text_ids(self, events):
        expected = {
            f"u{user}": [(f"i{item}", time, domain) for item, time, domain in rows]
            for user, rows in grouped(events).items()
        }
        assert as_lists(log_of(events, text=True)) == expected

    @given(EVENTS)
    def test_ids_are_dense_and_sorted(self, events):
        log = log_of(events)
        assert np.unique(log.items).tolist() == list(range(1, log.num_items + 1))
        assert log.user_ids.tolist() == sorted({user for user, _, _ in events})
        assert log.item_ids[1:].tolist() == sorted({item for _, item, _ in events})
        assert log.domains is None
        assert log.num_target_items == log.num_items

    @given(EVENTS)
    def test_without_times_the_order_of_the_log_is_kept(self, events):
        users, items, _ = zip(*events, strict=True)
        log = from_events(users, items)
        expected = {user: [] for user in sorted(set(users))}
        for user, item in zip(users, items, strict=True):
            expected[user].append((item, None, 0))
        assert log.times is None
        assert as_lists(log) == expected

    def test_integers_sort_as_numbers_and_text_by_code_point(self):
        assert from_events([10, 9], [1, 1]).user_ids.tolist() == [9, 10]
        assert from_events(["10", "9"], [1, 1]).user_ids.tolist() == ["10", "9"]

    @given(EVENTS, st.randoms())
    def test_lists_of_ids_do_not_change_the_log(self, events, random):
        users, items, times = zip(*events, strict=True)
        user_ids, item_ids = list(range(-2, 5)), list(range(6))
        random.shuffle(user_ids)
        random.shuffle(item_ids)
        log = from_events(
            [user_ids.index(user) for user in users],
            [item_ids.index(item) for item in items],
            np.array(times, float),
            user_ids=user_ids,
            item_ids=item_ids,
        )
        assert log.num_items == 6
        assert {user: rows for user, rows in as_lists(log).items() if rows} == grouped(events)

    def test_repeated_ids_of_a_list_are_one(self):
        log = from_events([0, 1, 2], [0, 0, 1], user_ids=["b", "a", "b"], item_ids=["x", "x"])
        assert as_lists(log) == {"a": [("x", None, 0)], "b": [("x", None, 0), ("x", None, 0)]}

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            (([1, 2], [1]), "users, items: columns of one length"),
            (([1, 2], [1, 1], [0.0]), "times: one value an event"),
            (([1, 2], [1, 1], [0.0, np.nan]), "times: event 2 has nan"),
            (([1, 2], [1, 1], ["1", "2"]), "times: numbers are expected"),
            (([1, 2], [1, 1], [np.inf, 0.0]), "times: event 1 has inf"),
            (([1.0, 2.0], [1, 1]), "users: ids must be integers or text, not float64"),
            (([1, 2], [True, False]), "items: ids must be integers or text, not bool"),
            (([1, 2], [None, "a"]), "items: ids must be integers or text, not object"),
            (([2**64 - 1], [1]), "users: ids must be integers or text, not uint64"),
            (([[1, 2]], [1, 1]), "users: one column of ids"),
        ],
    )
    def test_bad_columns(self, columns, message):
        with pytest.raises(UserError, match=f"^{re.escape(message)}"):
            from_events(*columns)

    @pytest.mark.parametrize("users", [[0, 2], [-1, 0], ["a", "b"], [0.0, 1.0]])
    def test_bad_positions_in_a_list(self, users):
        with pytest.raises(UserError, match=r"^users: .*positions"):
            from_events(users, [1, 1], user_ids=["a", "b"])


class TestMergeDomains:
    @given(EVENTS, EVENTS, st.booleans())
    def test_order_within_a_tie(self, events, source_events, source_first):
        target, source = grouped(events), grouped(source_events, domain=1)
        if not target.keys() & source.keys():
            with pytest.raises(UserError, match=r"^no user of the source log"):
                merge_domains(log_of(events), log_of(source_events))
            return
        log = merge_domains(log_of(events), log_of(source_events), source_first=source_first)
        sign = -1 if source_first else 1
        expected = {
            user: sorted(rows + source.get(user, []), key=lambda row: (row[1], sign * row[2]))
            for user, rows in target.items()
        }
        assert as_lists(log) == expected

    @given(EVENTS)
    def test_each_domain_is_found_again(self, events):
        log = log_of(events)
        mixed = merge_domains(log, log)
        for domain, shift in ((0, 0), (1, log.num_items)):
            part = mixed.take(mixed.domains == domain)
            assert part.items.tolist() == (log.items + shift).tolist()
            assert part.offsets.tolist() == log.offsets.tolist()
        assert mixed.num_target_items == log.num_items
        assert mixed.item_ids[1:].tolist() == 2 * log.item_ids[1:].tolist()

    def test_ids_of_two_kinds_meet_as_text(self):
        target = from_events(["1", "x"], [5, 6], [0.0, 0.0])
        source = from_events([1, 2], ["a", "b"], [1.0, 1.0])
        mixed = merge_domains(target, source)
        assert as_lists(mixed) == {"1": [("5", 0.0, 0), ("a", 1.0, 1)], "x": [("6", 0.0, 0)]}

    def test_needs_times(self):
        with_times, without = from_events([1], [1], [0.0]), from_events([1], [1])
        with pytest.raises(UserError, match=r"^source log: .* it has no times"):
            merge_domains(with_times, without)
        with pytest.raises(UserError, match=r"^target log: .* it has no times"):
            merge_domains(without, with_times)

    def test_needs_single_domains(self):
        log = from_events([1], [1], [0.0])
        with pytest.raises(UserError, match=r"^target log: it holds two domains"):
            merge_domains(merge_domains(log, log), log)
