"""Drawing users and packing their histories into rows.

A batch of B users holds about a dozen events each and at most L of a long one, so padding every
user to L would be 80 to 93 % of the work. Rows of L cells hold several users (segments) instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pdrec_jax.data.splits import Split


@dataclasses.dataclass(frozen=True)
class Layout:
    """How histories lie in the rows of a batch; an encoder says which one it wants.

    Attributes:
      short: lengths of the rows that are shorter than L, ascending; those that are no shorter than
        L / 2 are left out.
      shared: whether a row takes several histories, one behind the other from its left end.
        Otherwise it takes one, which ends with it.
    """

    short: tuple[int, ...]
    shared: bool

    def row_lengths(self, max_length: int) -> tuple[int, ...]:
        """Returns the row length of each group, shortest first; the last one holds any segment."""
        return (*(width for width in self.short if 2 * width < max_length), max_length)


# Attention costs a cell its row's length; 64 holds 97 % of the histories of Toy.
PACKED = Layout((64,), shared=True)
# A recurrence takes as many steps as its longest row, and a step costs what rows are left in it.
LANES = Layout((8, 16, 32, 64), shared=False)


def draw_users(
    users: NDArray, shape: tuple[int, int], *, seed: tuple[int, ...], repeat: int = 1
) -> NDArray[np.int64]:
    """Draws the users of an epoch's batches, uniformly and with replacement.

    Args:
      users: those to draw from.
      shape: (steps, batch size).
      seed: of this epoch; nothing else decides the draw.
      repeat: how often each batch is delivered in a row. The public code delivers each three times,
        because its three sampler processes start from one random state.

    Returns:
      [steps, B] int64.
    """
    steps, size = shape
    rng = np.random.default_rng(seed)
    distinct = rng.integers(0, len(users), (-(-steps // repeat), size))
    return np.asarray(users)[np.repeat(distinct, repeat, axis=0)[:steps]]


def extend_train(split: Split) -> tuple[NDArray, NDArray, NDArray | None]:
    """Appends each user's validation event to its training events, as the test's input.

    A split that says itself what came before the test event gives just that.

    Returns:
      offsets [U+1], items [E+U] and times [E+U] (None where the log has none).
    """
    if split.history is not None:
        return split.history.offsets, split.history.items, split.history.times
    train = split.train
    ends = train.offsets[1:]
    offsets = train.offsets + np.arange(train.num_users + 1)
    items = np.insert(train.items, ends, split.valid_items)
    if train.times is None or split.valid_times is None:
        return offsets, items, None
    return offsets, items, np.insert(train.times, ends, split.valid_times)


@dataclasses.dataclass(frozen=True, eq=False)
class PackedRows:
    """Where each cell of some rows takes its event from, in groups of rows of one length.

    A segment is the last ``min(length, L)`` events of one user, in order, in neighbouring cells of
    a row. See ``Layout`` for which row it goes to.

    Attributes:
      event: a group each, [..., R, L] int32, index into the flat events; 0 in an empty cell.
      segment: a group each, [..., R, L] int32, which of the B users the cell belongs to; B in an
        empty cell.
      last: [..., B] int32, each user's last event among the cells of all groups laid end to end.
    """

    event: tuple[NDArray[np.int32], ...]
    segment: tuple[NDArray[np.int32], ...]
    last: NDArray[np.int32]


def assign_rows(lengths: NDArray, row_length: int) -> tuple[NDArray, NDArray, int]:
    """Assigns segments to rows: the longest that are left, then the shortest that still fit.

    Args:
      lengths: [B], each between 1 and ``row_length``.
      row_length: L.

    Returns:
      row [B], first column [B], and the number of rows.
    """
    order = np.argsort(-lengths, kind="stable").tolist()
    sizes = lengths.tolist()
    row, column = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    first, last, rows = 0, len(order) - 1, 0
    while first <= last:
        used = 0
        while first <= last and used + sizes[order[first]] <= row_length:
            segment = order[first]
            row[segment], column[segment] = rows, used
            used, first = used + sizes[segment], first + 1
        while first <= last and used + sizes[order[last]] <= row_length:
            segment = order[last]
            row[segment], column[segment] = rows, used
            used, last = used + sizes[segment], last - 1
        rows += 1
    return row, column, rows


def rows_needed(
    offsets: NDArray, users: NDArray, max_length: int, layout: Layout = PACKED
) -> tuple[int, ...]:
    """Returns how many rows one batch of users needs, see ``pack``.

    Args:
      offsets: [U+1], CSR of the events.
      users: [B] indices.
      max_length: L.
      layout: of the rows.

    Returns:
      a number for each group: of its rows where rows are shared; otherwise of the rows that are at
      least that long, for a shorter history may take a longer row.
    """
    lengths = np.minimum(offsets[users + 1] - offsets[users], max_length)
    widths = layout.row_lengths(max_length)
    return _shared_rows(lengths, widths)[3] if layout.shared else _at_least(lengths, widths)


def most_rows(needs: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the largest number of each group among several batches."""
    return tuple(max(need) for need in zip(*needs, strict=True))


def pack(
    offsets: NDArray,
    users: NDArray,
    max_length: int,
    rows: tuple[int, ...] | None = None,
    layout: Layout = PACKED,
) -> PackedRows:
    """Lays out the recent events of a batch of users.

    Args:
      offsets: [U+1], CSR of the events.
      users: [B] indices, each with at least one event.
      max_length: L of the longest rows, and the most events of a user.
      rows: of each group, as ``rows_needed`` counts them; None for as many as it takes.
      layout: of the rows.

    Raises:
      ValueError: more rows are needed than ``rows``.
    """
    lengths = np.minimum(offsets[users + 1] - offsets[users], max_length)
    ends, widths = offsets[users + 1], layout.row_lengths(max_length)
    if layout.shared:
        group, row, column, needed = _shared_rows(lengths, widths)
        counts = _enough(needed, rows, widths)
    else:
        given = _enough(_at_least(lengths, widths), rows, widths)
        group, row, column, counts = _own_rows(lengths, widths, given)
    events, segments, before = [], [], 0
    last = np.zeros(len(users), np.int32)
    for number, (width, count) in enumerate(zip(widths, counts, strict=True)):
        members = np.flatnonzero(group == number)
        size, first = lengths[members], (row * width + column)[members]
        within = np.arange(int(size.sum())) - np.repeat(np.cumsum(size) - size, size)
        cell = np.repeat(first, size) + within
        event = np.zeros(count * width, np.int32)
        owner = np.full(count * width, len(users), np.int32)
        event[cell] = np.repeat(ends[members] - size, size) + within
        owner[cell] = np.repeat(members, size)
        events.append(event.reshape(count, width))
        segments.append(owner.reshape(count, width))
        last[members] = before + first + size - 1
        before += count * width
    return PackedRows(tuple(events), tuple(segments), last)


Placement = tuple[NDArray, NDArray, NDArray, tuple[int, ...]]


def _enough(
    needed: tuple[int, ...], given: tuple[int, ...] | None, widths: tuple[int, ...]
) -> tuple[int, ...]:
    """Returns the numbers that are given, or else those that are needed."""
    if given is None:
        return needed
    for width, need, number in zip(widths, needed, given, strict=True):
        if need > number:
            raise ValueError(f"{need} rows of {width} are needed, {number} given")
    return given


def _shared_rows(lengths: NDArray, widths: tuple[int, ...]) -> Placement:
    """Places segments in rows that several share: group, row, column [B] each, and R of a group."""
    group, counts = np.searchsorted(widths, lengths), []
    row, column = np.zeros_like(lengths), np.zeros_like(lengths)
    for number, width in enumerate(widths):
        members = np.flatnonzero(group == number)
        row[members], column[members], count = assign_rows(lengths[members], width)
        counts.append(count)
    return group, row, column, tuple(counts)


def _at_least(lengths: NDArray, widths: tuple[int, ...]) -> tuple[int, ...]:
    """How many segments need a row of their own that is at least as long as each group's."""
    return (len(lengths), *(int((lengths > width).sum()) for width in widths[:-1]))


def _own_rows(lengths: NDArray, widths: tuple[int, ...], given: tuple[int, ...]) -> Placement:
    """Places segments in rows of their own, the longest in the longest; see ``_shared_rows``."""
    at_least = np.maximum.accumulate(given[::-1])[::-1]
    counts = at_least - np.append(at_least[1:], 0)
    groups = np.repeat(np.arange(len(widths))[::-1], counts[::-1])
    rows = np.concatenate([np.arange(count) for count in counts[::-1]])
    group, row = np.zeros_like(lengths), np.zeros_like(lengths)
    longest_first = np.argsort(-lengths, kind="stable")
    group[longest_first], row[longest_first] = groups[: len(lengths)], rows[: len(lengths)]
    return group, row, np.asarray(widths)[group] - lengths, tuple(counts.tolist())
