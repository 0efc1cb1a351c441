"""Writing files so that a kill, a crash or a full disk never leaves half of one."""

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from pdrec_jax.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOENT,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


@contextlib.contextmanager
def write_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the failures of a write that a user can mend into one clear line.

    A full disk or a read-only folder is no bug of ours, and a traceback through a library does not
    say which file was being written. Other failures pass unchanged.

    Args:
        path: The file that the message names.

    Raises:
        UserError: The disk (or the user's quota, or the process's limit) is full, or the place
            refuses the file.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(f"{path}: cannot write, disk full ({error.strerror})") from error
        if error.errno in _REFUSED:
            raise UserError(f"{path}: cannot write ({error.strerror})") from error
        raise


def atomic_write(path: str | os.PathLike[str], fill: Callable[[BinaryIO], object]) -> None:
    """Writes a file as a whole or not at all.

    Whoever reads `path` sees the old content or the new, never a part: the bytes go to a temporary
    file in the same folder, to the disk, and only then take the name.

    Args:
        path: The file to write or replace; its folder must exist.
        fill: Writes the content to an open file.

    Raises:
        UserError: The disk is full or the place cannot be written; `path` is then as it was.
    """
    target = Path(path)
    # Beside the target: os.replace is atomic only within one file system.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    with write_errors(target):
        try:
            with open(temporary, "xb") as file:
                fill(cast(BinaryIO, file))
                file.flush()
                # Without it the rename can reach the disk before the bytes do.
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file as a whole or not at all.

    Args:
        path: The file to write or replace; its folder must exist.
        data: The content.

    Raises:
        UserError: As `atomic_write`.
    """
    atomic_write(path, lambda file: file.write(data))


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes text (UTF-8, line ends as given) as a whole or not at all.

    Args:
        path: The file to write or replace; its folder must exist.
        text: The content.

    Raises:
        UserError: As `atomic_write`.
    """
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_savez(path: str | os.PathLike[str], /, **arrays: np.ndarray) -> None:
    """Writes arrays to an uncompressed .npz file as a whole or not at all.

    Args:
        path: The file to write or replace, suffix included (none is added); its folder must exist.
        **arrays: The arrays by name; a name may hold a slash ("sasrec/full_rank").

    Raises:
        UserError: As `atomic_write`.
        ValueError: An array of Python objects: it would need pickle, which runs code when read.
    """
    _savez(np.savez, path, arrays)


def atomic_savez_compressed(path: str | os.PathLike[str], /, **arrays: np.ndarray) -> None:
    """Does what `atomic_savez` does, in more time and less room.

    Args:
        path: See there.
        **arrays: See there.

    Raises:
        UserError: As `atomic_savez`.
        ValueError: As `atomic_savez`.
    """
    _savez(np.savez_compressed, path, arrays)


def _savez(
    savez: Callable[..., None], path: str | os.PathLike[str], arrays: dict[str, np.ndarray]
) -> None:
    # numpy's stubs take `**arrays` for its own `allow_pickle` keyword too, hence no types of it.
    atomic_write(path, lambda file: savez(file, allow_pickle=False, **arrays))
