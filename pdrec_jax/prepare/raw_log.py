"""Collects a log of any size: an int32 an id, a float64 a time, and each id's text once.

The columns are in memory, or on the disk where the log need not fit there: then the text of the ids
is all that grows with the log.

Letters: E records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdrec_jax.data import scratch
from pdrec_jax.data.columns import Columns, shown
from pdrec_jax.data.scratch import Column
from pdrec_jax.errors import UserError
from pdrec_jax.metric_log import MetricLog
from pdrec_jax.prepare.batches import Batch, Skipped, read_batches
from pdrec_jax.prepare.fields import ID_FAULTS, TIME_FAULTS, to_ids, to_times

_ROWS_TOGETHER = 1 << 20  # whose ids are settled at once, at least
_CANONICAL_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """Ids of the records of a log, each as the place in the sorted list of all.

    Attributes:
        codes: `[E]` int32.
        ids: external ids, int64 where all of them are integers, else an arrow array of text.
    """

    codes: NDArray[np.int32]
    ids: Any

    def __len__(self) -> int:
        return len(self.ids)

    def left(self, used: NDArray[np.bool_]) -> tuple[NDArray[np.int32], Any]:
        """The ids that are left of a log, sorted anew.

        Without the one id that was none, integers are integers, and sort as such. Here and not in
        what reads the log: the main job would number those that it maps as they stand there.

        Args:
            used: `[n]` which ids are left, at least one.

        Returns:
            `[n]` int32, the place of each id among those that are left (any, of one that is not),
            and those: int64 where all of them are integers, else an arrow array of text.
        """
        return _sorted(self.ids, used)


@dataclasses.dataclass(frozen=True, eq=False)
class RawLog:
    """Records in the order of the files.

    Attributes:
        users: of each record.
        items: of each record.
        times: `[E]` float64 as written, or seconds from dates; None for a log without times.
        dates: whether the times were dates.
        read: rows in all, those that were skipped included.
        skipped: rows that could not be used, by what was wrong.
    """

    users: Vocabulary
    items: Vocabulary
    times: NDArray[np.float64] | None
    dates: bool
    read: int
    skipped: Skipped


def read_raw_log(
    paths: Sequence[Path],
    wanted: Columns,
    positions: dict[str, int] | None = None,
    *,
    mapped: bool = False,
) -> RawLog:
    """Reads files one after the other.

    Args:
        paths: the files, of any formats.
        wanted: their columns.
        positions: for text without a header, where each column stands.
        mapped: leave the columns on the disk, see `data.scratch`.

    Returns:
        What can be used of them, and what could not.

    Raises:
        UserError: a file that cannot be read, or not one record that can be used.
    """
    skipped = Skipped()
    collector: Callable[[], _Collector | _Spool] = _Spool if mapped else _Collector
    users, items = collector(), collector()
    times = Column(np.float64) if mapped else _Pieces()
    dates: bool | None = None
    usable = 0
    for good, values, are_dates in usable_batches(paths, wanted, skipped, positions):
        dates = are_dates
        users.add(good[wanted.user])
        items.add(good[wanted.item])
        usable += len(good[wanted.user])
        if values is not None:
            times.add(values)
    read = usable + sum(skipped.values())
    if not usable:
        raise nothing_usable(paths, skipped)
    return RawLog(
        users=users.vocabulary(),
        items=items.vocabulary(),
        times=times.finish() if wanted.time is not None else None,
        dates=bool(dates),
        read=read,
        skipped=skipped,
    )


# Ids by column as arrow dictionary arrays, times, and whether those were dates.
UsableRows = tuple[dict[str, Any], NDArray[np.float64] | None, bool | None]


def usable_batches(
    paths: Sequence[Path],
    wanted: Columns,
    skipped: Skipped,
    positions: dict[str, int] | None = None,
    block: int | None = None,
) -> Iterator[UsableRows]:
    """Reads files one after the other, in pieces that fit the memory.

    Args:
        paths: the files, of any formats.
        wanted: their columns.
        skipped: counts the rows that cannot be used, by what is wrong with them.
        positions: for text without a header, where each column stands.
        block: see `read_batches`.

    Yields:
        The good rows of a batch: ids by column, times as in `RawLog` (None for a log without), and
        whether they are dates, None as long as that is not known.

    Raises:
        UserError: a file that cannot be read.
    """
    dates: bool | None = None
    for path in paths:
        size = path.stat().st_size if path.is_file() else 0
        done = 0
        with MetricLog(None).progress(f"read {path.name}", size >> 10, "KiB") as bar:

            def tell(more: int, bar: Any = bar) -> None:
                nonlocal done
                bar.update(((done + more) >> 10) - (done >> 10))
                done += more

            first = True
            for batch in read_batches(path, wanted, skipped, tell, positions, block):
                good, values, dates = _usable(batch, path, wanted, skipped, dates, first=first)
                first = False
                yield good, values, dates


def nothing_usable(paths: Sequence[Path], skipped: Skipped) -> UserError:
    """The error for files of which not one row can be used."""
    reasons = ", ".join(f"{count:,} rows with {what}" for what, count in skipped.items())
    where = ", ".join(str(path) for path in paths[:3])
    return UserError(f"{where}: no record that can be used ({reasons or 'no rows'})")


def _usable(
    batch: Batch,
    path: Path,
    wanted: Columns,
    skipped: Skipped,
    dates: bool | None,
    *,
    first: bool,
) -> UsableRows:
    """The good rows of a batch, the first of its file or not: ids, times, and if these are dates.

    Each file says of itself which they are, and must agree with those before it.
    """
    import pyarrow as pa

    found: dict[str, Any] = {}
    good: Any = None
    values = None
    words: tuple[str, ...]
    for name in wanted.names:
        where = f"{path}: field {shown(name)}"
        if name == wanted.time:
            moments = to_times(batch[name], where, None if first else dates)
            if dates not in (None, moments.dates) and (moments.faults == 0).any():
                kinds = ("dates", "numbers") if moments.dates else ("numbers", "dates")
                raise UserError(f"{where}: {kinds[0]}, after {kinds[1]}; prepare them apart")
            # A file without one time that can be read says nothing of the next.
            dates = moments.dates if (moments.faults == 0).any() else dates
            faults, words, values = moments.faults, TIME_FAULTS, moments.values
        else:
            ids = to_ids(batch[name], where)
            faults, words, found[name] = ids.faults, ID_FAULTS, ids.encoded
        good = np.ones(faults.size, bool) if good is None else good
        # A row counts once, by the first of its faults.
        counts = np.bincount(faults[good], minlength=len(words))
        for fault in np.flatnonzero(counts[1:]) + 1:
            skipped[f"field {shown(name)}: {words[fault]}"] += int(counts[fault])
        good &= faults == 0
    if not good.all():
        mask = pa.array(good)
        found = {name: column.filter(mask) for name, column in found.items()}
        values = None if values is None else values[good]
    return found, values, dates


class _Collector:
    """Dictionary arrays, batch by batch, to one vocabulary."""

    def __init__(self) -> None:
        self.chunks: list[Any] = []

    def add(self, encoded: Any) -> None:
        if len(encoded):
            self.chunks.append(encoded)

    def vocabulary(self) -> Vocabulary:
        import pyarrow as pa

        chunked = pa.chunked_array(self.chunks).unify_dictionaries()
        self.chunks = []
        words = chunked.chunk(0).dictionary
        codes = np.concatenate([np.asarray(chunk.indices) for chunk in chunked.chunks])
        del chunked
        place, distinct = _sorted(words, scratch.counts(codes, len(words)) > 0)
        return Vocabulary(place[codes], distinct)


class _Spool:
    """`_Collector` whose codes lie on the disk."""

    def __init__(self) -> None:
        self._codes = Column(np.int32)
        self._chunks: list[Any] = []
        self._words: Any = None
        self._rows = 0

    def add(self, encoded: Any) -> None:
        if not len(encoded):
            return
        self._chunks.append(encoded)
        self._rows += len(encoded)
        # As many rows as there are words, so that looking at all words adds little to a row.
        if self._rows > max(_ROWS_TOGETHER, 0 if self._words is None else len(self._words)):
            self._settle()

    def _settle(self) -> None:
        """Gives the codes of the chunks their place in one list of words, which only grows."""
        import pyarrow as pa

        if not self._chunks:
            return
        known = []
        if self._words is not None:
            # The first chunk's words keep their places.
            none = pa.array([0], pa.int32())
            known = [pa.DictionaryArray.from_arrays(none, self._words)]
        chunked = pa.chunked_array([*known, *self._chunks]).unify_dictionaries()
        self._words = chunked.chunk(0).dictionary
        for chunk in chunked.chunks[len(known) :]:
            self._codes.add(np.asarray(chunk.indices))
        self._chunks, self._rows = [], 0

    def vocabulary(self) -> Vocabulary:
        self._settle()
        raw, codes = self._codes.finish(), Column(np.int32)
        place, distinct = _sorted(self._words, scratch.counts(raw, len(self._words)) > 0)
        for begin in range(0, len(raw), scratch.EVENTS_A_BLOCK):
            codes.add(place[raw[begin : begin + scratch.EVENTS_A_BLOCK]])
        return Vocabulary(codes.finish(), distinct)


class _Pieces:
    """`scratch.Column` in memory."""

    def __init__(self) -> None:
        self._pieces: list[NDArray] = []

    def add(self, values: NDArray) -> None:
        self._pieces.append(values)

    def finish(self) -> NDArray:
        return np.concatenate(self._pieces)


def _sorted(words: Any, used: NDArray[np.bool_]) -> tuple[NDArray[np.int32], Any]:
    """The place `[n]` of each word among the ids that are used, and those ids, in order.

    Words are text, or int64.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    # An id that stood there with blanks too is in the list twice, and some only in bad rows.
    distinct = pc.unique(words.filter(pa.array(used)))
    text = not pa.types.is_integer(words.type)
    if text and pc.all(pc.match_substring_regex(distinct, _CANONICAL_INTEGER)).as_py():
        distinct = distinct.cast(pa.int64())
        words = pc.if_else(pa.array(used), words, distinct[0].cast(pa.string()))
        words = words.cast(pa.int64())
    distinct = distinct.take(pc.sort_indices(distinct))
    place = pc.fill_null(pc.index_in(words, value_set=distinct), 0)
    return np.asarray(place).astype(np.int32), distinct
