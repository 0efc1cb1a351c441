"""Which records of a log stay: units of time, order, duplicates, fewest records a user and item.

Letters: E records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pdrec_jax.data.scratch import EVENTS_A_BLOCK
from pdrec_jax.errors import UserError

Unit = Literal["auto", "s", "ms", "us", "ns"]
Duplicates = Literal["keep", "exact", "first", "last"]

_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
# Up to here a number is taken for seconds, milliseconds, microseconds: the year 5138 of each.
_UNIT_BELOW = {"s": 1e11, "ms": 1e14, "us": 1e17, "ns": np.inf}
FIRST_SECOND, LAST_SECOND = -62_135_596_800.0, 253_402_300_799.0  # the years 1 to 9999


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """Columns of a log.

    Attributes:
        users: `[E]` int32 codes.
        items: `[E]` int32 codes.
        times: `[E]` float64, or None.
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    times: NDArray[np.float64] | None

    def __len__(self) -> int:
        return self.users.size

    def keep(self, chosen: NDArray) -> Records:
        """The records of a mask or of indices, in their order."""
        times = None if self.times is None else self.times[chosen]
        return Records(self.users[chosen], self.items[chosen], times)


def guess_unit(times: NDArray[np.float64]) -> str:
    """The unit in which most times would be of our age: s, ms, us or ns.

    Args:
        times: `[E]` as written, E >= 1.

    Returns:
        Key of the unit.
    """
    typical = _typical(times)
    return next(unit for unit, limit in _UNIT_BELOW.items() if typical < limit)


def _typical(times: NDArray[np.float64]) -> float:
    # Of a million or fewer, whatever the size of the log: they have the same middle, or nearly.
    size = np.abs(times[:: len(times) // EVENTS_A_BLOCK + 1])
    # Zeros stand for no time and say nothing of the others.
    return float(np.median(size[size > 0])) if size.any() else 0.0


def share_of_other_units(times: NDArray[np.float64], unit: str) -> float:
    """Share of times that would be taken for another unit if they stood alone.

    Zeros, which are the same moment in every unit, do not count.

    Args:
        times: `[E]` as written, E >= 1.
        unit: of all of them.

    Returns:
        0..1.
    """
    units = list(_UNIT_BELOW)
    place = units.index(unit)
    low = _UNIT_BELOW[units[place - 1]] if place else 0.0
    others = counted = 0
    for size in map(np.abs, _blocks(times)):
        # A small number in a log of larger units is near 1970, before 1973, which no log is.
        other = (size >= _UNIT_BELOW[unit]) | ((size < low) & (size > 0))
        others += int(other.sum())
        counted += int(np.count_nonzero(size))
    return others / max(counted, 1)


def zeros_among_dated(times: NDArray[np.float64], unit: str) -> int:
    """How many times are 0 where the others are of our age, so that they stand for no time.

    Args:
        times: `[E]` as written, E >= 1.
        unit: of all of them.

    Returns:
        Their number; 0 where most others are before 1973, as ranks are.
    """
    if _typical(times) < 1e8 * _PER_SECOND[unit]:
        return 0
    return len(times) - sum(int(np.count_nonzero(some)) for some in _blocks(times))


def written_as_days(times: NDArray[np.float64]) -> bool:
    """Whether all times are whole numbers that read as days, YYYYMMDD of the years 1900 to 2100.

    Args:
        times: `[E]` as written, E >= 1.
    """

    def days(times: NDArray[np.float64]) -> bool:
        if not ((times >= 19_000_101) & (times <= 21_001_231)).all():
            return False
        month, day = times // 100 % 100, times % 100
        whole = times == np.floor(times)
        return bool((whole & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all())

    return all(map(days, _blocks(times)))


def _blocks(times: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    return (times[i : i + EVENTS_A_BLOCK] for i in range(0, len(times), EVENTS_A_BLOCK))


def to_seconds(times: NDArray[np.float64], unit: str) -> NDArray[np.float64]:
    """`[E]` times in seconds since 1970."""
    return times if unit == "s" else times / _PER_SECOND[unit]


def in_range(times: NDArray[np.float64]) -> NDArray[np.bool_]:
    """`[E]` whether a time is in the years 1 to 9999."""
    return (times >= FIRST_SECOND) & (times <= LAST_SECOND)


def in_order(records: Records) -> Records:
    """Sorts by user, then time; records that tie stay in the order of the log.

    Args:
        records: in the order of the log.

    Returns:
        The same records.
    """
    users, times = records.users, records.times
    if times is None:
        sorted_already = bool((users[1:] >= users[:-1]).all())
        return records if sorted_already else records.keep(np.argsort(users, kind="stable"))
    same = users[1:] == users[:-1]
    if bool(((users[1:] > users[:-1]) | (same & (times[1:] >= times[:-1]))).all()):
        return records
    if bool((times[1:] >= times[:-1]).all()):
        return records.keep(np.argsort(users, kind="stable"))
    return records.keep(np.lexsort((times, users)))


def without_duplicates(records: Records, rule: Duplicates) -> Records:
    """Drops records that say again what another one says.

    Args:
        records: in order, see `in_order`.
        rule: `keep` drops none; `exact` those of the same user, item and time as an earlier one
            (without times: as the record just before); `first` and `last` keep one record of each
            user and item.

    Returns:
        What is left, in order.

    Raises:
        UserError: no such rule.
    """
    rules: dict[str, Callable[[Records], NDArray[np.bool_]]] = {
        "keep": lambda _: np.zeros(len(records), bool),
        "exact": _repeats_exactly,
        "first": _repeats,
        "last": lambda given: _repeats(_reversed(given))[::-1],
    }
    if rule not in rules:
        raise UserError(f"duplicates: one of {', '.join(rules)} is expected, not {rule!r}")
    repeated = rules[rule](records)
    return records.keep(~repeated) if repeated.any() else records


def _reversed(records: Records) -> Records:
    return Records(records.users[::-1], records.items[::-1], None)


def _repeats(records: Records) -> NDArray[np.bool_]:
    """`[E]` whether an earlier record has the same user and item."""
    width = np.int64(records.items.max(initial=0)) + 1
    pairs = records.users * width + records.items
    order = np.argsort(pairs, kind="stable")
    repeated = np.zeros(len(records), bool)
    repeated[order[1:]] = pairs[order[1:]] == pairs[order[:-1]]
    return repeated


def _repeats_exactly(records: Records) -> NDArray[np.bool_]:
    """`[E]` whether an earlier record has the same user, item and time."""
    repeated = np.zeros(len(records), bool)
    ties = records.users[1:] == records.users[:-1]
    if records.times is None:
        repeated[1:] = ties & (records.items[1:] == records.items[:-1])
        return repeated
    ties &= records.times[1:] == records.times[:-1]
    # Only records that tie with a neighbour can be equal: few, in most logs.
    near = np.flatnonzero(np.append(ties, False) | np.insert(ties, 0, False))
    tie = np.cumsum(~np.insert(ties, 0, False)[near])
    order = np.lexsort((records.items[near], tie))
    items = records.items[near][order]
    equal = (tie[order][1:] == tie[order][:-1]) & (items[1:] == items[:-1])
    repeated[near[order[1:][equal]]] = True
    return repeated


def core(records: Records, least_of_user: int, least_of_item: int) -> tuple[Records, int]:
    """Drops users and items with too few records, again and again until none is left.

    Args:
        records: any.
        least_of_user: fewest records of a user, of those that stay.
        least_of_item: fewest records of an item, likewise.

    Returns:
        What is left, in order, and the number of rounds.
    """
    rounds = 0
    while len(records):
        enough = np.ones(len(records), bool)
        for codes, least in ((records.users, least_of_user), (records.items, least_of_item)):
            if least > 1:
                enough &= (np.bincount(codes) >= least)[codes]
        if enough.all():
            break
        records = records.keep(enough)
        rounds += 1
    return records, rounds


def compact(codes: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Numbers codes anew, without those that no record has.

    Args:
        codes: `[E]` int32.

    Returns:
        `[E]` int32 places in the second result, the codes that occur, ascending.
    """
    used = np.bincount(codes) > 0
    return (np.cumsum(used, dtype=np.int32) - 1)[codes], np.flatnonzero(used)
