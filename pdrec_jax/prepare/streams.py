"""Opens a log's files as streams: unpacked on the way, never in memory as a whole."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pdrec_jax.data.columns import HARMLESS, LARGEST_RATIO, one_line, too_much, unreadable
from pdrec_jax.errors import UserError

FORMATS = (".inter", ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
_PACKED = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}

# What the decoder makes of bytes that are no UTF-8 text.
_NO_TEXT = re.compile("[\udc80-\udcff]")


def split_suffix(path: Path) -> tuple[str, str | None]:
    """Format and packing of a file by its name.

    Args:
        path: the file.

    Returns:
        A member of `FORMATS`, and `gzip`, `zstd` or None.

    Raises:
        UserError: the name tells no format.
    """
    name = path.name.lower()
    packing = next((_PACKED[end] for end in _PACKED if name.endswith(end)), None)
    if packing is not None:
        name = name.rpartition(".")[0]
    for suffix in FORMATS:
        if name.endswith(suffix) and not (suffix == ".parquet" and packing):
            return suffix, packing
    known = ", ".join(FORMATS[:-1])
    raise UserError(
        f"{path}: unknown suffix, one of {known} (each also with .gz or .zst) or .parquet is "
        "expected"
    )


class Unpacked(io.RawIOBase):
    """The unpacked bytes of a file, read from the start to the end.

    Args:
        path: file to read.
        packing: `gzip`, `zstd` or None.
        progress: is told how many more bytes of the file were read.

    Raises:
        UserError: from here and from `read`, the file cannot be read, is broken, or unpacks to so
            much that it must have been made for that.
    """

    def __init__(self, path: Path, packing: str | None, progress: Callable[[int], None]):
        import pyarrow as pa

        super().__init__()
        self._path, self._packing, self._progress = path, packing, progress
        try:
            # Through Python, for pyarrow takes no name that is no UTF-8 text.
            self._file: Any = path.open("rb")
        except OSError as error:
            raise unreadable(path, error) from error
        self._stream: Any
        if packing == "gzip":
            # Not by pyarrow, which refuses the zeros that tapes and some tools put behind it.
            self._stream = gzip.GzipFile(fileobj=self._file, mode="rb")
        else:
            self._file = pa.PythonFile(self._file, "r")
            self._stream = pa.CompressedInputStream(self._file, packing) if packing else self._file
        self._told = self._given = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1) -> bytes:
        """The next bytes: `size` of them, fewer at the end of the file."""
        import pyarrow as pa

        try:
            found: bytes = self._stream.read(size if size >= 0 else None)
            done = self._file.tell()
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            kind = f"broken {self._packing} file" if self._packing else "cannot be read"
            raise UserError(f"{self._path}: {kind} ({one_line(error)})") from error
        self._progress(done - self._told)
        self._told = done
        self._given += len(found)
        if self._packing and self._given > max(HARMLESS, LARGEST_RATIO * done):
            raise too_much(self._path)
        return found

    def readall(self) -> bytes:
        """All that is left."""
        return self.read()

    def close(self) -> None:
        """Closes the file."""
        if not self.closed:
            self._file.close()
        super().close()


class UnpackedText(Unpacked):
    """The same with a NUL for each byte that is no UTF-8 text, so that nobody stumbles over it.

    pyarrow hands the text of a row that it refuses to Python, which fails on such bytes.
    """

    def __init__(self, path: Path, packing: str | None, progress: Callable[[int], None]):
        super().__init__(path, packing, progress)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.quotes = 0  # read so far
        self._ends = {"\n": 0, "\r": 0}
        self._last = "\n"

    @property
    def lines_read(self) -> int:
        """How many lines were read so far, one without an end included, whatever ends lines."""
        return max(self._ends.values()) + (self._last not in self._ends)

    def read(self, size: int = -1) -> bytes:
        """The next bytes: at most `size` of them, none at the end of the file."""
        while True:
            # The decoder may hold back three bytes of a character, and give them the next time.
            chunk = super().read(max(size - 3, 1) if size >= 0 else -1)
            text = self._decoder.decode(chunk, final=not chunk)
            if text or not chunk:
                break
        self.quotes += text.count('"')
        for end in self._ends:
            self._ends[end] += text.count(end)
        self._last = text[-1:] or self._last
        try:
            return text.encode()
        except UnicodeEncodeError:
            return _NO_TEXT.sub("\0", text).encode()

    def lines(self) -> Iterator[str]:
        """The lines that are left, each with its end."""
        rest = b""
        while chunk := self.read(1 << 20):
            whole = (rest + chunk).splitlines(keepends=True)
            # The "\n" of a "\r" may come with the next chunk.
            rest = b"" if whole[-1].endswith(b"\n") else whole.pop()
            yield from (line.decode() for line in whole)
        if rest:
            yield rest.decode()
