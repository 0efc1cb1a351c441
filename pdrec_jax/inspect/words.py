"""How ids, times and numbers are written, the same in text and on the page."""

from __future__ import annotations

import datetime
import math

# Unix seconds of 1973 and 2128: a number outside is no date, but a count of something.
_DATES = (1e8, 5e9)


def shown(name: str, most: int | None = None) -> str:
    r"""Makes an external id safe to print: what is not printable is written as its escape.

    An id may hold line ends, terminal escapes or signs that turn the direction of writing.

    Args:
      name: any text.
      most: characters; a longer one is cut, and ends with three dots.
    """
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    if most is not None and len(safe) > most:
        safe = safe[: most - 3] + "..."
    return safe


def when(time: float | None) -> str:
    """Writes a time: a UTC date and minute, or the number itself where it is no date."""
    if time is None:
        return ""
    if not _DATES[0] <= time <= _DATES[1]:
        return f"{time:.10g}"
    moment = datetime.datetime.fromtimestamp(time, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M")


def number(value: float | None, digits: int = 3) -> str:
    """Writes a number with a fixed number of digits, nothing where there is none."""
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def score(value: float | None) -> str:
    """Writes a score, whose size differs from model to model."""
    return "" if value is None or math.isnan(value) else f"{value:.4g}"


def rank(value: float | None) -> str:
    """Writes a rank; a tie can make it a half."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
