"""Reads logs of any format as a stream of batches of columns, still as they were written.

What is wrong with a single row is its own affair: it is skipped and counted. What is wrong with a
file (not the format that its name tells, no such column, cut short) ends the reading.
"""

from __future__ import annotations

import collections
import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pdrec_jax.data.columns import Columns, one_line, shown
from pdrec_jax.data.delimited import OPEN_QUOTE, open_quote
from pdrec_jax.data.parquet import require_plausible
from pdrec_jax.errors import UserError
from pdrec_jax.prepare.streams import Unpacked, UnpackedText, split_suffix

_BLOCK = 16 << 20  # a row must be shorter
_HEADER = 1 << 20
_PARQUET_ROWS = 1 << 20
_UNTYPED_BLOCKS = 16  # of a JSON file, in which each field must have had a value
_NAMES_SHOWN = 20

# A null that is no field's value and no list's, but a record of its own.
_BARE_NULL = re.compile(rb"(?:\A|[^:,\[\s])\s*null")

Batch = dict[str, Any]  # arrow arrays by column
Skipped = collections.Counter[str]  # rows by what was wrong with them


def read_batches(
    path: Path,
    wanted: Columns,
    skipped: Skipped,
    progress: Callable[[int], None],
    positions: dict[str, int] | None = None,
    block: int | None = None,
) -> Iterator[Batch]:
    """Reads a file.

    Args:
        path: its suffix tells the format.
        wanted: the columns.
        skipped: rows that could not even be cut into fields are counted here.
        progress: is told how many more bytes of the file were read.
        positions: for text without a header, where each column stands.
        block: bytes of a text table that are parsed at once; a row must be shorter. Some ten blocks
            are read ahead. None for 16 MiB.

    Yields:
        Arrow arrays of one length by name, in the order of the file: binary (dictionary-encoded or
        not) from text, whatever is there from Parquet and JSON lines.

    Raises:
        UserError: with the file.
    """
    suffix, packing = split_suffix(path)
    if suffix == ".parquet":
        yield from _parquet(path, wanted, progress)
    elif suffix in (".inter", ".csv", ".tsv"):
        with Unpacked(path, packing, lambda _: None) as stream:
            layout = _Layout(path, suffix, packing, wanted, stream, positions)
        with UnpackedText(path, packing, progress) as text:
            yield from layout.batches(text, skipped, block or _BLOCK)
    else:
        with Unpacked(path, packing, progress) as stream:
            yield from _json_lines(path, wanted, skipped, stream)


class _Layout:
    """How the rows of a text file are cut."""

    def __init__(
        self,
        path: Path,
        suffix: str,
        packing: str | None,
        wanted: Columns,
        stream: Unpacked,
        positions: dict[str, int] | None,
    ):
        self.path, self.packing, self.wanted = path, packing, wanted
        self.delimiter = "," if suffix == ".csv" else "\t"
        self.quoted = suffix != ".inter"
        self.headings = positions is None
        where = f"{path}: row 1" + " (header)" * self.headings
        names = self._fields(where, stream)
        if positions is not None:
            self.positions, self.width = positions, len(names)
            if max(positions.values()) >= self.width:
                raise UserError(
                    f"{where}: {self.width} fields, {1 + max(positions.values())} or more expected"
                )
            return
        if suffix == ".inter":
            names = [name.rpartition(":")[0] or name for name in names]
        self.positions, self.width = wanted.positions(where, names), len(names)

    def _fields(self, where: str, stream: Unpacked) -> list[str]:
        start = stream.read(_HEADER).removeprefix(b"\xef\xbb\xbf")
        if not start.strip():
            raise UserError(f"{self.path}: empty file, a header and rows are expected")
        first = start.splitlines()[0]
        if len(first) == _HEADER:
            raise UserError(f"{where}: longer than 1 MiB, no text table")
        try:
            text = first.decode()
            if self.quoted:
                rows = csv.reader([text], delimiter=self.delimiter)
            else:
                rows = csv.reader([text], delimiter=self.delimiter, quoting=csv.QUOTE_NONE)
            return [name.strip() for name in next(rows, [])]
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: not UTF-8 text ({error.reason})") from error
        except csv.Error as error:
            raise UserError(f"{where}: {one_line(error)}") from error

    def batches(self, stream: UnpackedText, skipped: Skipped, block: int) -> Iterator[Batch]:
        import pyarrow as pa
        import pyarrow.csv as pa_csv

        used = int(self.headings)  # lines that have become rows or were counted as skipped

        def skip(row: Any) -> str:
            nonlocal used
            # Behind a quote that is out of place many lines are one row.
            lines = 1 + row.text.strip("\r\n").count("\n")
            skipped["another number of fields"] += lines
            used += lines
            return "skip"

        # As a dictionary, millions of ids cost an int32 each, and each check is done once an id.
        # Bytes, not text: what is no text is for us to count.
        ids = pa.dictionary(pa.int32(), pa.binary())
        types = {
            str(place): pa.binary() if name == self.wanted.time else ids
            for name, place in self.positions.items()
        }
        try:
            reader = pa_csv.open_csv(
                stream,
                pa_csv.ReadOptions(
                    column_names=[str(place) for place in range(self.width)],
                    skip_rows=int(self.headings),
                    block_size=block,
                ),
                pa_csv.ParseOptions(
                    delimiter=self.delimiter,
                    quote_char='"' if self.quoted else False,
                    newlines_in_values=self.quoted,
                    invalid_row_handler=skip,
                ),
                pa_csv.ConvertOptions(
                    include_columns=list(types),
                    column_types=types,
                    null_values=[],
                    strings_can_be_null=False,
                    check_utf8=False,
                ),
            )
            for batch in reader:
                used += batch.num_rows
                yield {name: batch.column(str(place)) for name, place in self.positions.items()}
            # Two stray quotes close each other, and fewer rows than lines are left. Blank lines
            # and fields of several lines are no fault, which the closer look finds.
            if stream.quotes % 2 or (stream.quotes and stream.lines_read > used):
                self._require_closed_quotes()
        except (pa.ArrowException, OSError) as error:
            if any(words in str(error) for words in ("Empty CSV", "Could not skip initial")):
                return  # a header alone
            if stream.quotes:  # what an open one hides may be too long for a block
                self._require_closed_quotes()
            raise UserError(f"{self.path}: {one_line(error)}") from error

    def _require_closed_quotes(self) -> None:
        if not self.quoted:
            return
        with UnpackedText(self.path, self.packing, lambda _: None) as text:
            row = open_quote(text.lines(), self.delimiter)
        if row is not None:
            raise UserError(f"{self.path}: row {row}: {OPEN_QUOTE}")


def _parquet(path: Path, wanted: Columns, progress: Callable[[int], None]) -> Iterator[Batch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    Unpacked(path, None, progress).close()  # for its errors of a file that cannot be opened
    try:
        # A path would be taken for a URI where it has a colon.
        with (
            path.open("rb") as file,
            pq.ParquetFile(file, page_checksum_verification=True) as parquet,
        ):
            wanted.positions(str(path), parquet.schema_arrow.names)
            require_plausible(path, parquet.metadata)
            rows = max(parquet.metadata.num_rows, 1)
            size = path.stat().st_size
            done = told = 0
            for batch in parquet.iter_batches(_PARQUET_ROWS, columns=list(wanted.names)):
                yield {name: batch.column(name) for name in wanted.names}
                done += batch.num_rows
                progress(size * done // rows - told)
                told = size * done // rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({one_line(error)})") from error


def _json_lines(path: Path, wanted: Columns, skipped: Skipped, stream: Unpacked) -> Iterator[Batch]:
    kinds: dict[str, Any] = {}
    seen: dict[str, None] = {}  # names of fields
    schema = None
    blocks = 0
    for block in _whole_lines(path, stream):
        if not block.strip():
            continue
        blocks += 1
        if schema is None:
            schema = _schema(wanted, block, kinds, seen)
        if schema is None and blocks == _UNTYPED_BLOCKS:
            where = f" in the first {blocks * _BLOCK >> 20} MiB"
            raise _no_field(path, wanted, kinds, seen, where)
        fast = None if schema is None else _fast_json(wanted, block, schema)
        # Records before the first value of a field are rows too, which lack it.
        yield fast or _slow_json(wanted, skipped, block)
    if not blocks:
        raise UserError(f"{path}: empty file, a JSON object a line is expected")
    if schema is None:
        raise _no_field(path, wanted, kinds, seen)


def _whole_lines(path: Path, stream: Unpacked) -> Iterator[bytes]:
    rest = b""
    while chunk := stream.read(_BLOCK):
        head, newline, tail = chunk.rpartition(b"\n")
        if not newline and len(rest) + len(chunk) > 2 * _BLOCK:
            raise UserError(f"{path}: a line of more than {_BLOCK >> 20} MiB")
        if newline:
            yield (rest + head + newline).removeprefix(b"\xef\xbb\xbf")
            rest = tail
        else:
            rest += chunk
    if rest.strip():
        yield rest.removeprefix(b"\xef\xbb\xbf") + b"\n"


def _schema(
    wanted: Columns, block: bytes, kinds: dict[str, Any], seen: dict[str, None]
) -> Any | None:
    """Types of the wanted fields, each from its first value; None until all have had one.

    `kinds` and `seen` keep what was found so far: types by field, and names of some fields.
    """
    import pyarrow as pa

    for line in block.split(b"\n"):
        record = _record(line)
        if record is None:
            continue
        if len(seen) < _NAMES_SHOWN:
            seen |= dict.fromkeys(record)
        for name in wanted.names:
            value = record.get(name)
            number = isinstance(value, int | float)
            if value is not None and name not in kinds:
                whole = pa.int64() if name != wanted.time else pa.float64()
                kinds[name] = whole if number else pa.string()
        if len(kinds) == len(wanted.names):
            return pa.schema(list(kinds.items()))
    return None


def _no_field(
    path: Path, wanted: Columns, kinds: dict[str, Any], seen: dict[str, None], where: str = ""
) -> UserError:
    name = next(name for name in wanted.names if name not in kinds)
    found = ", ".join(shown(other) for other in list(seen)[:_NAMES_SHOWN]) or "no JSON object"
    return UserError(f"{path}: no field {shown(name)} with a value{where}, found {found}")


def _fast_json(wanted: Columns, block: bytes, schema: Any) -> Batch | None:
    """All lines at once; None where one of them needs a closer look."""
    import pyarrow as pa
    import pyarrow.json as pa_json

    if b"null" in block and _BARE_NULL.search(block):
        return None  # pyarrow would end the process
    try:
        table = pa_json.read_json(
            pa.BufferReader(block),
            pa_json.ReadOptions(block_size=max(len(block), 1)),
            pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowException:
        return None
    # Invalid numbers of surrogates and bytes pass the parser, and are sorted out later.
    return {name: table.column(name).combine_chunks() for name in wanted.names}


def _slow_json(wanted: Columns, skipped: Skipped, block: bytes) -> Batch:
    """Line by line."""
    import pyarrow as pa

    columns: dict[str, list[str | None]] = {name: [] for name in wanted.names}
    for line in io.BytesIO(block):
        if not line.strip():
            continue
        record = _record(line)
        if record is None:
            skipped["not a JSON object"] += 1
            continue
        values = {name: record.get(name) for name in wanted.names}
        for name, value in values.items():
            if name != wanted.time and isinstance(value, float) and value.is_integer():
                values[name] = int(value)  # 3.0 is who 3 is in the next line
        odd = [name for name, value in values.items() if not _plain(value, name == wanted.time)]
        if odd:
            expected = "number" if odd[0] == wanted.time else "integer"
            skipped[f"field {shown(odd[0])}: neither {expected} nor text"] += 1
            continue
        for name, value in values.items():
            columns[name].append(None if value is None else str(value))
    return {
        name: pa.array(
            [None if text is None else text.encode("utf-8", "surrogatepass") for text in values],
            pa.binary(),
        )
        for name, values in columns.items()
    }


def _plain(value: object, is_time: bool) -> bool:
    """Whether a value can be an id or a time, or is none at all."""
    if value is None or isinstance(value, str):
        return True
    number = isinstance(value, int) or (is_time and isinstance(value, float))
    return number and not isinstance(value, bool)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
