"""A log on the disk that need not fit in memory: a directory of columns, which are mapped.

One `.npy` file a column, in the layout of `Interactions`: whole users, one after the other, in the
order that every process knows them in. Reading a user's events touches the pages that they lie on
and no others, so any number of processes may each read what its batches ask for, and the log needs
no cutting into shards. The directory is sealed when it is written (`manifest`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from pdrec_jax import manifest
from pdrec_jax.data.columns import Ids
from pdrec_jax.data.interactions import Interactions
from pdrec_jax.errors import UserError
from pdrec_jax.files import atomic_write_text, beside, write_errors

_ABOUT, _VERSION = "log.json", 1
# Ids are of any dtype but objects: numbers or text.
_DTYPES: dict[str, type | None] = {
    "offsets": np.int64,
    "items": np.int32,
    "times": np.float64,
    "user_ids": None,
    "item_ids": None,
}


class ColumnFile:
    """Writes a one-dimensional `.npy` file whose length is known at its end alone.

    Args:
        path: of the file.
        dtype: of its values.
    """

    def __init__(self, path: Path, dtype: np.dtype | type) -> None:
        self._path, self._dtype, self._size = path, np.dtype(dtype), 0
        with write_errors(path):
            self._file = path.open("xb")
            self._header()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            with contextlib.suppress(OSError):  # of a full disk, which was told of
                self._file.close()

    def _header(self) -> None:
        # NumPy leaves room for a longer first dimension, so that the header keeps its place.
        np.lib.format.write_array_header_1_0(
            cast(BinaryIO, self._file),
            {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (self._size,),
            },
        )

    def add(self, values: NDArray) -> None:
        """Appends `[n]` values.

        Raises:
            UserError: the disk is full.
        """
        values = np.ascontiguousarray(values, self._dtype)
        with write_errors(self._path):
            self._file.write(values.tobytes())
        self._size += values.size

    def close(self) -> None:
        """Writes how long the column has become.

        Raises:
            UserError: the disk is full.
        """
        with write_errors(self._path):
            self._file.seek(0)
            self._header()
            self._file.close()


def write_mapped(
    directory: Path, blocks: Iterable[Interactions], user_ids: NDArray, item_ids: NDArray
) -> None:
    """Writes a log of one domain, whole or not at all.

    Args:
        directory: to make; it must not be there.
        blocks: the log in blocks of users, in order; their own ids are not looked at.
        user_ids: `[U]` external ids of all of them, int64 or text.
        item_ids: `[I+1]` external ids, entry 0 for the padding item.

    Raises:
        UserError: the disk is full, or the place refuses the directory.
    """
    temporary = beside(directory)
    with write_errors(directory):
        temporary.mkdir()
    try:
        columns: dict[str, ColumnFile] = {}
        offsets = [np.zeros(1, np.int64)]

        def add(name: str, values: NDArray) -> None:
            if name not in columns:
                columns[name] = ColumnFile(temporary / f"{name}.npy", _DTYPES[name] or values.dtype)
            columns[name].add(values)

        for block in blocks:
            offsets.append(block.offsets[1:] + offsets[-1][-1])
            add("items", block.items)
            if block.times is not None:
                add("times", block.times)
        add("offsets", np.concatenate(offsets))
        add("user_ids", user_ids)
        add("item_ids", item_ids)
        for column in columns.values():
            column.close()
        about = {"version": _VERSION, "columns": sorted(columns)}
        atomic_write_text(temporary / _ABOUT, json.dumps(about) + "\n")
        with write_errors(directory):
            manifest.seal(temporary)
            os.replace(temporary, directory)
            manifest.sync(directory.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_mapped(
    directory: str | Path, *, ids: Ids = "any", contents: bool | None = None
) -> Interactions:
    """Maps a log that `write_mapped` wrote; no column is read into memory.

    The first process of a run holds the files against their checksums, the others look at their
    sizes alone.

    Args:
        directory: of the log.
        ids: `integer` demands integers from 1.
        contents: whether the files are held against their checksums; None as above.

    Returns:
        The log, its arrays mapped and read-only.

    Raises:
        UserError: a file is missing, damaged or of another length, or a later version wrote it.
    """
    directory = Path(directory)
    if contents is None:
        # Here, since `prepare` need not wait for JAX, nor for its device.
        from pdrec_jax import processes

        contents = processes.is_first()

    fault = manifest.fault(directory, contents=contents)
    if fault is not None:
        raise UserError(
            f"{directory}: {fault}; prepare the log again (python -m pdrec_jax.prepare)"
        )
    try:
        about = json.loads((directory / _ABOUT).read_bytes())
        version, names = about["version"], set(about["columns"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{directory}: {_ABOUT} of a mapped log is expected ({error})") from error
    if version != _VERSION:
        raise UserError(
            f"{directory}: a mapped log of version {_VERSION} is expected, not {version}; prepare "
            "the log again with this version of pdrec_jax"
        )
    columns = {name: _mapped(directory, name) for name in _DTYPES if name in names}
    if missing := _DTYPES.keys() - {"times"} - columns.keys():
        raise UserError(f"{directory}: no column {min(missing)}")
    for name in ("user_ids", "item_ids") if ids == "integer" else ():
        own = columns[name] if name == "user_ids" else columns[name][1:]
        if own.dtype.kind != "i" or own.min(initial=1) < 1:
            raise UserError(f"{directory / name}.npy: integers from 1 are expected")
    try:
        return Interactions(
            offsets=columns["offsets"],
            items=columns["items"],
            times=columns.get("times"),
            domains=None,
            user_ids=columns["user_ids"],
            item_ids=columns["item_ids"],
            num_target_items=columns["item_ids"].size - 1,
        )
    except UserError as error:
        raise UserError(f"{directory}: {error}") from error


def checksum(directory: Path) -> str:
    """SHA-256 of the seal of a mapped log, which holds the checksums of its files.

    Raises:
        UserError: there is none.
    """
    try:
        return hashlib.sha256((directory / manifest.NAME).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"{directory}: {manifest.NAME} cannot be read ({error.strerror})"
        ) from error


def _mapped(directory: Path, name: str) -> NDArray:
    path = directory / f"{name}.npy"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: a column in .npy form is expected ({error})") from error
    expected = _DTYPES[name]
    if array.ndim != 1 or (expected is not None and array.dtype != expected):
        what = np.dtype(expected).name if expected else "ids"
        raise UserError(
            f"{path}: a column of {what} is expected, found {array.dtype} {array.shape}"
        )
    return array
