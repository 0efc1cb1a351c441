"""Turns the fields of a batch into ids and numbers, and finds the rows that cannot be used.

Letters: E rows of a batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdrec_jax.data.columns import LINE_ENDS, MAX_ID
from pdrec_jax.errors import UserError

# Why an id or a time is no use; the places are the codes below.
ID_FAULTS = (
    "",
    "empty",
    "not UTF-8 text or a NUL in it",
    f"longer than {MAX_ID}",
    "a line break in it, as behind a quote that is not closed",
)
_GOOD, _EMPTY, _NO_TEXT, _LONG, _BREAK = range(len(ID_FAULTS))
_ISO = "ISO date (YYYY-MM-DD..)"
TIME_FAULTS = (
    *ID_FAULTS,
    "not a finite number",
    f"not an {_ISO}",
    f"neither a number nor an {_ISO}",
)
_NO_NUMBER, _NO_DATE, _NEITHER = range(len(ID_FAULTS), len(TIME_FAULTS))

_NUMBER = r"^[ \t]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?[ \t]*$"
_NOT_ZERO = r"^[+-]?[0.]*[1-9]"  # of a number
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"
_VOTES = 1000
_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


@dataclasses.dataclass(frozen=True)
class Ids:
    """Ids of a batch.

    Attributes:
        encoded: arrow dictionary array of text, of length E; rows with a fault hold any value.
        faults: `[E]` int8, places in `ID_FAULTS`.
    """

    encoded: Any
    faults: NDArray[np.int8]


@dataclasses.dataclass(frozen=True)
class Times:
    """Times of a batch.

    Attributes:
        values: `[E]` float64, numbers as they were written, or seconds since 1970 from dates.
        faults: `[E]` int8, places in `TIME_FAULTS`.
        dates: whether they were dates.
    """

    values: NDArray[np.float64]
    faults: NDArray[np.int8]
    dates: bool


def to_ids(column: Any, where: str) -> Ids:
    """Makes ids of a column.

    Args:
        column: `[E]` arrow array.
        where: file and field, for the error.

    Returns:
        The ids, with blanks around them removed.

    Raises:
        UserError: a column of a type that no id has.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_null(column.type):
        column = column.cast(pa.string())
    encoded = pa.types.is_dictionary(column.type)
    kind = column.type.value_type if encoded else column.type
    if not (pa.types.is_integer(kind) or _is_text(kind)):
        raise UserError(f"{where}: integers or text are expected, found {kind}")
    encoded = column if encoded else column.dictionary_encode()
    rows = np.asarray(pc.fill_null(encoded.indices.cast(pa.int64()), -1))
    if pa.types.is_integer(kind):
        text = encoded.dictionary.cast(pa.string())
        wrong = np.zeros(len(text), np.int8)
    else:
        text, wrong = _checked_text(encoded.dictionary)
    # The last entry is for rows without a value.
    wrong = np.append(wrong, np.int8(_EMPTY))
    indices = pa.array(np.maximum(rows, 0).astype(np.int32))
    if not len(text):
        text = pa.array([""])
    return Ids(pa.DictionaryArray.from_arrays(indices, text), wrong[rows])


def to_times(column: Any, where: str, dates: bool | None) -> Times:
    """Makes times of a column.

    Args:
        column: `[E]` arrow array.
        where: file and field, for the error.
        dates: whether text holds dates; None finds out.

    Returns:
        The times.

    Raises:
        UserError: a column of a type that no time has.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_null(kind):
        return Times(np.zeros(len(column)), np.full(len(column), _EMPTY, np.int8), bool(dates))
    if _is_text(kind):
        return _from_text(*_checked_text(column), dates)
    missing = np.asarray(column.is_null())
    is_date = pa.types.is_date(kind) or pa.types.is_timestamp(kind)
    if is_date:
        if pa.types.is_date(kind):
            column = column.cast(pa.timestamp("ms"))
        numbers = column.cast(pa.int64()).cast(pa.float64(), safe=False)
        values = np.asarray(pc.fill_null(numbers, 0.0)) / _PER_SECOND[column.type.unit]
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = np.asarray(pc.fill_null(column.cast(pa.float64(), safe=False), 0.0))
    else:
        raise UserError(f"{where}: numbers, timestamps or dates are expected, found {kind}")
    faults = np.where(np.isfinite(values), _GOOD, _NO_NUMBER).astype(np.int8)
    faults[missing] = _EMPTY
    return Times(np.where(faults == _GOOD, values, 0.0), faults, is_date)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return any(
        check(kind)
        for check in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_string_view,
            pa.types.is_binary_view,
        )
    )


def _checked_text(values: Any) -> tuple[Any, NDArray[np.int8]]:
    """Values as text without blanks around it, and what is wrong with each."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wrong = np.zeros(len(values), np.int8)
    try:
        text = values.cast(pa.binary()).cast(pa.string())
    except pa.ArrowException:
        found = [_decoded(value) for value in values.cast(pa.binary()).to_pylist()]
        wrong[[text is None for text in found]] = _NO_TEXT
        text = pa.array([text or "" for text in found], pa.string())
    text = pc.fill_null(pc.utf8_trim_whitespace(text), "")
    wrong[np.asarray(pc.match_substring(text, "\0"))] = _NO_TEXT
    wrong[np.asarray(pc.utf8_length(text)) > MAX_ID] = _LONG
    for end in LINE_ENDS:
        wrong[np.asarray(pc.match_substring(text, end))] = _BREAK
    wrong[np.asarray(pc.equal(text, "")) & (wrong == _GOOD)] = _EMPTY
    return text, wrong


def _decoded(value: bytes | None) -> str | None:
    try:
        return "" if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _from_text(text: Any, wrong: NDArray[np.int8], dates: bool | None) -> Times:
    import pyarrow as pa
    import pyarrow.compute as pc

    missing = wrong != _GOOD
    told = dates is not None
    if dates is None:
        dates = _mostly_dates(text.filter(pa.array(~missing)))
    if missing.any():
        text = pc.if_else(pa.array(missing), "1970-01-01" if dates else "0", text)
    if dates:
        values, fits = _from_dates(text)
        bad = _NO_DATE
    else:
        bad = _NO_NUMBER
        try:
            values = np.asarray(text.cast(pa.float64()))
            fits = np.isfinite(values)
        except pa.ArrowException:
            fits = np.asarray(pc.match_substring_regex(text, _NUMBER))
            plain = pc.if_else(pa.array(fits), pc.utf8_ltrim(text, characters="+"), "0")
            values = np.asarray(plain.cast(pa.float64()))
            fits = fits & np.isfinite(values)
        if not told and not (fits & ~missing).any():
            # No number has shown yet that the column holds numbers.
            bad = _NEITHER
    faults = np.where(fits, _GOOD, bad).astype(np.int8)
    faults[missing] = wrong[missing]
    return Times(np.where(faults == _GOOD, values, 0.0), faults, dates)


def _mostly_dates(text: Any) -> bool:
    """Whether most of the first texts that say something are dates.

    A zero says nothing, for it stands for a missing time among dates as well; nor does what is
    neither. Where the first texts say nothing, those behind them are asked.
    """
    import pyarrow.compute as pc

    for rows in (text.slice(0, _VOTES), text):
        dates = np.asarray(pc.match_substring_regex(rows, _DATE))
        number = pc.match_substring_regex(rows, _NUMBER)
        numbers = np.asarray(pc.and_(number, pc.match_substring_regex(rows, _NOT_ZERO)))
        votes = dates[dates | numbers][:_VOTES]
        if votes.size:
            return bool(2 * votes.sum() > votes.size)
    return False


def _from_dates(text: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Seconds from ISO 8601 dates, with or without a time of day and a zone (else UTC)."""
    import pyarrow as pa

    for zone in (None, "UTC"):
        with contextlib.suppress(pa.ArrowException):
            moments = text.cast(pa.timestamp("us", zone))
            return np.asarray(moments.cast(pa.int64())) / 1e6, np.ones(len(text), bool)
    values, fits = np.zeros(len(text)), np.zeros(len(text), bool)
    for place, one in enumerate(text.to_pylist()):
        # Arrow takes all or nothing, and no mixture of zones.
        found = parse_date(one)
        if found is not None:
            values[place], fits[place] = found, True
    return values, fits


def parse_date(text: str) -> float | None:
    """Seconds since 1970 of an ISO 8601 date, UTC where it names no zone; None if it is none."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)).total_seconds()
