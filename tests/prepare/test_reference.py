"""The authors' pickles become the logs that they were made of."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from pdrec_jax.errors import UserError
from pdrec_jax.prepare.reference import read_pair

FIRST = {2: [(1, 100), (3, 300)], 1: [(2, 50), (1, 50), (2, 70)]}
SECOND = {1: [(1, 50), (2, 90)], 2: [(2, 10), (1, 100), (1, 300)]}


def rows(log) -> list:
    return list(zip(log.users.tolist(), log.items.tolist(), log.times.tolist(), strict=True))


def test_both_logs(pair_pickles) -> None:
    first, second = read_pair(*pair_pickles(FIRST, SECOND))
    assert rows(first) == [(1, 2, 50), (1, 1, 50), (1, 2, 70), (2, 1, 100), (2, 3, 300)]
    assert rows(second) == [(1, 1, 50), (1, 2, 90), (2, 2, 10), (2, 1, 100), (2, 1, 300)]
    assert (first.order, second.order) == (None, None)
    assert first.figures == (2, 3, 5)
    assert first.density == 5 / 6


def test_logs_of_any_size(pair_pickles, simulated_pair) -> None:
    found = read_pair(*pair_pickles(*simulated_pair))
    for log, wanted in zip(found, simulated_pair, strict=True):
        assert rows(log) == [(u, i, t) for u, of in sorted(wanted.items()) for i, t in of]


def test_without_times_the_mixed_order_is_kept(pair_pickles, simulated_pair) -> None:
    real = read_pair(*pair_pickles(*simulated_pair))
    first, second = read_pair(*pair_pickles(*simulated_pair, mixed_times=False), None)
    assert rows(first) == rows(real[0])
    assert (first.order, second.times, real[1].order) == (None, None, None)
    assert np.array_equal(second.items, real[1].items)

    def mixed(second, clock) -> list:
        users = np.concatenate([first.users, second.users])
        times = np.concatenate([first.times, clock])
        items = np.concatenate([first.items, -second.items])
        return items[np.lexsort((times, users))].tolist()

    assert mixed(second, second.order) == mixed(real[1], real[1].times)
    both = read_pair(*pair_pickles(*simulated_pair), with_order=True)[1]
    assert both.times.tolist() == real[1].times.tolist()
    assert both.order.tolist() == second.order.tolist()


def test_stand_ins_lie_between_the_times_that_are_known(pair_pickles) -> None:
    _, second = read_pair(*pair_pickles(FIRST, SECOND, mixed_times=False), None)
    assert second.order.tolist() == [50.001, 70.001, 99.999, 100.001, 300.001]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "a dictionary from user to list of integers is expected"),
        ({}, "a dictionary from user to list of integers is expected"),
        ({1: 2}, "a dictionary from user to list of integers is expected"),
        ({"1": [2]}, "a dictionary from user to list of integers is expected"),
        ({1: [2], 2: ["3"]}, "user 2: a list of integers is expected"),
        ({1: [[2]]}, "user 1: a list of integers is expected"),
        ({1: [0]}, "users, items and times from 1 on are expected"),
        ({-1: [1]}, "users, items and times from 1 on are expected"),
        ({1: [2, 1, 2], 3: [1, 3]}, "other users than in"),
        ({1: [2, 1], 2: [1, 3]}, "user 1 has not as many records as in"),
    ],
)
def test_what_is_no_log(pair_pickles, value, message) -> None:
    items, times, mixed_items, mixed_times = pair_pickles(FIRST, SECOND)
    times.write_bytes(pickle.dumps(value))
    with pytest.raises(UserError) as caught:
        read_pair(items, times, mixed_items, mixed_times)
    assert str(caught.value).startswith(f"{times}: {message}")


def test_a_small_file_cannot_hold_a_huge_log(pair_pickles) -> None:
    items, times, mixed_items, mixed_times = pair_pickles(FIRST, SECOND)
    shared = list(range(1, 20_001))
    items.write_bytes(pickle.dumps({user: shared for user in range(1, 5_000)}))
    with pytest.raises(UserError, match="99,980,000 records, more than a pickled log can hold"):
        read_pair(items, times, mixed_items, mixed_times)


def test_files_that_contradict_each_other(pair_pickles) -> None:
    def changed(which: int, lists: dict, *, timed: bool = True) -> str:
        paths: list[Path | None] = list(pair_pickles(FIRST, SECOND))
        path = paths[which]
        assert path is not None
        path.write_bytes(pickle.dumps(lists))
        if not timed:
            paths[3] = None
        with pytest.raises(UserError) as caught:
            read_pair(*paths)
        return str(caught.value).removeprefix(str(path))

    mixed = {1: [2, 1, 4, 2, 5], 2: [5, 1, 4, 3, 4]}
    assert changed(2, {**mixed, 1: [1, 2, 4, 2, 5]}).startswith(": its items up to 3 are not those")
    clock = {1: [50, 50, 50, 70, 90], 2: [10, 100, 100, 300, 300]}
    assert changed(3, {**clock, 1: [50, 50, 50, 71, 90]}).startswith(": its times of items up to 3")
    assert "without a record" in changed(2, {**mixed, 3: [4]}, timed=False)


def test_order_that_times_contradict(pair_pickles) -> None:
    items, times, mixed_items, _ = pair_pickles(FIRST, SECOND)
    times.write_bytes(pickle.dumps({1: [50, 50, 40], 2: [100, 300]}))
    with pytest.raises(UserError, match=r"not in the order of the times of"):
        read_pair(items, times, mixed_items, None)
