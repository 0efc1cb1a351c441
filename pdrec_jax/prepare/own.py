"""Prepares a log of one's own: reads any of the formats, filters, reports, writes a directory."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pdrec_jax import manifest
from pdrec_jax.data import scratch
from pdrec_jax.data.columns import Columns, shown
from pdrec_jax.data.mapped import read_mapped
from pdrec_jax.data.sources import PREPARED, PREPARED_COLUMNS, PREPARED_LOG
from pdrec_jax.errors import UserError
from pdrec_jax.files import (
    atomic_write_text,
    beside,
    replace_directory,
    require_elsewhere,
    write_errors,
)
from pdrec_jax.prepare import filters, mapped
from pdrec_jax.prepare.defaults import suggest
from pdrec_jax.prepare.figures import Figures, measure, measure_log
from pdrec_jax.prepare.filters import Duplicates, Records, Unit
from pdrec_jax.prepare.raw_log import RawLog, read_raw_log
from pdrec_jax.prepare.report import report, warnings
from pdrec_jax.settings import FIELDS

REPORT = "report.txt"
_OURS = {REPORT, PREPARED, PREPARED_LOG, PREPARED_COLUMNS}
_ROW_GROUP = 1 << 20


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is done to a log.

    Attributes:
        unit: of its times, or auto.
        duplicates: which repeated records go, see `filters.without_duplicates`.
        least_of_user: fewest records of a user.
        least_of_item: fewest records of an item.
        mapped: whether the log is written as columns to be mapped, and made without ever being in
            memory, see `data.mapped`.
    """

    unit: Unit = "auto"
    duplicates: Duplicates = "exact"
    least_of_user: int = 3
    least_of_item: int = 1
    mapped: bool = False


def prepare(
    paths: Sequence[Path], wanted: Columns, out: Path, rules: Rules, *, overwrite: bool = False
) -> str:
    """Prepares a log.

    Args:
        paths: files, read one after the other.
        wanted: their columns.
        out: directory to make, with the log, its settings and the report.
        rules: what is done to the log.
        overwrite: whether a directory that an earlier call made may be replaced.

    Returns:
        The report.

    Raises:
        UserError: anything wrong with files or columns, a log of which nothing is left, a
            directory that is in the way, or one that holds a file to read; nothing is written then.
    """
    require_free(out, overwrite)
    _require_inputs_elsewhere(paths, out)
    raw = read_raw_log(paths, wanted, mapped=rules.mapped)
    times, unit = raw.times, ""
    if times is not None:
        unit = "dates" if raw.dates else rules.unit
        if unit == "auto":
            unit = filters.guess_unit(times)
    make = _mapped if rules.mapped else _in_memory
    fill, dropped = make(raw, rules, unit)

    def finish(directory: Path) -> str:
        figures = fill(directory)
        if figures.users - figures.short_users < 2:
            raise UserError(
                f"{figures.users - figures.short_users} of {figures.users:,} users have 3 or more "
                "records, at least 2 such users are expected"
            )
        usable_times = times is not None and figures.last_time != figures.first_time
        settings = suggest(figures, usable_times)
        text = report(
            files=[path.name for path in paths],
            read=raw.read,
            unit=unit,
            dropped=dropped,
            figures=figures,
            warnings=warnings(figures, times is not None) + _unit_warnings(raw, unit, rules.unit),
            settings=settings,
            out=out,
        )
        summary = {
            "files": [path.name for path in paths],
            "read": raw.read,
            "dropped": dropped,
            "figures": dataclasses.asdict(figures),
            "config": {
                "name": _name(out),
                "data.time": "timestamp" if usable_times else "",
                **settings,
            },
        }
        atomic_write_text(directory / REPORT, text)
        atomic_write_text(directory / PREPARED, json.dumps(summary, indent=2) + "\n")
        return text

    return _write(out, finish, overwrite)


def require_free(out: Path, overwrite: bool) -> None:
    """Checks that a directory can be made.

    Args:
        out: where.
        overwrite: whether one that `prepare` made may be there, with nothing else in it.

    Raises:
        UserError: something is in the way, or would be deleted.
    """
    with write_errors(out):
        require_elsewhere(out)
        if os.path.ismount(out.resolve()):
            raise UserError(f"{out}: a file system begins there; name a directory below it")
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
        ours = (out / PREPARED).is_file()
        names = sorted(path.name for path in out.iterdir()) if ours else []
    if not ours:
        raise UserError(f"{out}: is there and was not made by this command; name another --out")
    if not overwrite:
        raise UserError(f"{out}: holds a prepared log; name another --out, or add --overwrite")
    if strange := [name for name in names if name not in _OURS]:
        raise UserError(
            f"{out}: holds {shown(strange[0])}, which this command did not make and --overwrite "
            "would delete; move it, or name another --out"
        )


def _require_inputs_elsewhere(paths: Sequence[Path], out: Path) -> None:
    """Checks that no file that is read lies in the directory that is replaced."""
    for path in paths:
        # What a link within the directory leads to stays, but the link does not.
        for place in (path.resolve(), path.parent.resolve() / path.name):
            if os.path.lexists(path) and place.is_relative_to(out.resolve()):
                raise UserError(
                    f"--out: {out}: holds the input {path}, which would be deleted; name another "
                    "directory"
                )


# Writes the log to a directory, and measures it.
Fill = Callable[[Path], Figures]


def _counter(raw: RawLog, dropped: dict[str, int]) -> Callable[[str, int], None]:
    """Notes how many of the records are left, and why others went."""
    before = raw.users.codes.size

    def count(reason: str, left: int) -> None:
        nonlocal before
        if left < before:
            dropped[reason] = before - left
        if not left:
            reasons = "; ".join(f"{number:,}: {why}" for why, number in dropped.items())
            raise UserError(f"no record is left of {raw.read:,} ({reasons})")
        before = left

    return count


def _repeated(rule: Duplicates) -> str:
    what = {"exact": "equal to an earlier record", "first": "not a user's first of an item"}
    return what.get(rule, "not a user's last of an item")


def _rare(rules: Rules) -> str:
    return (
        f"a user with fewer than {rules.least_of_user} records or an item with fewer than "
        f"{rules.least_of_item}"
    )


def _in_memory(raw: RawLog, rules: Rules, unit: str) -> tuple[Fill, dict[str, int]]:
    """Filters a log in memory; returns what writes it, and what was dropped why."""
    dropped = dict(sorted(raw.skipped.items()))
    count = _counter(raw, dropped)
    times = raw.times
    if times is not None and not raw.dates:
        times = filters.to_seconds(times, unit)
    records = Records(raw.users.codes, raw.items.codes, times)
    if times is not None and not (fits := filters.in_range(times)).all():
        records = records.keep(fits)
        count("a time outside the years 1 to 9999", len(records))
    records = filters.without_duplicates(filters.in_order(records), rules.duplicates)
    count(_repeated(rules.duplicates), len(records))
    records, _ = filters.core(records, rules.least_of_user, rules.least_of_item)
    count(_rare(rules), len(records))
    user_place, users = raw.users.left(scratch.counts(records.users, len(raw.users)) > 0)
    item_place, items = raw.items.left(scratch.counts(records.items, len(raw.items)) > 0)
    records = Records(user_place[records.users], item_place[records.items], records.times)
    records = filters.in_order(records)

    def fill(directory: Path) -> Figures:
        import pyarrow.parquet as pq

        # A path would be taken for a URI where it has a colon.
        with (directory / PREPARED_LOG).open("wb") as file:
            pq.write_table(
                _table(records, users, items),
                file,
                compression="zstd",
                use_dictionary=["user_id", "item_id"],  # times hardly repeat
                row_group_size=_ROW_GROUP,
                write_page_checksum=True,  # a byte that changes would be another log
            )
            file.flush()
            # Without it the name can reach the disk before the bytes do.
            os.fsync(file.fileno())
        return measure(records)

    return fill, dropped


def _mapped(raw: RawLog, rules: Rules, unit: str) -> tuple[Fill, dict[str, int]]:
    """`_in_memory` of a log on the disk."""
    dropped = dict(sorted(raw.skipped.items()))
    count = _counter(raw, dropped)
    records = Records(raw.users.codes, raw.items.codes, raw.times)
    ordered = mapped.in_order(records, len(raw.users), unit, raw.dates)
    count("a time outside the years 1 to 9999", len(ordered.records))
    ordered = mapped.without_duplicates(ordered, rules.duplicates)
    count(_repeated(rules.duplicates), len(ordered.records))
    ordered = mapped.core(ordered, len(raw.items), rules.least_of_user, rules.least_of_item)
    count(_rare(rules), len(ordered.records))

    def fill(directory: Path) -> Figures:
        log = directory / PREPARED_COLUMNS
        mapped.write(log, ordered, raw.users, raw.items)
        return measure_log(read_mapped(log, contents=False))

    return fill, dropped


def _unit_warnings(raw: RawLog, unit: str, given: str) -> list[str]:
    if raw.times is None:
        return []
    if raw.dates:
        said = f"--unit={given} is of no use: the times are dates, which need none"
        return [said] if given != "auto" else []
    found = []
    if filters.written_as_days(raw.times):
        found.append(
            "the times look like days that are written YYYYMMDD, and are taken for numbers whose "
            "differences are those of time, which they are not: write them YYYY-MM-DD"
        )
    elif given == "auto" and max(raw.times.max(), -raw.times.min()) < 1e8:
        found.append(
            "the times are all before 1973 if they are seconds: they may be ranks or another unit "
            "(--unit says which); only their differences matter to the model"
        )
    elif zeros := filters.zeros_among_dated(raw.times, unit):
        found.append(
            f"{zeros:,} times are 0, which is the year 1970: such records come first of their "
            "user's; leave out what has no time"
        )
    share = filters.share_of_other_units(raw.times, unit)
    if share == 1:
        found.append(
            f"no time is of our age in the unit {unit!r} (--unit=auto takes the likeliest): right "
            "only if they do not count from 1970"
        )
    elif share > 0:
        found.append(
            f"{100 * share:.3g} % of the times are too large or too small for the unit {unit!r} of "
            "the others: units may be mixed"
        )
    return found


def _table(records: Records, users: Any, items: Any) -> Any:
    """The records as an arrow table, ids as they came."""
    import pyarrow as pa

    columns = {
        "user_id": _external(users, records.users),
        "item_id": _external(items, records.items),
    }
    if records.times is not None:
        columns["timestamp"] = pa.array(records.times)
    return pa.table(columns)


def _external(ids: Any, codes: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_integer(ids.type):
        return pa.array(ids.to_numpy()[codes])
    return pa.DictionaryArray.from_arrays(pa.array(codes), ids)


def _write(out: Path, fill: Callable[[Path], str], overwrite: bool) -> str:
    """Fills a directory beside `out`, then gives it the name; returns what `fill` does."""
    place = out.resolve()  # a link stays
    temporary = beside(place)
    with write_errors(out):
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            text = fill(temporary)
            manifest.sync(temporary)
            require_free(out, overwrite)
            replace_directory(temporary, place)
            manifest.sync(place.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return text


def _name(out: Path) -> str:
    """The directory's name, as far as it can name an experiment."""
    kept = (c for c in out.resolve().name if c.isprintable() and c not in "/\\")
    name = "".join(kept).strip(". ")
    # What the main job refuses of a name it would refuse of the log.
    return name if FIELDS["name"].fits(name) else "custom"
