"""Columns as long as a log that lie on the disk instead of in memory, gone with their process.

What is made of a log that is mapped (its training part, its negatives' keys, its vectors) is as
long as the log, so it is made in blocks of users, written to files without a name in the system's
temporary directory ($TMPDIR chooses another) and mapped. The system takes such pages back when
memory is short, and the files when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np
from numpy.typing import NDArray

from pdrec_jax.errors import UserError
from pdrec_jax.files import write_errors

EVENTS_A_BLOCK = 1 << 20


def directory() -> str:
    """The directory of temporary files: $TMPDIR, or the system's where that is not set.

    Raises:
        UserError: there is none. Python would take another one, and that may be in memory.
    """
    named = os.environ.get("TMPDIR")
    if named:
        if not os.path.isdir(named):
            raise UserError(f"$TMPDIR: {named} is no directory")
        return named
    try:
        return tempfile.gettempdir()
    except OSError as error:
        raise UserError(
            "no directory for temporary files can be written; name one with TMPDIR=DIR"
        ) from error


class Column:
    """A column that grows on the disk, and is gone if it is left unfinished.

    Args:
        dtype: of its values.

    Raises:
        UserError: the temporary directory is full or cannot be written.
    """

    def __init__(self, dtype: type) -> None:
        self._file = _file()
        self._dtype = np.dtype(dtype)
        self._size = 0

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            with contextlib.suppress(OSError):  # of a full disk, which was told of
                self._file.close()

    def add(self, values: NDArray) -> None:
        """Appends `[n]` values.

        Raises:
            UserError: the disk is full.
        """
        values = np.ascontiguousarray(values, self._dtype)
        with write_errors(directory()):
            self._file.write(values.data)
        self._size += values.size

    def finish(self) -> NDArray:
        """The column, mapped and read-only; nothing can be added any more.

        Raises:
            UserError: the disk is full.
        """
        with write_errors(directory()):
            self._file.flush()
        return _mapped(self._file, self._dtype, self._size, "r")


def zeros(size: int, dtype: type) -> NDArray:
    """`[size]` zeros on the disk, mapped, that can be written to.

    Raises:
        UserError: the temporary directory is full or cannot be written.
    """
    file, bytes_ = _file(), size * np.dtype(dtype).itemsize
    try:
        with write_errors(directory()):
            if bytes_ and hasattr(os, "posix_fallocate"):
                # A file with holes would end the process when a full disk cannot fill one.
                os.posix_fallocate(file.fileno(), 0, bytes_)
            else:
                file.truncate(bytes_)
    except UserError:
        file.close()
        raise
    return _mapped(file, np.dtype(dtype), size, "r+")


def is_mapped(array: NDArray) -> bool:
    """Whether an array is a view of a mapped file."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        if isinstance(owner, np.memmap):
            return True
        owner = owner.base
    return False


def counts(values: NDArray, size: int) -> NDArray[np.int64]:
    """How often each number occurs, counted in blocks, of which alone a copy is made.

    Args:
        values: `[n]` whole numbers in `0..size - 1`.
        size: of the result.

    Returns:
        `[size]` int64.
    """
    found = np.zeros(size, np.int64)
    for begin in range(0, len(values), EVENTS_A_BLOCK):
        found += np.bincount(values[begin : begin + EVENTS_A_BLOCK], minlength=size)
    return found


def user_blocks(
    offsets: NDArray[np.int64], events: int = EVENTS_A_BLOCK
) -> Iterator[tuple[int, int]]:
    """Cuts the users of compressed rows into neighbours with about a million events together.

    Args:
        offsets: `[U+1]`.
        events: of a block at most, but for a single user who has more.

    Yields:
        The first user, and the one after the last.
    """
    begin, users = 0, len(offsets) - 1
    while begin < users:
        last = int(np.searchsorted(offsets, offsets[begin] + events, side="right")) - 1
        end = min(max(begin + 1, last), users)
        yield begin, end
        begin = end


def _file() -> IO[bytes]:
    with write_errors(directory()):
        return tempfile.TemporaryFile(prefix="pdrec-", dir=directory())


def _mapped(file: IO[bytes], dtype: np.dtype, size: int, mode: str) -> NDArray:
    with file:  # the map outlives it
        if not size:  # nothing cannot be mapped
            return np.zeros(0, dtype)
        return np.memmap(file, dtype, mode, shape=(size,))  # type: ignore[call-overload]
