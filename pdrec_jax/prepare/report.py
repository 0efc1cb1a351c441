"""What a person is told of a prepared log: what was dropped and why, figures, warnings."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdrec_jax.prepare.defaults import USUAL_NEGATIVES
from pdrec_jax.prepare.figures import Figures

# Within so many standard deviations, above or below, the order of a log is taken for chance.
NO_SIGNAL = 3.0
_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


def warnings(figures: Figures, times: bool) -> list[str]:
    """What in a log can spoil a result.

    Args:
        figures: of the log.
        times: whether it has times.

    Returns:
        One sentence each.
    """
    found = []
    if not times:
        found.append("no times: the order of the rows is taken for the order of time")
    elif figures.first_time == figures.last_time:
        found.append("all times are equal: they are left out, and the order of the rows counts")
    elif figures.tied_ends is not None and figures.tied_ends > 0.1:
        found.append(
            f"{_percent(figures.tied_ends)} of the users have their last two records at the same "
            "time: which of them is tested is the order of the rows"
        )
    if figures.order is not None and figures.order <= -NO_SIGNAL:
        found.append(
            "neighbours recur less often than after a shuffle "
            f"({-figures.order:.1f} standard deviations): the order of the records is not chance, "
            "but not one that users share either; is the time column the right one?"
        )
    elif figures.order is not None and figures.order < NO_SIGNAL:
        found.append(
            "the order of the records carries no signal: neighbours recur no more often than after "
            f"a shuffle ({figures.order:.1f} standard deviations); is the time column the right "
            "one, and are the rows of a tie in order?"
        )
    if figures.order is None:
        found.append("too few records to tell whether their order carries a signal")
    if figures.cold_tests > 0.1:
        found.append(
            f"{_percent(figures.cold_tests)} of the test items occur in no training part, so no "
            "model can rank them well; --item_core drops rare items"
        )
    if figures.short_users:
        found.append(
            f"{figures.short_users:,} users have fewer than 3 records and are neither trained on "
            "nor tested"
        )
    if figures.lone_users:
        found.append(
            f"{figures.lone_users:,} users have 3 records, of which one is left to learn from and "
            "two are expected; without a second domain they are neither trained on nor tested"
        )
    if figures.users - figures.short_users < 100:
        found.append("fewer than 100 users: differences between models will be chance")
    if figures.items < 200:
        found.append(
            f"{figures.items} items: so small a catalogue needs no model of this kind, and fewer "
            f"candidates than the usual {USUAL_NEGATIVES}"
        )
    free = figures.items - figures.widest
    if free < 2:
        found.append(
            f"a user has {figures.widest:,} of the {figures.items:,} items: nothing is left to "
            "draw negatives from, so training refuses the log; such users are best taken out"
        )
    elif free < 2 * USUAL_NEGATIVES and figures.items >= 200:
        found.append(
            f"a user has {figures.widest:,} of the {figures.items:,} items: every user is ranked "
            f"among fewer candidates than the usual {USUAL_NEGATIVES} because of this; such users "
            "are best taken out"
        )
    return found


def report(
    *,
    files: Sequence[str],
    read: int,
    unit: str,
    dropped: dict[str, int],
    figures: Figures,
    warnings: Sequence[str],
    settings: dict[str, Any],
    out: Path,
) -> str:
    """Writes the report.

    Args:
        files: names of the files read.
        read: rows in them.
        unit: of the times; empty without times.
        dropped: records by the reason that they went for.
        figures: of what is left.
        warnings: from `warnings` and of the units.
        settings: chosen for the main job.
        out: directory of the result.

    Returns:
        Lines of text.
    """
    lines = [f"Read: {read:,} rows of {', '.join(files)}"]
    if unit:
        lines.append(f"Times: {_UNITS.get(unit, unit)}, UTC where they name no zone")
    lines.append("")
    lines.append("Dropped:" if dropped else "Dropped: nothing")
    lines += [f"  {count:>12,}  {reason}" for reason, count in dropped.items()]
    lines += ["", "Left:"]
    lines += [f"  {name:<38}{value}" for name, value in _figures(figures)]
    lines += ["", "Warnings:" if warnings else "Warnings: none"]
    lines += [f"  - {warning}" for warning in warnings]
    lines += ["", "Settings chosen for it (any --config.FIELD=VALUE wins):"]
    lines += [f"  {field} = {value!r}" for field, value in settings.items()]
    lines += [
        "",
        "Train on it:",
        "  python -m pdrec_jax.main --config=configs/custom.py "
        f"--config.data.path={shlex.quote(str(out))}",
    ]
    return "\n".join(lines) + "\n"


def _figures(figures: Figures) -> list[tuple[str, str]]:
    rows = [
        ("users", f"{figures.users:,}"),
        ("items", f"{figures.items:,}"),
        ("records", f"{figures.records:,}"),
        ("density", f"{100 * figures.density:.4f} %"),
        (
            "records a user",
            f"{figures.shortest:,} to {figures.longest:,}, median {figures.median:g}, mean "
            f"{figures.mean:.1f}, 99 % up to {figures.high:,}",
        ),
        ("items with one record", f"{figures.single_items:,}"),
        ("a user's repeats of an item", f"{figures.repeats:,}"),
        ("test items in no training part", _percent(figures.cold_tests)),
    ]
    if figures.first_time is not None and figures.last_time is not None:
        rows.append(("time", f"{_day(figures.first_time)} to {_day(figures.last_time)}"))
    if figures.ties is not None and figures.tied_ends is not None:
        rows.append(("at the time of the record before", _percent(figures.ties)))
        rows.append(("users whose last two records tie", _percent(figures.tied_ends)))
    if figures.order is not None:
        rows.append(
            ("shuffle test", f"{figures.order:.1f} standard deviations above a random order")
        )
    return rows


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _day(seconds: float) -> str:
    start = datetime.datetime(1970, 1, 1)
    return (start + datetime.timedelta(seconds=seconds)).date().isoformat()
