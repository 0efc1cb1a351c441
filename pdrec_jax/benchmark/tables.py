"""The outcome of a benchmark as plain text, as Markdown and as plain values for JSON."""

import dataclasses
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pdrec_jax.benchmark.contest import Result, Row
from pdrec_jax.report.tables import markdown_rows

WIDTH = 100
_NAME_WIDTH = 26
_MISSING = "-"
_QUARTILES = {"q1": 0.25, "median": 0.5, "q3": 0.75}
_SHARES = tuple(_QUARTILES.values())

# A heading, its width in the text table, and the cell of a row.
_Column = tuple[str, int, Callable[[Result, Row], str]]


def heading(machine: Mapping[str, Any]) -> str:
    """Names the machine in one line, with what else kept it busy.

    Args:
      machine: from ``suite.describe_machine``.
    """
    versions = machine["versions"]
    text = f"{machine['device']}, {machine['processors']} processors, jax {versions['jax']}"
    if machine["load"] is not None:
        text += f", load {machine['load']:.1f}"
        if machine["load"] > machine["processors"]:
            text += " (BUSY: others were running)"
    return text


def text_table(result: Result, machine: Mapping[str, Any]) -> str:
    """Lays a comparison out as plain text of at most 100 columns.

    Args:
      result: of a comparison.
      machine: from ``suite.describe_machine``, before the comparison.

    Returns:
      the lines, without a newline at the end: times first, then how far they are from what the
      machine could do, then costs.
    """
    lines = [
        f"{result.stage}: {result.title}",
        result.data,
        f"{heading(machine)}; {len(result.ceiling.seconds)} rounds",
        "",
        *_grid(f"ms a {result.unit}", _times(), result, result.rows),
        "",
        *_grid("against the floor", _floors(), result, (*result.rows, result.ceiling, result.copy)),
        "",
        *_grid("of one call", _costs(), result, result.rows),
        *([""] * bool(_notes(result))),
        *_notes(result),
    ]
    return "\n".join(folded for line in lines for folded in _fold(line))


def speedups(results: Sequence[Result]) -> str:
    """Lays out, as Markdown, how many times faster each row is than each row of the reference.

    Args:
      results: of the comparisons; those without the reference are left out.

    Returns:
      the table; empty where nothing was held against the reference.
    """
    rows = []
    for result in results:
        for row in result.rows:
            cells = []
            for other in result.rows:
                if other.foreign and not row.foreign:
                    ratios = result.ratios_to(other, row)
                    low, middle, high = (_figure(float(np.quantile(ratios, q)), 3) for q in _SHARES)
                    cells.append(
                        f"{middle}x ({low} to {high}) {other.name.removeprefix('reference, ')}"
                    )
            if cells:
                time = f"{_figure(1e3 * row.quantile(0.5) / row.units)} ms a {result.unit}"
                rows.append([result.stage, row.name, time, *cells, *[""] * (2 - len(cells))])
    if not rows:
        return ""
    return markdown_rows(["stage", "ours", "median", "faster than the reference", ""], rows)


def markdown(results: Sequence[Result], machine: Mapping[str, Any]) -> str:
    """Lays all comparisons out as Markdown.

    Args:
      results: of the comparisons.
      machine: from ``suite.describe_machine``.
    """
    parts = ["# Benchmark", heading(machine) + "."]
    if table := speedups(results):
        parts.append(table)
    for result in results:
        columns = (*_times(), *_floors(), *_costs())
        head = [f"ms a {result.unit}", *(name for name, _, _ in columns)]
        rows = [
            [row.name, *(cell(result, row) for _, _, cell in columns)]
            for row in (*result.rows, result.ceiling, result.copy)
        ]
        rounds = f"{len(result.ceiling.seconds)} rounds"
        parts += [
            f"## {result.stage}: {result.title}",
            f"{result.data}; {rounds}.",
            markdown_rows(head, rows),
            *_notes(result),
        ]
    return "\n\n".join(parts) + "\n"


def as_json(results: Sequence[Result], machine: Mapping[str, Any], sizes: Any) -> dict[str, Any]:
    """Turns all comparisons into plain values; every single time is kept.

    Args:
      results: of the comparisons.
      machine: from ``suite.describe_machine``.
      sizes: a ``Sizes``.
    """
    comparisons = []
    for result in results:
        shared = ("stage", "title", "data", "unit", "agreement", "notes", "compilations")
        comparisons.append(
            {name: getattr(result, name) for name in shared}
            | {"rows": [_plain(result, row) for row in result.rows]}
            | {"ceiling": _plain(result, result.ceiling), "copy": _plain(result, result.copy)}
        )
    return {
        "format": 1,
        "machine": dict(machine),
        "sizes": dataclasses.asdict(sizes),
        "comparisons": comparisons,
    }


def _plain(result: Result, row: Row) -> dict[str, Any]:
    """A row with what follows from it; times of one call, ``per_unit`` in seconds a unit."""
    ratios = result.ratios(row)
    per_unit = {name: row.quantile(share) / row.units for name, share in _QUARTILES.items()}
    return dataclasses.asdict(row) | {
        "compile_seconds": row.compile_seconds,
        "per_unit": {"min": min(row.seconds) / row.units, **per_unit},
        "units_per_second": row.units / row.quantile(0.5),
        "flops_per_second": row.rate,
        "share_of_ceiling": _share(result, row),
        "bytes_per_second": row.bandwidth,
        "floor_seconds": result.floor(row),
        "ratio": None if ratios is None else _quartiles(ratios),
        "faster_than": {
            other.name: _quartiles(result.ratios_to(other, row))
            for other in result.rows
            if other.foreign and not row.foreign and row in result.rows
        },
    }


def _quartiles(ratios: np.ndarray) -> dict[str, float]:
    return {name: float(np.quantile(ratios, share)) for name, share in _QUARTILES.items()}


def _share(result: Result, row: Row) -> float | None:
    """Operations a second over those of the matrix product."""
    ceiling = result.ceiling.rate
    return None if row.rate is None or ceiling is None else row.rate / ceiling


def _times() -> tuple[_Column, ...]:
    def time(share: float) -> Callable[[Result, Row], str]:
        return lambda result, row: _figure(1e3 * row.quantile(share) / row.units)

    def speedup(result: Result, row: Row) -> str:
        ratios = result.ratios(row)
        return _MISSING if ratios is None else _figure(float(np.median(ratios)), 3) + "x"

    def spread(result: Result, row: Row) -> str:
        ratios = result.ratios(row)
        if ratios is None:
            return _MISSING
        return "-".join(_figure(float(np.quantile(ratios, share)), 3) for share in (0.25, 0.75))

    def difference(result: Result, row: Row) -> str:
        return _MISSING if row.difference is None else f"{row.difference:.1e}"

    return (
        ("median", 9, time(0.5)),
        ("min", 9, time(0.0)),
        ("q1", 9, time(0.25)),
        ("q3", 9, time(0.75)),
        ("a second", 9, lambda result, row: _figure(row.units / row.quantile(0.5))),
        ("ratio", 8, speedup),
        ("q1-q3", 12, spread),
        ("differs", 9, difference),
    )


def _floors() -> tuple[_Column, ...]:
    def percent(value: float | None) -> str:
        return _MISSING if value is None else f"{value:.0%}"

    def floor(result: Result, row: Row) -> str:
        seconds = result.floor(row)
        return _MISSING if seconds is None else _figure(1e3 * seconds / row.units)

    def of_floor(result: Result, row: Row) -> str:
        seconds = result.floor(row)
        return percent(None if seconds is None else seconds / row.quantile(0.5))

    return (
        ("GFLOP", 10, lambda result, row: _billions(row.flops)),
        ("GFLOP/s", 10, lambda result, row: _billions(row.rate)),
        ("of ceiling", 11, lambda result, row: percent(_share(result, row))),
        ("GB", 9, lambda result, row: _billions(row.moved)),
        ("GB/s", 9, lambda result, row: _billions(row.bandwidth)),
        ("floor", 10, floor),
        ("of floor", 10, of_floor),
    )


def _costs() -> tuple[_Column, ...]:
    return (
        ("compile", 9, lambda result, row: f"{row.compile_seconds:.1f} s"),
        ("peak MiB", 10, lambda result, row: _mebibytes(row.peak_bytes)),
        ("added MiB", 10, lambda result, row: _mebibytes(row.added_bytes)),
        ("device MiB", 11, lambda result, row: _mebibytes(row.device_peak_bytes)),
    )


def _grid(
    corner: str, columns: tuple[_Column, ...], result: Result, rows: Sequence[Row]
) -> list[str]:
    head = corner.ljust(_NAME_WIDTH) + "".join(name.rjust(width) for name, width, _ in columns)
    body = [
        row.name.ljust(_NAME_WIDTH)
        + "".join(cell(result, row).rjust(width) for _, width, cell in columns)
        for row in rows
    ]
    return [head, *body]


def _notes(result: Result) -> list[str]:
    lines = [f"Differs: {result.agreement}."] if result.agreement else []
    lines += result.notes
    if result.compilations:
        lines.append(
            f"WARNING: compiled {result.compilations} times while the clock ran; times include it."
        )
    return lines


def _figure(value: float, digits: int = 4) -> str:
    """Writes a positive number with that many digits, thousands in groups, never an exponent."""
    if not math.isfinite(value) or value <= 0:
        return _MISSING
    decimals = max(digits - 1 - math.floor(math.log10(value)), 0)
    return f"{value:,.{min(decimals, 6)}f}"


def _mebibytes(count: int | None) -> str:
    return _MISSING if count is None else f"{count / 2**20:,.0f}"


def _billions(count: float | None) -> str:
    return _MISSING if count is None else _figure(count / 1e9)


def _fold(line: str) -> list[str]:
    """Breaks a line of words that is too long; a row of a table is not."""
    if len(line) <= WIDTH:
        return [line.rstrip()]
    return textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
