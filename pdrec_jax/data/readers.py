"""Interaction logs from files: RecBole atomic (.inter), CSV, TSV and Parquet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pdrec_jax.data.columns import Columns, Ids, unreadable
from pdrec_jax.data.delimited import read_delimited
from pdrec_jax.data.interactions import Interactions
from pdrec_jax.data.parquet import read_parquet
from pdrec_jax.errors import UserError
from pdrec_jax.files import expanded

SUFFIXES = (".inter.gz", ".inter", ".csv.gz", ".csv", ".tsv.gz", ".tsv", ".parquet")


def read_log(
    path: str | Path,
    *,
    user: str = "user_id",
    item: str = "item_id",
    time: str | None = "timestamp",
    ids: Ids = "any",
) -> Interactions:
    """Reads a log of one domain; its suffix tells the format.

    `.inter`: RecBole atomic, tab separated, header of `name:type`. `.csv`, `.tsv`: header of plain
    names, fields may be quoted. All of them also as `.gz`. `.parquet`: columns by name. Other
    columns, blank lines and blanks around an id are ignored. Rows need not be sorted: see
    `from_events` for the order of events.

    Args:
        path: file to read.
        user: column of user ids.
        item: column of item ids.
        time: column of Unix seconds (in Parquet also timestamps or dates), or None for a log
            without times, whose order is then that of its rows.
        ids: `integer` demands integers from 1; `any` takes text too. Ids that are all integers are
            kept as int64 and sort as numbers.

    Returns:
        The log, `domains` None.

    Raises:
        UserError: anything wrong with the file, with its name and the row or field. Rows count from
            1, the header of a text file included.
    """
    path = Path(path)
    if ids not in ("any", "integer"):
        raise UserError(f"ids: 'any' or 'integer' is expected, not {ids!r}")
    wanted = Columns(user, item, time)
    if len(set(wanted.names)) < len(wanted.names):
        raise UserError(f"columns: different names are expected, not {', '.join(wanted.names)}")
    suffix = _suffix(path)
    if suffix == ".parquet":
        return read_parquet(path, wanted, ids)
    return read_delimited(path, suffix.removesuffix(".gz"), wanted, ids)


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, so that a result can name the very data it came from.

    Args:
        path: file to read.

    Returns:
        64 hexadecimal digits.

    Raises:
        UserError: the file cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def find_log(name: str, directories: Iterable[str | Path | None]) -> Path | None:
    """Looks for a log in several places.

    Args:
        name: file name, with its suffix or without (then each known suffix is tried in turn).
        directories: places in order of preference; None and "" are skipped.

    Returns:
        The first file found, or None.
    """
    for directory in directories:
        if not directory:
            continue
        for suffix in ("", *SUFFIXES):
            path = expanded(str(directory), name) / (name + suffix)
            if path.is_file():
                return path
    return None


def _suffix(path: Path) -> str:
    name = path.name.lower()
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return suffix
    known = ", ".join(sorted(SUFFIXES))
    raise UserError(f"{path}: unknown suffix, one of {known} is expected")
