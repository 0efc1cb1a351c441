"""Filters a log whose columns lie on the disk, in blocks of users, and writes it to be mapped.

In memory are numbers a user and an item, and a block of records. Everything else is in temporary
files as long as the log (`data.scratch`). The rules, and what comes of them, are those of a log in
memory.

Letters: U users, E records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdrec_jax.data import scratch
from pdrec_jax.data.compressed import offsets_of
from pdrec_jax.data.interactions import Interactions
from pdrec_jax.data.mapped import write_mapped
from pdrec_jax.data.scratch import Column
from pdrec_jax.prepare import filters
from pdrec_jax.prepare.filters import Duplicates, Records
from pdrec_jax.prepare.raw_log import Vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class Ordered:
    """Records in the order of users and times, on the disk.

    Attributes:
        records: their columns.
        lengths: `[U]` records of each user, some of them 0.
    """

    records: Records
    lengths: NDArray[np.int64]

    def blocks(self) -> Iterator[Records]:
        """The records of some users at a time."""
        records = self.records
        for begin, end in _slices(offsets_of(self.lengths)):
            times = None if records.times is None else records.times[begin:end]
            yield Records(records.users[begin:end], records.items[begin:end], times)


def in_range_seconds(times: NDArray | None, unit: str, dates: bool) -> NDArray[np.float64] | None:
    """Times of some records in seconds; NaN where a time is outside the years 1 to 9999."""
    if times is None:
        return None
    seconds = times if dates else filters.to_seconds(times, unit)
    return np.where(filters.in_range(seconds), seconds, np.nan)


def in_order(records: Records, users: int, unit: str, dates: bool) -> Ordered:
    """Deals records out to their users and sorts each user's by time, see `filters.in_order`.

    Args:
        records: in the order of the log, times as written.
        users: U.
        unit: of the times.
        dates: whether they are in seconds already, having been dates.

    Returns:
        The records, times in seconds, without those whose time is no time.
    """

    def usable() -> Iterator[Records]:
        for begin in range(0, len(records), scratch.EVENTS_A_BLOCK):
            some = slice(begin, begin + scratch.EVENTS_A_BLOCK)
            times = None if records.times is None else records.times[some]
            block = Records(
                records.users[some], records.items[some], in_range_seconds(times, unit, dates)
            )
            yield block if block.times is None else block.keep(~np.isnan(block.times))

    lengths = np.zeros(users, np.int64)
    for block in usable():
        lengths += np.bincount(block.users, minlength=users)
    offsets = offsets_of(lengths)
    size = int(offsets[-1])
    firsts = np.array([first for first, _ in scratch.user_blocks(offsets)])
    place = offsets[firsts]  # where the next record of each block of users goes
    dealt = Records(
        scratch.zeros(size, np.int32),
        scratch.zeros(size, np.int32),
        None if records.times is None else scratch.zeros(size, np.float64),
    )
    for block in usable():
        owner = np.searchsorted(firsts, block.users, side="right") - 1
        order = np.argsort(owner, kind="stable")
        counts = np.bincount(owner, minlength=len(firsts))
        to = np.arange(len(block)) + np.repeat(place - (np.cumsum(counts) - counts), counts)
        _put(dealt, to, block.keep(order))
        place += counts
    for begin, end in _slices(offsets):
        times = None if dealt.times is None else dealt.times[begin:end]
        some = Records(dealt.users[begin:end], dealt.items[begin:end], times)
        _put(dealt, slice(begin, end), filters.in_order(some))
    return Ordered(dealt, lengths)


def without_duplicates(ordered: Ordered, rule: Duplicates) -> Ordered:
    """Drops records that say again what another one says, see `filters.without_duplicates`."""
    return _kept(ordered, lambda block: filters.without_duplicates(block, rule))


def core(ordered: Ordered, items: int, least_of_user: int, least_of_item: int) -> Ordered:
    """Drops users and items with too few records until none is left, see `filters.core`.

    Args:
        ordered: the records.
        items: how many items there are.
        least_of_user: fewest records of a user, of those that stay.
        least_of_item: fewest records of an item, likewise.
    """
    while True:
        popular = scratch.counts(ordered.records.items, items) >= least_of_item
        active = ordered.lengths >= least_of_user
        before = len(ordered.records)

        def enough(block: Records, popular: NDArray = popular, active: NDArray = active) -> Records:
            return block.keep(popular[block.items] & active[block.users])

        ordered = _kept(ordered, enough)
        if len(ordered.records) == before:
            return ordered


def write(directory: Path, ordered: Ordered, users: Vocabulary, items: Vocabulary) -> None:
    """Writes the records as a log, see `data.mapped`.

    Args:
        directory: to make.
        ordered: at least one record.
        users: external ids of the codes; those without records are left out.
        items: likewise.

    Raises:
        UserError: the disk is full.
    """
    used = ordered.lengths > 0
    place, user_ids = users.left(used)
    if (np.diff(place[used]) < 0).any():
        ordered = _dealt_anew(ordered, place, len(user_ids))
    number, left = items.left(scratch.counts(ordered.records.items, len(items)) > 0)
    number = number + np.int32(1)  # 0 is the padding item
    own = _external(left)
    item_ids = np.concatenate([np.zeros(1, own.dtype), own])

    def blocks() -> Iterator[Interactions]:
        for block in ordered.blocks():
            lengths = np.bincount(block.users - block.users[0])
            lengths = lengths[lengths > 0]
            yield Interactions(
                offsets=offsets_of(lengths),
                items=number[block.items],
                times=block.times,
                domains=None,
                user_ids=np.arange(len(lengths)),
                item_ids=item_ids,
                num_target_items=len(item_ids) - 1,
            )

    write_mapped(directory, blocks(), _external(user_ids), item_ids)


def _dealt_anew(ordered: Ordered, place: NDArray[np.int32], users: int) -> Ordered:
    """The records by the users' new codes."""
    owners = Column(np.int32)
    for block in ordered.blocks():
        owners.add(place[block.users])
    records = Records(owners.finish(), ordered.records.items, ordered.records.times)
    return in_order(records, users, "", dates=True)  # their times are in seconds by now


def _external(ids: Any) -> NDArray:
    """Ids of an arrow array as numpy has them, int64 or text."""
    import pyarrow as pa

    found: NDArray = ids.to_numpy(zero_copy_only=False)
    return found if pa.types.is_integer(ids.type) else found.astype(str)


def _kept(ordered: Ordered, keep: Callable[[Records], Records]) -> Ordered:
    """What is left of each block."""
    records = ordered.records
    columns = [Column(np.int32), Column(np.int32)]
    if records.times is not None:
        columns.append(Column(np.float64))
    lengths = np.zeros_like(ordered.lengths)
    for block in ordered.blocks():
        left = keep(block)
        lengths += np.bincount(left.users, minlength=len(lengths))
        for column, values in zip(columns, (left.users, left.items, left.times), strict=False):
            if values is not None:
                column.add(values)
    users, items, *times = (column.finish() for column in columns)
    return Ordered(Records(users, items, times[0] if times else None), lengths)


def _slices(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """First record and end of each block of users that has records."""
    for first, last in scratch.user_blocks(offsets):
        if offsets[last] > offsets[first]:
            yield int(offsets[first]), int(offsets[last])


def _put(records: Records, where: NDArray | slice, some: Records) -> None:
    records.users[where], records.items[where] = some.users, some.items
    if records.times is not None:
        records.times[where] = some.times
