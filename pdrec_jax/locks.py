"""One run at a time in a directory: a lock that dies with its process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from pdrec_jax.errors import UserError, warn
from pdrec_jax.files import write_errors

NAME = ".lock"
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keeps other runs out of a directory until the end of the block.

    The system holds the lock for the open file, so it ends with the process however that ends; a
    file that a killed process left locks nobody out.

    Args:
        directory: it exists.

    Raises:
        UserError: another process holds it, or the file cannot be made.
    """
    path = directory / NAME
    descriptor = _take(path)
    try:
        with contextlib.suppress(OSError):  # who it was is told as far as the disk allows
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            # While it is still held: later it could be somebody else's.
            path.unlink()
        os.close(descriptor)


def require_unlocked(directory: Path) -> None:
    """Checks that no other process holds a directory; makes nothing.

    Raises:
        UserError: one does.
    """
    try:
        descriptor = os.open(directory / NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # what is wrong with the place is told where it is used
    try:
        # Shared: this is no claim of its own, and a file that is open for reading alone can have no
        # other on a network file system.
        _try(descriptor, directory, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _take(path: Path) -> int:
    while True:
        with write_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _try(descriptor, path.parent, fcntl.LOCK_EX)
            # Its former holder may have removed the file between the two calls.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _try(descriptor: int, directory: Path, kind: int) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 300, 0).decode(errors="replace").strip()
        raise UserError(
            f"{directory}: another run is at work in it ({holder or 'which says no more'}); wait "
            "for it, end it, or choose another directory"
        ) from error
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        warn(f"{directory}: no locks here, two runs at once would not be noticed")
