"""Statistics of a log, and the shuffle test: whether the order of its records means anything.

Letters: U users, I items, E records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from pdrec_jax.data.interactions import Interactions
from pdrec_jax.prepare.filters import Records, without_duplicates

_SHUFFLES = 20
_SAMPLE = 400_000  # records that the shuffle test looks at
_LARGEST_SHARE = 0.1  # of a sample that one user may have
_PAIRS_ENOUGH = 1000


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a log looks like. Shares are 0..1.

    Attributes:
        users: U.
        items: I.
        records: E.
        density: records by users times items.
        shortest: records of the user with the fewest.
        median: of the records a user.
        mean: of the records a user.
        high: 99 % of the users have no more records than this.
        longest: records of the user with the most.
        widest: distinct items of the user with the most.
        short_users: users with fewer than 3 records, which the split leaves out.
        lone_users: users with 3 records, of whom the split leaves one to learn from.
        single_items: items with one record.
        repeats: records of a user and item after the first.
        first_time: Unix seconds, None without times.
        last_time: likewise.
        ties: share of records that have the time of the user's record before; None without times.
        tied_ends: share of users whose last two records tie, so that which of them is the test item
            is chance; None without times.
        cold_tests: share of test items that no training part holds.
        order: by how many standard deviations neighbours in the log recur more often than after a
            shuffle; None where there are too few records to tell.
    """

    users: int
    items: int
    records: int
    density: float
    shortest: int
    median: float
    mean: float
    high: int
    longest: int
    widest: int
    short_users: int
    lone_users: int
    single_items: int
    repeats: int
    first_time: float | None
    last_time: float | None
    ties: float | None
    tied_ends: float | None
    cold_tests: float
    order: float | None


def measure(records: Records, seed: int = 0) -> Figures:
    """Measures a log.

    Args:
        records: in order, see `filters.in_order`; codes without gaps; E >= 1.
        seed: of the shuffles.

    Returns:
        The figures.
    """
    lengths, popularity = np.bincount(records.users), np.bincount(records.items)
    return _figures([records], lengths, popularity, shuffle_test(records, seed))


def measure_log(log: Interactions, seed: int = 0) -> Figures:
    """`measure` of a log that need not fit in memory: all users and items of it have records.

    Args:
        log: the log.
        seed: of the shuffles.

    Returns:
        The figures.
    """
    rng = np.random.default_rng(seed)
    chosen = _sample(log.lengths, rng)
    some = [block if chosen is None else block.keep(chosen[block.users]) for block in _blocks(log)]
    sample = Records(
        np.concatenate([block.users for block in some]),
        np.concatenate([block.items for block in some]),
        None,
    )
    return _figures(_blocks(log), log.lengths, log.popularity[1:], _order(sample, rng))


def _blocks(log: Interactions) -> Iterator[Records]:
    """The records of some users at a time, by codes from 0."""
    first = 0
    for block in log.blocks():
        users = (first + block.event_users).astype(np.int32)
        yield Records(users, block.items - np.int32(1), block.times)
        first += block.num_users


def _figures(
    blocks: Iterable[Records],
    lengths: NDArray[np.int64],
    popularity: NDArray[np.int64],
    order: float | None,
) -> Figures:
    """`measure`, from blocks of whole users in order."""
    long_enough = lengths >= 3
    known = np.zeros(popularity.size, bool)
    test_items, times = [], []
    repeats = ties = tied_ends = widest = 0
    for records in blocks:
        last = np.append(records.users[1:] != records.users[:-1], True)
        tests = np.flatnonzero(last & long_enough[records.users])
        trained = long_enough[records.users]
        trained[tests] = trained[tests - 1] = False
        known[records.items[trained]] = True
        test_items.append(records.items[tests])
        pairs = records.users * np.int64(popularity.size) + records.items
        pairs.sort()
        distinct = np.append(True, pairs[1:] != pairs[:-1])
        repeats += int((~distinct).sum())
        owners = pairs[distinct] // popularity.size
        ends = np.flatnonzero(np.append(owners[1:] != owners[:-1], True))
        widest = max(widest, int(np.diff(ends, prepend=-1).max()))
        if records.times is not None:
            same = ~last[:-1] & (records.times[1:] == records.times[:-1])
            ties += int(same.sum())
            tied_ends += int(same[tests - 1].sum())
            times.append((float(records.times.min()), float(records.times.max())))
    tests = np.concatenate(test_items)
    number = int(lengths.sum())
    return Figures(
        users=lengths.size,
        items=popularity.size,
        records=number,
        density=number / (lengths.size * popularity.size),
        shortest=int(lengths.min()),
        median=float(np.median(lengths)),
        mean=float(lengths.mean()),
        high=int(np.quantile(lengths, 0.99, method="higher")),
        longest=int(lengths.max()),
        widest=widest,
        short_users=int((~long_enough).sum()),
        lone_users=int((lengths == 3).sum()),
        single_items=int((popularity == 1).sum()),
        repeats=repeats,
        first_time=min(first for first, _ in times) if times else None,
        last_time=max(last for _, last in times) if times else None,
        ties=ties / number if times else None,
        tied_ends=tied_ends / max(tests.size, 1) if times else None,
        cold_tests=float(np.mean(~known[tests])) if tests.size else 0.0,
        order=order,
    )


def shuffle_test(records: Records, seed: int = 0) -> float | None:
    """How far the order of a log is from chance.

    Two items that one user takes one after the other are taken so by others too, if order means
    anything. Of each user the test takes the items in the order of first use, counts neighbours
    that two users have in common, and compares that with the same count after each user's records
    were put in a random order, 20 times. Repeats are left out because they would make pairs of an
    item with itself, fewer or more of them by order alone: so a user has as many pairs in any
    order, and a random order stays one.

    Args:
        records: in order.
        seed: of the shuffles.

    Returns:
        Standard deviations above the mean of the shuffles; None where there is too little to count.
    """
    rng = np.random.default_rng(seed)
    chosen = _sample(np.bincount(records.users), rng)
    return _order(records if chosen is None else records.keep(chosen[records.users]), rng)


def _sample(lengths: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_] | None:
    """Which users the shuffle test looks at, `[U]`; None where it looks at all."""
    if lengths.sum() <= _SAMPLE:
        return None
    drawn = rng.permutation(lengths.size)
    # One with more records than are looked at would end the sample where it comes.
    light = lengths[drawn] <= _LARGEST_SHARE * _SAMPLE
    drawn = drawn[light] if light.any() else drawn
    chosen = np.zeros(lengths.size, bool)
    chosen[drawn[np.cumsum(lengths[drawn]) <= _SAMPLE]] = True
    return chosen


def _order(records: Records, rng: np.random.Generator) -> float | None:
    """`shuffle_test` of the records that it looks at."""
    records = Records(records.users, records.items, None)
    distinct = without_duplicates(records, "first")
    if np.count_nonzero(distinct.users[1:] == distinct.users[:-1]) < _PAIRS_ENOUGH:
        return None
    observed = _shared_neighbours(distinct)
    shuffled = []
    for _ in range(_SHUFFLES):
        order = np.lexsort((rng.random(len(records), np.float32), records.users))
        shuffled.append(_shared_neighbours(without_duplicates(records.keep(order), "first")))
    # At least 1: a handful of shared neighbours more or less is no evidence.
    spread = max(float(np.std(shuffled, ddof=1)), 1.0)
    return (observed - float(np.mean(shuffled))) / spread


def _shared_neighbours(records: Records) -> int:
    """Neighbours, in either order, that more than one user has; no user has an item twice."""
    users, items = records.users, records.items
    left, right = items[:-1].astype(np.int64), items[1:].astype(np.int64)
    real = users[1:] == users[:-1]
    width = np.int64(items.max()) + 1
    pairs = (np.minimum(left, right) * width + np.maximum(left, right))[real]
    pairs.sort()
    return int((pairs[1:] == pairs[:-1]).sum())
