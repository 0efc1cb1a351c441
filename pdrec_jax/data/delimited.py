"""Reads delimited text: RecBole atomic files (.inter), CSV and TSV, packed by gzip or not.

pyarrow parses the file in one pass. It says little about where a file is wrong, so a file that it
refuses is read a second time, row by row, to name the first fault.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pdrec_jax.data.columns import (
    HARMLESS,
    LARGEST_RATIO,
    Columns,
    Ids,
    bad_id,
    is_id,
    one_line,
    shown,
    to_log,
    too_much,
    unreadable,
)
from pdrec_jax.data.interactions import Interactions
from pdrec_jax.errors import UserError

_NUMBER = re.compile(r"[ \t]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?[ \t]*")
_UP_TO_THE_CLOSING_QUOTE = re.compile(r'[^"]*+(?:""[^"]*+)*+"')
OPEN_QUOTE = "a quote that is not closed; one within a field is expected doubled"
_ATOMIC_TYPES = ("token", "token_seq", "float", "float_seq")


def read_delimited(path: Path, suffix: str, wanted: Columns, ids: Ids) -> Interactions:
    """Reads a text log.

    Args:
        path: file to read; unpacked when its name ends in `.gz`.
        suffix: `.inter`, `.csv` or `.tsv`, which settles delimiter, quotes and header.
        wanted: names of the columns.
        ids: `integer` demands integers from 1.

    Returns:
        The log.

    Raises:
        UserError: with file and row; the header is row 1.
    """
    data = _text(path)
    newline = re.search(rb"\r\n|\r|\n", data)
    header, body = (data[: newline.start()], newline.end()) if newline else (data, len(data))
    layout = _layout(f"{path}: row 1 (header)", header.decode(), suffix, wanted)
    if not data[body:].strip():
        raise UserError(f"{path}: a header and no rows")
    table = _Table(path, data, body, layout, ids)
    return to_log(table.columns(), wanted, ids, table.fault)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How the rows are cut: delimiter, quotes, number of fields, places of the wanted ones."""

    delimiter: str
    quoted: bool
    time: str | None
    width: int = 0
    positions: dict[str, int] = dataclasses.field(default_factory=dict)

    def rows(self, lines: Iterable[str]) -> Any:
        if self.quoted:
            return csv.reader(lines, delimiter=self.delimiter)
        return csv.reader(lines, delimiter=self.delimiter, quoting=csv.QUOTE_NONE)


def open_quote(lines: Iterable[str], delimiter: str, first: int = 1) -> int | None:
    """Finds a quote that is not closed: all rows behind it would be one field.

    One that the next stray quote seems to close is found by what stands behind that: neither a
    delimiter nor the end of the line. Within one line that is left alone, for it hides no rows.

    Args:
        lines: of a text with quotes, each with its line end.
        delimiter: between fields.
        first: number of the first line.

    Returns:
        The line that the row with the quote begins on; None where there is none.
    """
    # Not by csv.reader, which refuses long fields and all text behind a closing quote.
    row, within = first, False
    for number, line in enumerate(lines, first):
        if not within:
            row = number
        if '"' not in line:
            continue
        place = 0
        while True:
            spans = within
            if within or line.startswith('"', place):
                closed = _UP_TO_THE_CLOSING_QUOTE.match(line, place + (not within))
                within = closed is None
                if closed is None:
                    break
                place = closed.end()
                if spans and line[place : place + 1] not in (delimiter, "\r", "\n", ""):
                    return row
            place = line.find(delimiter, place) + 1
            if not place:
                break
    return row if within else None


def _text(path: Path) -> bytes:
    """The whole file, unpacked and proven to be text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if path.suffix.lower() == ".gz" and data:
        most = max(HARMLESS, LARGEST_RATIO * len(data))
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                data = file.read(most + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: broken gzip file ({one_line(error)})") from error
        if len(data) > most:
            raise too_much(path)
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise UserError(f"{path}: empty file, a header and rows are expected")
    nul = data.find(b"\0")
    if nul >= 0:
        raise UserError(f"{path}: row {_row_of(data, nul)}: NUL byte, text is expected")
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError as error:
            row = _row_of(data, error.start)
            raise UserError(f"{path}: row {row}: not UTF-8 text ({error.reason})") from error
    return data


def _row_of(data: bytes, position: int) -> int:
    return data.count(b"\n", 0, position) + 1


def _layout(where: str, header: str, suffix: str, wanted: Columns) -> _Layout:
    """Finds the wanted columns in the header."""
    layout = _Layout("," if suffix == ".csv" else "\t", suffix != ".inter", wanted.time)
    try:
        names = [field.strip() for field in next(layout.rows([header]), [])]
    except csv.Error as error:
        raise UserError(f"{where}: {one_line(error)}") from error
    if suffix == ".inter":
        names = [_atomic_name(where, field, wanted) for field in names]
    positions = wanted.positions(where, names)
    return dataclasses.replace(layout, width=len(names), positions=positions)


def _atomic_name(where: str, field: str, wanted: Columns) -> str:
    """The name in a `name:type` of a RecBole header."""
    name, _, kind = field.rpartition(":")
    if not name or kind not in _ATOMIC_TYPES:
        kinds = ", ".join(_ATOMIC_TYPES)
        raise UserError(f"{where}: {shown(field)} is not name:type with a type of {kinds}")
    if name in wanted.names:
        needed = "float" if name == wanted.time else "token"
        if kind != needed:
            raise UserError(f"{where}: type {needed} is expected, found {shown(field)}")
    return name


@dataclasses.dataclass(frozen=True)
class _Table:
    """The rows of a text file: `data` from byte `body` on."""

    path: Path
    data: bytes
    body: int
    layout: _Layout
    ids: Ids

    def columns(self) -> dict[str, Any]:
        """The wanted columns as arrow arrays: ids dictionary-encoded text, times float64."""
        import pyarrow as pa
        import pyarrow.csv as pa_csv

        # As a dictionary, millions of ids cost one int32 each, and every check of their text is
        # done on the distinct ones.
        text = pa.dictionary(pa.int32(), pa.string())
        types = {
            str(position): pa.float64() if name == self.layout.time else text
            for name, position in self.layout.positions.items()
        }
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(memoryview(self.data)[self.body :]),
                # Names of our own, because those of unwanted columns may repeat.
                pa_csv.ReadOptions(
                    column_names=[str(position) for position in range(self.layout.width)],
                    block_size=1 << 24,
                ),
                pa_csv.ParseOptions(
                    delimiter=self.layout.delimiter,
                    quote_char='"' if self.layout.quoted else False,
                    newlines_in_values=self.layout.quoted,
                ),
                pa_csv.ConvertOptions(
                    include_columns=list(types),
                    column_types=types,
                    null_values=[],
                    strings_can_be_null=False,
                    check_utf8=False,
                ),
            )
        except pa.ArrowException as error:
            raise self._first_fault(one_line(error)) from error
        self._require_closed_quotes(table.num_rows)
        return {
            name: table.column(str(position)) for name, position in self.layout.positions.items()
        }

    def _require_closed_quotes(self, rows: int) -> None:
        """Looks closer where a quote may have swallowed rows: each that is opened is closed."""
        quotes = self.data.count(b'"', self.body) if self.layout.quoted else 0
        if not quotes:
            return
        # Two stray quotes close each other, and fewer rows than lines are left.
        ends = max(self.data.count(end, self.body) for end in (b"\n", b"\r"))
        lines = ends + (not self.data.endswith((b"\n", b"\r")))
        if quotes % 2 or lines > rows:
            row = open_quote(self._lines(), self.layout.delimiter, 2)
            if row is not None:
                raise UserError(f"{self.path}: row {row}: {OPEN_QUOTE}")

    def fault(self, record: int, field: str, complaint: str) -> UserError:
        """The error for a record, with the number of its row."""
        return self._first_fault(f"record {record + 1}, field {shown(field)}: {complaint}")

    def _first_fault(self, otherwise: str) -> UserError:
        # First, for it is why a row has fields that nobody sees in it.
        opened = open_quote(self._lines(), self.layout.delimiter, 2) if self.layout.quoted else None
        try:
            for row, fields in self._rows():
                complaint = self._complaint(fields)
                if complaint and (opened is None or row < opened):
                    return UserError(f"{self.path}: row {row}{complaint}")
        except csv.Error as error:
            otherwise = one_line(error)
        if opened is not None:
            return UserError(f"{self.path}: row {opened}: {OPEN_QUOTE}")
        return UserError(f"{self.path}: {otherwise}")

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Rows that are not blank, each with the number of the line that it begins on."""
        reader = self.layout.rows(self._lines())
        row = 2
        for fields in reader:
            if fields:
                yield row, fields
            row = reader.line_num + 2

    def _lines(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(io.BytesIO(self.data[self.body :]), "utf-8", newline="")

    def _complaint(self, fields: list[str]) -> str:
        width = self.layout.width
        if len(fields) != width:
            return f": {len(fields)} field{'s' * (len(fields) != 1)}, {width} are expected"
        for name, position in self.layout.positions.items():
            value = fields[position]
            if name == self.layout.time:
                if not _is_finite(value):
                    what = shown(value) if value.strip() else "an empty field"
                    return f", field {shown(name)}: {what} is not a finite number"
            elif not is_id(value.strip(), self.ids):
                return f", field {shown(name)}: {bad_id(value, self.ids)}"
        return ""


def _is_finite(value: str) -> bool:
    return _NUMBER.fullmatch(value) is not None and bool(np.isfinite(float(value)))
