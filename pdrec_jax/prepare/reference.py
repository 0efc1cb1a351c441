"""The paper's logs from the authors' pickles: dictionaries from user to list of integers.

Letters: E records.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdrec_jax.errors import UserError
from pdrec_jax.prepare.domain_logs import DomainLog
from pdrec_jax.prepare.plain_pickles import MAX_BYTES, read_plain_pickle

# Between records that no time is known of; small enough for the longest log to fit into a second.
_TICK = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class _Lists:
    """What a pickle holds: a list a user, end to end."""

    path: Path
    users: NDArray[np.int64]  # [U], ascending
    lengths: NDArray[np.int64]  # [U]
    values: NDArray[np.int64]  # [E]

    @property
    def owners(self) -> NDArray[np.int64]:
        return np.repeat(self.users, self.lengths)


def read_pair(
    items: Path,
    times: Path,
    mixed_items: Path,
    mixed_times: Path | None,
    *,
    with_order: bool = False,
) -> tuple[DomainLog, DomainLog]:
    """Reads both logs of a pair.

    The second domain stands in the mixed log alone, with its items shifted by the number of the
    first's. Its `order` is the time of the first's record before and a millisecond more for each
    record since: so both logs sort into the mixed log, and it means nothing beyond that.

    Args:
        items: items of the first domain.
        times: their times, Unix seconds.
        mixed_items: items of both domains in order of time.
        mixed_times: their times, or None.
        with_order: whether the second log gets `order` although its times are known.

    Returns:
        The first domain's log and the second's.

    Raises:
        UserError: a file is no plain pickle or not of that form, or the files contradict another.
    """
    first_items, first_times = _read(items), _read(times)
    _require_same_shape(first_items, first_times)
    first = DomainLog(first_items.owners, first_items.values, first_times.values.astype(np.float64))
    mixed = _read(mixed_items)
    shift = int(first.items.max(initial=0))
    from_first = mixed.values <= shift
    owners = mixed.owners
    if not (
        np.array_equal(owners[from_first], first.users)
        and np.array_equal(mixed.values[from_first], first.items)
    ):
        raise UserError(f"{mixed_items}: its items up to {shift} are not those of {items}")
    chosen = ~from_first
    stamps, order = None, None
    if mixed_times is not None:
        clock = _read(mixed_times)
        _require_same_shape(mixed, clock)
        if not np.array_equal(clock.values[from_first], first_times.values):
            raise UserError(
                f"{mixed_times}: its times of items up to {shift} are not those of {times}"
            )
        stamps = clock.values.astype(np.float64)[chosen]
    if mixed_times is None or with_order:
        places = _stand_ins(owners, from_first, first_times.values.astype(np.float64))
        within = owners[1:] == owners[:-1]
        if (np.diff(places)[within] < 0).any():
            raise UserError(f"{mixed_items}: not in the order of the times of {times}")
        order = places[chosen]
    return first, DomainLog(owners[chosen], mixed.values[chosen] - shift, stamps, order)


def _stand_ins(
    owners: NDArray[np.int64], from_first: NDArray[np.bool_], times: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`[E]` times of the mixed log, where only those of the first domain are known."""
    records = np.arange(owners.size)
    # The user's last record of the first domain up to here; before it, the one that comes next.
    before = np.maximum.accumulate(np.where(from_first, records, -1))
    after = np.minimum.accumulate(np.where(from_first, records, owners.size)[::-1])[::-1]
    has_before = (before >= 0) & (owners[np.maximum(before, 0)] == owners)
    has_after = (after < owners.size) & (owners[np.minimum(after, owners.size - 1)] == owners)
    if not (has_before | has_after).all():
        raise UserError("mixed log: a user without a record of the first domain")
    anchor = np.where(has_before, before, after)
    stamps = np.zeros(owners.size)
    stamps[from_first] = times
    stamps = stamps[anchor] + _TICK * (records - anchor)
    return stamps.round(3)


def _read(path: Path) -> _Lists:
    found = read_plain_pickle(path)
    if type(found) is not dict or not found:
        raise UserError(f"{path}: a dictionary from user to list of integers is expected")
    lists: dict[Any, Any] = found
    if any(type(user) is not int or type(of) is not list for user, of in lists.items()):
        raise UserError(f"{path}: a dictionary from user to list of integers is expected")
    users = sorted(lists)
    lengths = [len(lists[user]) for user in users]
    # A pickle can name one list many times, so that its content is larger than the file.
    if sum(lengths) > MAX_BYTES:
        raise UserError(f"{path}: {sum(lengths):,} records, more than a pickled log can hold")
    values = [lists[user] for user in users]
    for user, of in zip(users, values, strict=True):
        if not set(map(type, of)) <= {int}:
            raise UserError(f"{path}: user {user}: a list of integers is expected")
    try:
        flat = np.fromiter(itertools.chain.from_iterable(values), np.int64, sum(lengths))
        ids = np.array(users, np.int64)
    except OverflowError as error:
        raise UserError(f"{path}: an integer of more than 8 bytes") from error
    if ids[0] < 1 or flat.min(initial=1) < 1:
        raise UserError(f"{path}: users, items and times from 1 on are expected")
    return _Lists(path, ids, np.array(lengths, np.int64), flat)


def _require_same_shape(items: _Lists, times: _Lists) -> None:
    if not np.array_equal(items.users, times.users):
        raise UserError(f"{times.path}: other users than in {items.path}")
    if not np.array_equal(items.lengths, times.lengths):
        user = int(items.users[np.argmax(items.lengths != times.lengths)])
        raise UserError(f"{times.path}: user {user} has not as many records as in {items.path}")
