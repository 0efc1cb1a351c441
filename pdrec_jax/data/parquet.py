"""Reads logs from Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pdrec_jax.data.columns import (
    HARMLESS,
    LARGEST_RATIO,
    Columns,
    Ids,
    one_line,
    shown,
    to_log,
    too_much,
    unreadable,
)
from pdrec_jax.data.interactions import Interactions
from pdrec_jax.errors import UserError

_FEW_ROWS = 1 << 22
_UNITS_A_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


def read_parquet(path: Path, wanted: Columns, ids: Ids) -> Interactions:
    """Reads a log from a Parquet file; only the wanted columns leave the disk.

    Args:
        path: file to read.
        wanted: names of the columns. Ids may be integers or text, times numbers, timestamps (UTC
            where they name no zone) or dates.
        ids: `integer` demands integers from 1.

    Returns:
        The log.

    Raises:
        UserError: with file, field and row; Parquet has no header, so row 1 is the first record.
    """
    columns = _columns(path, wanted)
    if len(columns[wanted.user]) == 0:
        raise UserError(f"{path}: no rows")

    def fault(record: int, field: str, complaint: str) -> UserError:
        return UserError(f"{path}: row {record + 1}, field {shown(field)}: {complaint}")

    for name, column in columns.items():
        if column.null_count:
            record = int(np.argmax(column.is_null().to_numpy()))
            raise fault(record, name, "the value is missing")
    return to_log(columns, wanted, ids, fault)


def _columns(path: Path, wanted: Columns) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise UserError(f"{path}: empty file, a table is expected")
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        # A path would be taken for a URI where it has a colon.
        with (
            path.open("rb") as file,
            pq.ParquetFile(file, page_checksum_verification=True) as parquet,
        ):
            wanted.positions(str(path), parquet.schema_arrow.names)
            require_plausible(path, parquet.metadata)
            table = parquet.read(columns=list(wanted.names))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({one_line(error)})") from error
    return {name: _converted(path, table.column(name), name, wanted) for name in wanted.names}


def require_plausible(path: Path, metadata: Any) -> None:
    """Checks that a Parquet file holds no more than its size allows, before any of it is read.

    Args:
        path: for the error.
        metadata: of the file.

    Raises:
        UserError: it was made to fill the memory.
    """
    size = path.stat().st_size
    # Of a row group alone: where a damaged file lacks a column, pyarrow ends the process.
    unpacked = sum(
        metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)
    )
    # Equal values one after the other take no bytes at all.
    if unpacked > max(HARMLESS, LARGEST_RATIO * size) or metadata.num_rows > max(
        _FEW_ROWS, LARGEST_RATIO * size
    ):
        raise too_much(path)


def _converted(path: Path, column: Any, name: str, wanted: Columns) -> Any:
    """Ids as int64 or dictionary-encoded text, times as float64."""
    import pyarrow as pa

    is_time = name == wanted.time
    try:
        return _as_seconds(column) if is_time else _as_ids(column)
    except (pa.ArrowException, TypeError) as error:
        what = "numbers, timestamps or dates" if is_time else "integers or text"
        where = f"{path}: field {shown(name)}"
        raise UserError(f"{where}: {what} are expected, found {column.type}") from error


def _as_ids(column: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type):
        largest = pc.max(column).as_py()
        if largest is None or largest < 1 << 63:
            return column.cast(pa.int64())
        column = column.cast(pa.string())
    if not any(
        check(column.type)
        for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    ):
        raise TypeError(column.type)
    return column.cast(pa.string()).dictionary_encode()


def _as_seconds(column: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    if pa.types.is_timestamp(column.type):
        # Nanoseconds since 1970 have more digits than a float64 keeps: exact to a microsecond.
        units = _UNITS_A_SECOND[column.type.unit]
        return pc.divide(column.cast(pa.int64()).cast(pa.float64(), safe=False), units)
    if not (
        pa.types.is_integer(column.type)
        or pa.types.is_floating(column.type)
        or pa.types.is_decimal(column.type)
    ):
        raise TypeError(column.type)
    # Integers beyond 2^53, as of nanoseconds, have more digits than a float64 keeps too.
    return column.cast(pa.float64(), safe=False)
