"""Histories to recommend for, as blocks of users: from a list of ids, files, or Python.

Letters: B users of a block, E events.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pdrec_jax.data.catalogue import Catalogue, IdIndex
from pdrec_jax.data.columns import shown, unreadable
from pdrec_jax.data.compressed import gathered, offsets_of
from pdrec_jax.data.interactions import Interactions
from pdrec_jax.errors import UserError

_LONGEST_ID = 255


@dataclasses.dataclass(frozen=True, eq=False)
class Histories:
    """What some users did, as far as the items are known.

    Attributes:
        users: `[B]` external ids as text.
        offsets: `[B+1]` int64; user `b` owns the events `offsets[b]:offsets[b+1]`, maybe none.
        items: `[E]` int32 items of the catalogue, in order of time.
        times: `[E]` float64, non-decreasing within a user; None where they are not known.
    """

    users: NDArray
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    times: NDArray[np.float64] | None

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`[B]` int64, events of each user."""
        return np.diff(self.offsets)

    def select(self, users: NDArray[np.int64]) -> Histories:
        """Keeps some users, in the order of these indices."""
        offsets, events = gathered(self.offsets[users], self.lengths[users])
        times = None if self.times is None else self.times[events]
        return Histories(self.users[users], offsets, self.items[events], times)


@dataclasses.dataclass
class Unknown:
    """Ids that nobody knows, of items or of users: how many times one was met, and one of them."""

    count: int = 0
    example: str = ""

    def add(self, count: int, example: str) -> None:
        """Counts some more."""
        if count and not self.count:
            self.example = example
        self.count += count


@dataclasses.dataclass
class Faults:
    """What was met in the input that is no use; filled as it is read.

    Attributes:
        items: events with an item that the run was not trained on.
        users: users that are not in the run's log.
        rows: rows of files that cannot be used, by what is wrong with them.
    """

    items: Unknown = dataclasses.field(default_factory=Unknown)
    users: Unknown = dataclasses.field(default_factory=Unknown)
    rows: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def group(
    users: NDArray,
    owners: NDArray[np.int64],
    items: NDArray[np.int32],
    times: NDArray[np.float64] | None,
) -> Histories:
    """Groups events by user and puts each user's in order of time, ties as they stood.

    Args:
        users: `[B]` external ids as text.
        owners: `[E]` indices into them.
        items: `[E]`, 0 for an item that is not known, which is left out.
        times: `[E]`, or None: then the events stand in order.
    """
    known = items > 0
    owners, items = owners[known], items[known]
    if times is not None:
        times = times[known]
        order = np.lexsort((times, owners))
        times = times[order]
    else:
        order = np.argsort(owners, kind="stable")
    counts = np.bincount(owners, minlength=len(users))
    offsets = offsets_of(counts)
    return Histories(users, offsets, items[order], times)


def from_ids(
    users: NDArray,
    histories: Sequence[Sequence[object]],
    times: Sequence[Sequence[float]] | None,
    catalogue: Catalogue,
    faults: Faults,
) -> Histories:
    """Makes histories of lists of external item ids.

    Args:
        users: `[B]` external ids as text.
        histories: of each, the ids of its items, integers or text.
        times: of each, the times of its events; None where the items stand in order.
        catalogue: of the run.
        faults: counts what is not known.

    Raises:
        UserError: a user's times are not as many as its items, or not finite numbers.
    """
    lengths = np.array([len(history) for history in histories], np.int64)
    moments = None
    if times is not None:
        given = [len(some) for some in times]
        if given != lengths.tolist():
            raise UserError("times: one for each item of each history is expected")
        flat = [t for some in times for t in some]
        found = np.zeros(0)
        with contextlib.suppress(ValueError):  # lists of different lengths among the times
            found = np.array(flat)
        # Of text and of dates float64 could be made too, in a unit that nobody has named.
        if found.shape != (len(flat),) or found.dtype.kind not in "iuf":
            raise UserError("times: finite numbers are expected")
        moments = found.astype(np.float64)
        if not np.isfinite(moments).all():
            raise UserError("times: finite numbers are expected")
    text = np.array([str(item).strip() for history in histories for item in history], dtype=str)
    items = catalogue.find(text) if text.size else np.zeros(0, np.int32)
    strange = np.flatnonzero(items == 0)
    faults.items.add(strange.size, str(text[strange[0]]) if strange.size else "")
    return group(users, np.repeat(np.arange(len(lengths)), lengths), items, moments)


class UsersOfLog:
    """Histories of users by their id in a log.

    Args:
        log: all that the users did.
    """

    def __init__(self, log: Interactions) -> None:
        self._log = log
        self._index = IdIndex(log.user_ids)

    def histories(self, wanted: NDArray, faults: Faults) -> Histories:
        """Looks users up.

        Args:
            wanted: `[B]` text.
            faults: counts who is not known; they have no events.

        Returns:
            Histories in that order.
        """
        place = self._index.find(wanted)
        strange = np.flatnonzero(place < 0)
        faults.users.add(strange.size, str(wanted[strange[0]]) if strange.size else "")
        log = self._log
        lengths = np.where(place >= 0, log.offsets[place + 1] - log.offsets[place], 0)
        offsets, events = gathered(log.offsets[place], lengths)
        times = None if log.times is None else log.times[events]
        return Histories(wanted, offsets, log.items[events], times)

    def all(self, block: int) -> Iterator[NDArray]:
        """Yields the ids of all users as text, a block at a time."""
        for begin in range(0, self._log.num_users, block):
            yield self._log.user_ids[begin : begin + block].astype(str)


def read_ids(path: Path, block: int) -> Iterator[NDArray]:
    """Reads a list of ids, one a line; blank lines and blanks around an id are ignored.

    Args:
        path: UTF-8 text.
        block: ids at a time.

    Yields:
        Text `[B]`.

    Raises:
        UserError: with the file and the row; a file without an id too.
    """
    found: list[str] = []
    row, empty = 0, True
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=None) as file:
            while line := file.readline(_LONGEST_ID + 2):
                row += 1
                text = line.strip()
                cut = len(line) == _LONGEST_ID + 2 and not line.endswith("\n")
                if cut or len(text) > _LONGEST_ID:
                    raise UserError(
                        f"{path}: row {row}: longer than {_LONGEST_ID}, an id is expected"
                    )
                if "\0" in text or not _is_unicode(text):
                    raise UserError(f"{path}: row {row}: {shown(text)} is not UTF-8 text")
                if text:
                    found.append(text)
                if len(found) == block:
                    yield np.array(found)
                    found, empty = [], False
    except OSError as error:
        raise unreadable(path, error) from error
    if found:
        yield np.array(found)
    elif empty:
        raise UserError(f"{path}: no ids, one a line is expected")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
