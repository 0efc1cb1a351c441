"""What the readers of all file formats share: column names, checks of columns, one-line errors.

Letters: E events.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pdrec_jax.data.interactions import Interactions, from_events
from pdrec_jax.errors import UserError

Ids = Literal["any", "integer"]

# A packed file may hold this many bytes, or so many times its own size; more was made to harm.
HARMLESS = 64 << 20
LARGEST_RATIO = 200

# Makes the error for the record with this index (from 0), this field and this complaint.
Fault = Callable[[int, str, str], UserError]

MAX_ID = 255  # characters
LINE_ENDS = "\r\n"  # of which an id has none
_POSITIVE_INTEGER = r"^0*[1-9][0-9]{0,17}$"
# Written the one way that an integer is written: then text and number can stand for each other.
# Both patterns stop at 18 digits, which always fit int64.
_CANONICAL_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the wanted columns; `time` is None for a log without times."""

    user: str
    item: str
    time: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """The names that must be in the file."""
        return (self.user, self.item) + (() if self.time is None else (self.time,))

    def positions(self, where: str, found: list[str]) -> dict[str, int]:
        """Place of each wanted column among those of the file.

        Args:
            where: file, and row where there is one, for the error.
            found: all names of the file.

        Returns:
            Index into `found` of each wanted name.

        Raises:
            UserError: a name is missing or occurs twice.
        """
        for name in self.names:
            if found.count(name) != 1:
                problem = "more than one column" if name in found else "no column"
                listed = ", ".join(shown(other) for other in found[:20]) or "nothing"
                raise UserError(f"{where}: {problem} {shown(name)}, found {listed}")
        return {name: found.index(name) for name in self.names}


def to_log(columns: dict[str, Any], wanted: Columns, ids: Ids, fault: Fault) -> Interactions:
    """Checks arrow columns and makes them a log.

    Args:
        columns: by name, `[E]` arrow chunked arrays with E >= 1: ids int64 or dictionary-encoded
            text, times float64.
        wanted: which is which.
        ids: `integer` demands integers from 1.
        fault: makes the error for a record.

    Returns:
        The log.

    Raises:
        UserError: an empty or forbidden id, a time that is not finite.
    """
    users, user_ids = _coded_ids(columns[wanted.user], wanted.user, ids, fault)
    items, item_ids = _coded_ids(columns[wanted.item], wanted.item, ids, fault)
    times = None
    if wanted.time is not None:
        times = columns[wanted.time].to_numpy()
        finite = np.isfinite(times)
        if not finite.all():
            row = int(np.argmin(finite))
            raise fault(row, wanted.time, f"{times[row]} is not a finite number")
    return from_events(users, items, times, user_ids=user_ids, item_ids=item_ids)


def is_id(value: str, ids: Ids) -> bool:
    """Whether text without blanks around it is an id: of one line, not empty and not endless."""
    if ids == "integer":
        return re.match(_POSITIVE_INTEGER, value) is not None
    return 0 < len(value) <= MAX_ID and not set(LINE_ENDS) & set(value)


def bad_id(value: str, ids: Ids) -> str:
    """What is wrong with what is no id, in words."""
    value = value.strip()
    wanted = "an integer from 1" if ids == "integer" else "an id"
    if not value:
        return f"empty, {wanted} is expected"
    if set(LINE_ENDS) & set(value):
        return f"{shown(value)} has a line break in it, as behind a quote that is not closed"
    if ids != "integer":
        return f"{shown(value)} is longer than {MAX_ID} characters"
    return f"{shown(value)} is not {wanted}"


def shown(value: str) -> str:
    """`value` quoted, escaped and short enough for a message of one line."""
    return repr(value if len(value) <= 40 else value[:37] + "...")


def one_line(error: object) -> str:
    """The message of another library as one line of bounded length."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."


def too_much(path: Path) -> UserError:
    """The error for a file that unpacks to more than a log could."""
    return UserError(
        f"{path}: unpacks to more than {LARGEST_RATIO} times its size; unpack it by hand if it is "
        "what it should be"
    )


def unreadable(path: Path, error: OSError) -> UserError:
    """The error for a file that cannot be opened or read."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: no such file")
    if isinstance(error, IsADirectoryError):
        return UserError(f"{path}: is a directory, a file is expected")
    return UserError(f"{path}: cannot be read ({error.strerror or error})")


def _coded_ids(column: Any, name: str, ids: Ids, fault: Fault) -> tuple[NDArray, NDArray | None]:
    """A column of ids as `from_events` wants it: values, or positions and the distinct ids."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_integer(column.type):
        values = column.to_numpy()
        if ids == "integer" and values.min() < 1:
            row = int(np.argmax(values < 1))
            raise fault(row, name, bad_id(str(values[row]), ids))
        return values, None
    encoded = column.unify_dictionaries().combine_chunks()
    codes = encoded.indices.to_numpy()
    distinct = pc.utf8_trim_whitespace(encoded.dictionary)
    if ids == "integer":
        wrong = pc.invert(pc.match_substring_regex(distinct, _POSITIVE_INTEGER))
    else:
        wrong = pc.or_(pc.equal(distinct, ""), pc.greater(pc.utf8_length(distinct), MAX_ID))
        for end in LINE_ENDS:
            wrong = pc.or_(wrong, pc.match_substring(distinct, end))
    wrong = wrong.to_numpy(zero_copy_only=False)
    if wrong.any():
        row = int(np.argmax(wrong[codes]))
        raise fault(row, name, bad_id(encoded.dictionary[int(codes[row])].as_py(), ids))
    if ids == "integer" or pc.all(pc.match_substring_regex(distinct, _CANONICAL_INTEGER)).as_py():
        return codes, distinct.cast(pa.int64()).to_numpy()
    return codes, distinct.to_numpy(zero_copy_only=False).astype(str)
