"""A table of the paper: three lines a cell, as Markdown, CSV and LaTeX.

Below it, of several seeds, what each variant gains over its base, three lines a cell as well.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from pdrec_jax.evaluation.paper import TOLERANCE
from pdrec_jax.files import atomic_write_text, write_errors
from pdrec_jax.report.tables import markdown_rows, p_value

FLAG = "!"


@dataclasses.dataclass(frozen=True)
class Gain:
    """A variant's figure less its base's.

    Attributes:
      difference: mean over users and seeds.
      p_users: of a paired t-test over users; NaN where there is none.
      p_seeds: likewise over seeds.
    """

    difference: float
    p_users: float
    p_seeds: float

    def lines(self, decimals: int) -> list[str]:
        """Gain, p over users, p over seeds."""
        return [
            f"{self.difference:+.{decimals}f}",
            f"p {p_value(self.p_users)}",
            f"p {p_value(self.p_seeds)}",
        ]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One figure.

    Attributes:
      paper: the published value; None where none was verified.
      ours: ours, a mean where there are several seeds; None where it was not run.
      deviation: its standard deviation over seeds; None of a single seed.
      decimals: digits after the point.
      gain: over the base; None of a base, a single seed or another model.
    """

    paper: float | None = None
    ours: float | None = None
    deviation: float | None = None
    decimals: int = 4
    gain: Gain | None = None

    @property
    def difference(self) -> float | None:
        """Ours, as it is shown, less the paper's, so that a reader can do the sum."""
        if self.paper is None or self.ours is None or not math.isfinite(self.ours):
            return None
        difference = round(self.ours, self.decimals) - self.paper
        return round(difference, self.decimals) + 0.0  # -0 becomes 0

    @property
    def flagged(self) -> bool:
        """Whether the difference exceeds the paper's own tolerance, which is of metrics alone."""
        if self.difference is None or self.decimals == 0:
            return False
        return abs(self.difference) > TOLERANCE + 1e-12

    def lines(self, plus_minus: str) -> list[str]:
        """Paper, ours, difference; empty where there is none."""
        ours = self._text(self.ours)
        if ours and self.deviation is not None and math.isfinite(self.deviation):
            ours += f" {plus_minus} {self._text(self.deviation)}"
        change = ""
        if self.difference is not None:
            change = f"{self.difference:+,.{self.decimals}f}" + f" {FLAG}" * self.flagged
        return [self._text(self.paper), ours, change]

    def _text(self, value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return ""
        return f"{value:,.{self.decimals}f}"


@dataclasses.dataclass(frozen=True)
class Point:
    """Where a row stands in a figure of curves.

    Attributes:
      field: that is swept.
      value: of the field.
      curve: what tells this curve of the field from others, such as the variant; empty where there
        is one.
    """

    field: str
    value: str
    curve: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A model of a dataset; of a sweep, with its place in the figure."""

    dataset: str
    name: str
    cells: Sequence[Cell]
    point: Point | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table, whether its cells were run or not.

    Attributes:
      name: of the table or figure.
      protocol: of its runs.
      seeds: in words.
      source: of the logs, ``real`` or ``simulated``.
      columns: headings of the cells.
      rows: by dataset.
      notes: what a reader must know.
    """

    name: str
    protocol: str
    seeds: str
    source: str
    columns: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    @property
    def gaining(self) -> list[Row]:
        """The rows that have a gain."""
        return [row for row in self.rows if any(cell.gain for cell in row.cells)]

    @property
    def title(self) -> str:
        """With the protocol and the seeds, and the source of the logs where it is no real one."""
        simulated = ["SIMULATED DATA"] * (self.source == "simulated")
        return " | ".join([*simulated, self.name, f"protocol {self.protocol}", self.seeds])


def markdown(table: Table) -> str:
    """Writes a table as Markdown, a heading a dataset."""
    parts = [f"# {table.title}", *table.notes]
    for dataset in dict.fromkeys(row.dataset for row in table.rows):
        rows = [
            [row.name, *("<br>".join(cell.lines("±")).strip() for cell in row.cells)]
            for row in table.rows
            if row.dataset == dataset
        ]
        rows = [["" if cell in ("", "<br><br>") else cell for cell in row] for row in rows]
        parts += [f"## {dataset}", markdown_rows(["model", *table.columns], rows)]
        gains = [
            [row.name, *("<br>".join(_gain_lines(cell)) for cell in row.cells)]
            for row in table.gaining
            if row.dataset == dataset
        ]
        if gains:
            parts.append(markdown_rows(["gain over the base", *table.columns], gains))
    return "\n\n".join(parts) + "\n"


def comma_separated(table: Table) -> str:
    """Writes a table as CSV, a line a cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["dataset", "model", "column", "paper", "ours", "deviation", "difference", "flagged"]
    writer.writerow([*head, "gain", "p_users", "p_seeds", "protocol", "seeds", "data"])
    about = [table.protocol, table.seeds, table.source]
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            numbers = (cell.paper, cell.ours, cell.deviation, cell.difference)
            texts = [
                "" if n is None or not math.isfinite(n) else _plain(n, cell.decimals)
                for n in numbers
            ]
            of_metric = cell.difference is not None and cell.decimals > 0
            texts.append(str(cell.flagged).lower() if of_metric else "")
            gains = [] if cell.gain is None else dataclasses.astuple(cell.gain)
            texts += [repr(float(f"{n:.6g}")) if math.isfinite(n) else "" for n in gains]
            texts += [""] * (3 - len(gains))
            writer.writerow([row.dataset, row.name, column, *texts, *about])
    return out.getvalue()


def latex(table: Table) -> str:
    """Writes a table as LaTeX, which needs the package booktabs; gains as a second one."""
    lines = [f"% {table.title}", *(f"% {note}" for note in table.notes)]
    lines += _tabular(table, table.rows, "model", lambda cell: cell.lines(r"$\pm$"))
    if table.gaining:
        lines += ["", *_tabular(table, table.gaining, "gain over the base", _gain_lines)]
    return "\n".join(lines) + "\n"


def _tabular(
    table: Table, rows: Sequence[Row], heading: str, lines_of: Callable[[Cell], list[str]]
) -> list[str]:
    lines = [
        r"\begin{tabular}{ll" + "r" * len(table.columns) + "}",
        r"\toprule",
        *_said_of_data(table),
        " & ".join(["dataset", heading, *map(_escaped, table.columns)]) + r" \\",
    ]
    before = None
    for row in rows:
        if row.dataset != before:
            lines.append(r"\midrule")
        shown = _escaped(row.dataset) if row.dataset != before else ""
        cells = [_stacked(lines_of(cell)) for cell in row.cells]
        lines.append(" & ".join([shown, _escaped(row.name), *cells]) + r" \\")
        before = row.dataset
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def write(table: Table, folder: Path, name: str) -> list[Path]:
    """Writes NAME.md, NAME.csv and NAME.tex.

    Raises:
      UserError: the disk is full or the folder cannot be written.
    """
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files = []
    for ending, text in (("md", markdown), ("csv", comma_separated), ("tex", latex)):
        files.append(folder / f"{name}.{ending}")
        atomic_write_text(files[-1], text(table))
    return files


def _gain_lines(cell: Cell) -> list[str]:
    return cell.gain.lines(cell.decimals) if cell.gain else []


def _stacked(lines: Sequence[str]) -> str:
    """Lines of a cell above each other; what is special to LaTeX is as they have it."""
    lines = [line.replace("<", r"\textless{}") for line in lines]
    return r"\shortstack[r]{" + r"\\".join(lines) + "}" if any(lines) else ""


def _said_of_data(table: Table) -> list[str]:
    """A line across the table where its logs are no real ones."""
    if table.source == "real":
        return []
    return [rf"\multicolumn{{{2 + len(table.columns)}}}{{l}}{{{_escaped(table.title)}}} \\"]


def _plain(number: float, decimals: int) -> str:
    return str(round(number)) if decimals == 0 else repr(round(number, 6))


_WORDS = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    # In LaTeX's own encoding of fonts these are other characters.
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def _escaped(text: str) -> str:
    return "".join(_WORDS.get(c) or (f"\\{c}" if c in "&%$#_{}" else c) for c in text)
