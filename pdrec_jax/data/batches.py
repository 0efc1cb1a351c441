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

_SHORT_ROW = 64  # holds 97 % of the histories of Toy


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
    a row. Short segments go to short rows, because attention costs a cell its row's length.

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


def row_lengths(max_length: int) -> tuple[int, ...]:
    """Returns the row length of each group, shortest first; the last one holds any segment."""
    return (_SHORT_ROW, max_length) if max_length > 2 * _SHORT_ROW else (max_length,)


def _groups(offsets: NDArray, users: NDArray, max_length: int) -> tuple[NDArray, NDArray]:
    """The length of each user's segment, and the group it goes to."""
    lengths = np.minimum(offsets[users + 1] - offsets[users], max_length)
    return lengths, np.searchsorted(row_lengths(max_length), lengths)


def rows_needed(offsets: NDArray, users: NDArray, max_length: int) -> tuple[int, ...]:
    """Returns R of each group for one batch of users, see ``pack``."""
    lengths, group = _groups(offsets, users, max_length)
    return tuple(
        assign_rows(lengths[group == number], width)[2]
        for number, width in enumerate(row_lengths(max_length))
    )


def most_rows(needs: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the largest R of each group among several batches."""
    return tuple(max(need) for need in zip(*needs, strict=True))


def pack(
    offsets: NDArray, users: NDArray, max_length: int, rows: tuple[int, ...] | None = None
) -> PackedRows:
    """Packs the recent events of a batch of users.

    Args:
      offsets: [U+1], CSR of the events.
      users: [B] indices, each with at least one event.
      max_length: L of the longest rows, and the most events of a user.
      rows: R of each group; None for as many as it takes.

    Raises:
      ValueError: more rows are needed than ``rows``.
    """
    lengths, group = _groups(offsets, users, max_length)
    ends = offsets[users + 1]
    events, segments, before = [], [], 0
    last = np.zeros(len(users), np.int32)
    for number, width in enumerate(row_lengths(max_length)):
        members = np.flatnonzero(group == number)
        size = lengths[members]
        row, column, needed = assign_rows(size, width)
        given = needed if rows is None else rows[number]
        if needed > given:
            raise ValueError(f"{needed} rows of {width} are needed, {given} given")
        within = np.arange(int(size.sum())) - np.repeat(np.cumsum(size) - size, size)
        cell = np.repeat(row * width + column, size) + within
        event = np.zeros(given * width, np.int32)
        owner = np.full(given * width, len(users), np.int32)
        event[cell] = np.repeat(ends[members] - size, size) + within
        owner[cell] = np.repeat(members, size)
        events.append(event.reshape(given, width))
        segments.append(owner.reshape(given, width))
        last[members] = before + row * width + column + size - 1
        before += given * width
    return PackedRows(tuple(events), tuple(segments), last)
