"""Files of a run, which are written whole or not at all, and told in a line where damaged."""

import contextlib
import ctypes
import errno
import glob
import json
import os
import shutil
import struct
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from pdrec_jax import interrupts
from pdrec_jax.errors import UserError

_ASIDE = ".old"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {
    errno.EACCES,
    errno.EBUSY,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOENT,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EROFS,
    errno.EXDEV,
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


def beside(path: Path) -> Path:
    """A new name next to a file or folder, for what takes the place of it when it is whole.

    Not in the folder of temporary files: ``os.replace`` is atomic only within one file system.
    """
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def atomic_write(path: str | os.PathLike[str], fill: Callable[[BinaryIO], object]) -> None:
    """Writes a file as a whole or not at all.

    Whoever reads `path` sees the old content or the new, never a part: the bytes go to a temporary
    file in the same folder, to the disk, and only then take the name.

    Args:
        path: The file to write or replace; its folder must exist. See ``followed`` for links.
        fill: Writes the content to an open file.

    Raises:
        UserError: The disk is full or the place cannot be written; `path` is then as it was.
    """
    target = Path(path)
    if not target.name:
        raise UserError(f"{path}: the name of a file is expected")
    temporary = beside(target)
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


def followed(path: Path) -> Path:
    """Where a file goes that the user names; whoever put a link there wants it to stay.

    Files of a run are written in place of a link instead: a copy of a run may be made of links.

    Args:
        path: As it was given.

    Returns:
        What the link leads to, or the path as it is.
    """
    return Path(os.path.realpath(path)) if path.is_symlink() else path


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

    What UTF-8 cannot hold, as a byte of a file's name that is no text, is written as an escape.

    Args:
        path: The file to write or replace; its folder must exist.
        text: The content.

    Raises:
        UserError: As `atomic_write`.
    """
    atomic_write_bytes(path, text.encode("utf-8", "backslashreplace"))


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


def require_place(flag: str, out: Path) -> None:
    """Checks that a file has a folder to be written to, before the work that fills it.

    Args:
        flag: that names `out`.
        out: the file to write; it may not be there yet.

    Raises:
        UserError: it is a directory, or its folder is missing.
    """
    with write_errors(out):
        if out.is_dir():
            raise UserError(f"{flag}: {out}: is a directory, a file is expected")
        folder = followed(out).parent
        if not folder.is_dir():
            raise UserError(f"{flag}: {out}: cannot write ({folder} is no directory)")


def require_no_input(flag: str, out: Path, inputs: Mapping[str, Iterable[Path]]) -> None:
    """Checks that a file to write is none of those that are read, by whatever name or link.

    Args:
        flag: that names `out`.
        out: the file to write; it may not be there yet.
        inputs: files that are read, by what names them.

    Raises:
        UserError: it is one of them.
    """
    for name, paths in inputs.items():
        for path in paths:
            try:
                same = out.samefile(path)
            except OSError:  # one of the two is not there, which is for its reader or writer to say
                continue
            if same:
                raise UserError(
                    f"{flag}: {out}: is an input too ({name}), which it would overwrite; another "
                    "file is expected"
                )


def require_outside(flag: str, out: Path, run: Path) -> None:
    """Checks that what is to be written is not within the directory of a run, nor holds it.

    What lies there is taken for the run's own: the same command would refuse to replace it.

    Args:
        flag: that names `out`.
        out: the file or directory to write; it may not be there yet.
        run: directory of the run.

    Raises:
        UserError: it is within it, or holds it.
    """
    require_not_within(flag, out, run)
    whole = run.resolve()
    for place in _places(out):
        if whole.is_relative_to(place):
            raise UserError(f"{flag}: {out}: holds the run {run}; name a place beside it")


def require_not_within(flag: str, out: Path, run: Path) -> None:
    """The half of ``require_outside`` for files that leave what is beside them alone.

    Raises:
        UserError: `out` is within the directory of the run.
    """
    for place in _places(out):
        if place.is_relative_to(run.resolve()):
            raise UserError(f"{flag}: {out}: is within the run {run}; name a place outside it")


def _places(out: Path) -> tuple[Path, Path]:
    """Where something is, and where its name is: a link within a run is one of its files too."""
    return out.resolve(), out.parent.resolve() / out.name


def require_elsewhere(out: Path) -> None:
    """Checks that a directory that is to be replaced is not the one that a command is run in.

    Whoever runs it would be left in a directory that is gone.

    Raises:
        UserError: it is, or holds it.
    """
    if Path.cwd().is_relative_to(out.resolve()):
        raise UserError(f"{out}: the command is run there; name another directory")


def replace_directory(new: Path, old: Path) -> None:
    """Gives a directory the name of another one, which goes, or leaves that as it was.

    A signal waits until it is done. Where the system can exchange two names, a kill at any moment
    leaves one of the two under the name. Elsewhere it can leave none: the former one then lies
    beside it, and the next call finds it.

    Args:
        new: A directory beside the other one.
        old: It may be missing.
    """
    with interrupts.deferred():
        _put_back(old)
        if not old.exists() or not any(old.iterdir()):
            os.replace(new, old)
            return
        if _exchange(new, old):
            shutil.rmtree(new, ignore_errors=True)
            return
        aside = old.with_name(f"{new.name}{_ASIDE}")
        os.replace(old, aside)
        try:
            os.replace(new, old)
        except BaseException:
            os.replace(aside, old)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names at once; False where the system or its file system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux, which alone has the call
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _put_back(place: Path) -> None:
    """Gives a name back to the directory that a kill between two renames has left beside it."""
    for aside in sorted(place.parent.glob(f".{glob.escape(place.name)}.*.tmp{_ASIDE}")):
        if place.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(aside, place)
        # What should have taken the name then.
        shutil.rmtree(aside.with_name(aside.name.removesuffix(_ASIDE)), ignore_errors=True)


def expanded(path: str, what: str) -> Path:
    """Puts a home directory in place of ``~`` or ``~user``.

    Args:
        path: As the user has written it.
        what: Names it in the message.

    Raises:
        UserError: There is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{what}: {path}: no such home directory") from error


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turns the failures of a read into one line.

    Args:
        path: The file or folder that the message names.

    Raises:
        UserError: The system refuses it.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """Reads a JSON object.

    Args:
        path: The file; may be missing.

    Returns:
        The object; None where there is no file.

    Raises:
        UserError: The file cannot be read or holds something else.
    """
    if not path.is_file():
        return None
    try:
        with read_errors(path):
            found = json.loads(path.read_bytes().decode())
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: JSON is expected ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: a JSON object is expected")
    return found


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of an .npz file; no Python objects, which would run code.

    Args:
        path: The file; may be missing.

    Returns:
        The arrays by name; none where there is no file.

    Raises:
        UserError: The file cannot be read or holds something else.
    """
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (
        ValueError,
        OSError,
        EOFError,
        # An array file without an archive around it: one of these two, by the version of Python.
        AttributeError,
        TypeError,
        KeyError,
        MemoryError,
        NotImplementedError,
        RuntimeError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: arrays in .npz form are expected ({reason})") from error
