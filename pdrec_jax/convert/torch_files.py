"""Reads and writes files of torch as dictionaries of NumPy arrays, without torch.

A file of `torch.save` (since version 1.6) is an uncompressed zip archive: `data.pkl` says what is
saved, and `data/KEY` has the numbers of each storage.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from pdrec_jax.convert.inert_pickles import Call, Global, Persistent, follow
from pdrec_jax.data.columns import one_line, shown, unreadable
from pdrec_jax.errors import UserError
from pdrec_jax.files import atomic_write, followed

_MAX_PICKLE = 64 << 20
_MAX_DEPTH = 20  # modules within modules
_MAX_MEMBERS = 100_000  # tensors and modules; a pickle of few bytes can hold one module often
_MAX_NAME = 1_000  # characters
_MAX_AXES = 32
Named = dict[str, Any]
_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_TENSOR = frozenset(
    Global("torch._utils", name) for name in ("_rebuild_tensor", "_rebuild_tensor_v2")
)
_PARAMETER = frozenset(
    Global("torch._utils", name) for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")
)
# Under these keys training scripts keep a state dict beside other things.
_WITHIN = ("state_dict", "model_state_dict", "model")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict or of a whole pickled module.

    Nothing of what the file's pickle names is imported or called. Of a module its parameters and
    buffers are read, by the names that its state dict would have.

    Args:
        path: file of `torch.save`.

    Returns:
        Arrays by name; those of lower precision as they are.

    Raises:
        UserError: the file cannot be read, is broken, or holds something else.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
            if start[:2] != b"PK":
                raise UserError(
                    f"{path}: not a file of torch.save since torch 1.6; load it with torch and "
                    "save it again"
                )
            with zipfile.ZipFile(file) as archive:
                return _Reader(path, archive).tensors()
    except OSError as error:
        raise unreadable(path, error) from error
    except (
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: a broken file ({one_line(error)})") from error


class _Reader:
    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self.path, self.archive = path, archive
        names = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
        if len(names) != 1:
            raise UserError(f"{path}: no file of torch.save, which has one data.pkl")
        self.root = names[0].removesuffix("data.pkl")
        if f"{self.root}byteorder" in archive.namelist():
            order = self.member("byteorder", 16)
            if order != b"little":
                raise UserError(f"{path}: numbers with the highest byte first are not read")
        self.storages: dict[str, np.ndarray] = {}

    def member(self, name: str, most: int) -> bytes:
        """The content of a member; torch compresses none, so none can grow."""
        try:
            info = self.archive.getinfo(self.root + name)
        except KeyError:
            raise UserError(f"{self.path}: {name} is missing in it") from None
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
            raise UserError(f"{self.path}: {name} has {info.file_size:,} bytes, or is compressed")
        return self.archive.read(info)

    def tensors(self) -> dict[str, np.ndarray]:
        found: Any = follow(self.member("data.pkl", _MAX_PICKLE), str(self.path))
        if isinstance(found, Call):
            named = _of_module(found)
        else:
            named = found if isinstance(found, dict) else {}
            for key in _WITHIN:
                inner = named.get(key)
                if isinstance(inner, dict):
                    named = inner
                elif isinstance(inner, Call) and not inner.names(_TENSOR | _PARAMETER):
                    named = _of_module(inner)
        arrays = {
            _name(name): self.array(_name(name), value)
            for name, value in named.items()
            if _tensor_call(value) is not None
        }
        if not arrays:
            raise UserError(f"{self.path}: a state dict or a module is expected")
        return arrays

    def array(self, name: str, value: Any) -> np.ndarray:
        call = _tensor_call(value)
        assert call is not None
        try:
            storage, offset, size, stride = call.arguments[:4]
            flat = self.storage(storage)
            if max(len(size), len(stride)) > _MAX_AXES:
                raise ValueError("of too many dimensions")
            shape, steps = tuple(map(int, size)), tuple(map(int, stride))
            offset = int(offset)
        except (TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.path}: {name}: not a tensor ({one_line(error)})") from error
        known = (offset, *shape, *steps)
        inside = len(shape) == len(steps) and min(known) >= 0 and max(known) < 1 << 63
        numbers = math.prod(shape) if inside else 0
        if numbers:
            last = offset + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
            # A stride of 0 would make much of little.
            inside = last < flat.size and numbers <= flat.size
        if not inside:
            raise UserError(f"{self.path}: {name}: reaches beyond its storage")
        if not numbers:
            return np.empty(shape, flat.dtype)
        strides = tuple(step * flat.itemsize for step in steps)
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, strides).copy()

    def storage(self, persistent: Any) -> np.ndarray:
        kind, key, numbers = _storage_of(persistent)
        dtype = _DTYPES.get(kind)
        if dtype is None:
            raise UserError(f"{self.path}: numbers of the kind {shown(kind)} are not read")
        if key not in self.storages:
            data = self.member(f"data/{key}", numbers * dtype.itemsize)
            if len(data) != numbers * dtype.itemsize:
                raise UserError(f"{self.path}: data/{key} is cut short")
            self.storages[key] = np.frombuffer(data, dtype)
        if self.storages[key].dtype != dtype:
            raise UserError(f"{self.path}: data/{key} is of two kinds")
        return self.storages[key]


def _storage_of(persistent: Any) -> tuple[str, str, int]:
    if not isinstance(persistent, Persistent):
        raise ValueError("no storage")
    tag, kind, key, _, numbers = persistent.value
    if tag != "storage" or not isinstance(kind, Global) or not isinstance(key, str):
        raise ValueError("no storage")
    return kind.name, key, int(numbers)


def _tensor_call(value: Any) -> Call | None:
    """The call that would make a tensor, without the parameter around it."""
    if isinstance(value, Call) and value.names(_PARAMETER) and value.arguments:
        value = value.arguments[0]
    return value if isinstance(value, Call) and value.names(_TENSOR) else None


def _of_module(module: Call) -> Named:
    """What the state dict of a module would hold."""
    found: Named = {}
    met = 0

    def visit(module: Call, prefix: str, above: frozenset[int]) -> None:
        nonlocal met
        state = module.state
        # A module within itself would have no end.
        if not isinstance(state, dict) or id(module) in above or len(above) > _MAX_DEPTH:
            return
        inner = state.get("_modules")
        children = inner if isinstance(inner, dict) else {}
        groups = [state.get(group) for group in ("_parameters", "_buffers")]
        members = [group for group in groups if isinstance(group, dict)]
        # One that is within each of two, which both are within each of two, and so on, would have
        # hardly any.
        met += 1 + len(children) + sum(map(len, members))
        if met > _MAX_MEMBERS:
            raise ValueError("modules of too many members")
        for group in members:
            found.update({_name(name, prefix): value for name, value in group.items()})
        for name, child in children.items():
            if isinstance(child, Call):
                visit(child, f"{_name(name, prefix)}.", above | {id(module)})

    visit(module, "", frozenset())
    return found


def _name(key: Any, prefix: str = "") -> str:
    """A tensor's name: of a state dict it is text, but what a pickle has as a key is not known."""
    if isinstance(key, str | bytes) and len(key) > _MAX_NAME:
        raise ValueError(f"a name of {len(key):,} characters")
    return f"{prefix}{key}"


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict that `torch.load` reads, also with `weights_only`.

    Args:
        path: file to write, as a whole or not at all.
        arrays: by name, float32.

    Raises:
        UserError: the disk is full or refuses the file.
    """
    root = "archive/"

    def fill(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

            def add(name: str, data: bytes) -> None:
                # A time of its own would make two files of equal content differ.
                archive.writestr(zipfile.ZipInfo(root + name, (1980, 1, 1, 0, 0, 0)), data)

            add("data.pkl", _pickled(arrays))
            add("byteorder", b"little")
            for key, array in enumerate(arrays.values()):
                add(f"data/{key}", np.ascontiguousarray(array, "<f4").tobytes())
            add("version", b"3\n")

    atomic_write(followed(path), fill)


def _pickled(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The pickle (protocol 2) of an OrderedDict of tensors."""
    ordered = b"ccollections\nOrderedDict\n)R"

    def text(value: str) -> bytes:
        data = value.encode()
        return b"X" + struct.pack("<I", len(data)) + data

    def integer(value: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", value)

    def integers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(integer, values)) + b"t"

    parts = [b"\x80\x02", ordered, b"("]
    for key, (name, array) in enumerate(arrays.items()):
        strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        parts += [
            text(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            text("storage"),
            b"ctorch\nFloatStorage\n",
            text(str(key)),
            text("cpu"),
            integer(array.size),
            b"tQ",
            integer(0),
            integers(array.shape),
            integers(strides),
            b"\x89",  # no gradient
            ordered,
            b"tR",
        ]
    return b"".join([*parts, b"u."])
