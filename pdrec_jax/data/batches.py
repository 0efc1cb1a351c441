"""Drawing users and packing their histories into rows.

A batch of B users holds about a dozen events each and at most L of a long one, so padding every
user to L would be 80 to 93 % of the work. Rows of L cells hold several users (segments) instead.
"""

from __future__ import annotations

import bisect
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
        because its three sampler processes start from one random state, uniform negatives and all.

    Returns:
      [steps, B] int64.
    """
    steps, size = shape
    rng = np.random.default_rng(seed)
    distinct = rng.integers(0, len(users), (-(-steps // repeat), size))
    return np.asarray(users)[np.repeat(distinct, repeat, axis=0)[:steps]]


def blocks(users: NDArray, size: int) -> list[NDArray]:
    """Cuts users into blocks of one size, the last one filled up with its first user.

    Args:
      users: [U'].
      size: B.

    Returns:
      arrays [B].
    """
    cut = [users[i : i + size] for i in range(0, len(users), size)]
    return [np.concatenate([b, np.full(size - len(b), b[0], b.dtype)]) for b in cut]


def extend_train(split: Split) -> tuple[NDArray, NDArray, NDArray | None]:
    """Appends each user's validation event to its training events, as the test's input.

    A split that says itself what came before the test event gives just that.

    Returns:
      offsets [U+1], items [E+U] and times [E+U] (None where the log has none).
    """
    history = split.before_test()
    return history.offsets, history.items, history.times


@dataclasses.dataclass(frozen=True, eq=False)
class PackedRows:
    """Where each cell of some rows takes its event from, in groups of rows of one length.

    A segment is the last ``min(length, L)`` events of one user, in order, in neighbouring cells of
    a row. See ``Layout`` for which row it goes to; a short one may fill what is left of a long row.

    Attributes:
      event: a group each, [..., R, L] int32, index into the flat events; 0 in an empty cell.
      segment: a group each, [..., R, L] int32, which of the B users the cell belongs to; B in an
        empty cell.
      last: [..., B] int32, each user's last event among the cells of all groups laid end to end.
    """

    event: tuple[NDArray[np.int32], ...]
    segment: tuple[NDArray[np.int32], ...]
    last: NDArray[np.int32]


def assign_rows(
    lengths: NDArray, row_length: int, above: int = 0, least: int = 0
) -> tuple[NDArray, NDArray, int]:
    """Assigns segments to rows: the longest that is left, then always the longest that still fits.

    Args:
      lengths: [B], each between 1 and ``row_length``.
      row_length: L.
      above: no row is begun with a segment of at most this length, which may go elsewhere,
      least: but for this many rows, which are there in any case.

    Returns:
      row [B], -1 where a segment is left over; first column [B]; and the number of rows.
    """
    ascending = np.argsort(lengths, kind="stable").tolist()
    sizes = lengths[ascending].tolist()
    row, column = np.full(len(sizes), -1, np.int64), np.zeros(len(sizes), np.int64)
    rows = 0
    while sizes and (rows < least or sizes[-1] > above):
        used, place = 0, len(sizes) - 1
        while place >= 0:
            segment = ascending.pop(place)
            row[segment], column[segment] = rows, used
            used += sizes.pop(place)
            place = bisect.bisect_right(sizes, row_length - used) - 1
        rows += 1
    return row, column, rows


def rows_needed(
    offsets: NDArray,
    users: NDArray,
    max_length: int,
    layout: Layout = PACKED,
    least: tuple[int, ...] | None = None,
) -> tuple[int, ...]:
    """Returns how many rows one batch of users needs, see ``pack``.

    Args:
      offsets: [U+1], CSR of the events.
      users: [B] indices.
      max_length: L.
      layout: of the rows.
      least: rows of each group that are there in any case, and take what they can.

    Returns:
      a number for each group: of its rows where rows are shared; otherwise of the rows that are at
      least that long, for a shorter history may take a longer row.
    """
    lengths = np.minimum(offsets[users + 1] - offsets[users], max_length)
    widths = layout.row_lengths(max_length)
    if not layout.shared:
        return _at_least(lengths, widths)
    return _shared_rows(lengths, widths, least)[3]


def most_rows(needs: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the largest number of each group among several batches."""
    return tuple(max(need) for need in zip(*needs, strict=True))


def enough_rows(
    offsets: NDArray,
    batches: Iterable[NDArray],
    max_length: int,
    layout: Layout = PACKED,
    least: tuple[int, ...] | None = None,
) -> tuple[int, ...]:
    """Returns numbers of rows that every one of some batches fits in.

    Where rows are shared the longest are settled first: most batches need fewer of them than the
    largest does, and put short segments there.

    Args:
      offsets: [U+1], CSR of the events.
      batches: users, [B] each.
      max_length: L.
      layout: of the rows.
      least: numbers to keep where they are enough; beyond them a number of shared rows grows in
        steps of 4. Of rows of their own all grow together, by quarters: five numbers that each
        went its own way would give an encoder dozens of shapes to compile.
    """
    batches = list(batches)
    if least is not None and not layout.shared:
        of_each = [rows_needed(offsets, users, max_length, layout) for users in batches]
        return _grown(most_rows([least, *of_each]), least)
    settled = [0] * len(layout.row_lengths(max_length)) if least is None else list(least)
    for number in reversed(range(len(settled))):
        there = (*[0] * (number + 1), *settled[number + 1 :])
        needs = (
            rows_needed(offsets, users, max_length, layout, there)[number] for users in batches
        )
        need = max(needs, default=0)
        if need > settled[number]:
            settled[number] = need if least is None else -(-need // 4) * 4
    return tuple(settled)


def _grown(need: tuple[int, ...], least: tuple[int, ...]) -> tuple[int, ...]:
    """The first of ``least``, and it grown by quarters, at least 4 rows each, that has ``need``.

    No number exceeds that of the users, which is the first of ``need``.
    """
    steps = [max(4, -(-number // 4)) for number in least]
    times = max(-((number - n) // step) for n, number, step in zip(need, least, steps, strict=True))
    return tuple(
        min(number + times * step, need[0]) for number, step in zip(least, steps, strict=True)
    )


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
        group, row, column, needed = _shared_rows(lengths, widths, rows)
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


def _shared_rows(
    lengths: NDArray, widths: tuple[int, ...], least: tuple[int, ...] | None
) -> Placement:
    """Places segments in rows that several share: group, row, column [B] each, and R of a group."""
    group, row, column = (np.zeros_like(lengths) for _ in range(3))
    counts = [0] * len(widths)
    left = np.arange(len(lengths))
    # The longest rows first, since short segments fill what is left of them.
    for number in reversed(range(len(widths))):
        above = widths[number - 1] if number else 0
        there = least[number] if least else 0
        rows, columns, counts[number] = assign_rows(lengths[left], widths[number], above, there)
        taken = left[rows >= 0]
        group[taken], row[taken], column[taken] = number, rows[rows >= 0], columns[rows >= 0]
        left = left[rows < 0]
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
