"""The paper's figures from our runs: points of an ablation, curves of a sweep.

matplotlib is imported when a figure is drawn, not before.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdrec_jax.errors import UserError
from pdrec_jax.files import atomic_write_bytes, write_errors
from pdrec_jax.reproduce.cells import Point, Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("o", "s", "^", "D")  # as colours go round
_STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
               "legend.frameon": False, "figure.constrained_layout.use": True,
               "text.parse_math": False, "svg.hashsalt": "pdrec"}  # fmt: skip


def require_matplotlib() -> None:
    """Checks that figures can be drawn, before anything is run for them.

    Raises:
      UserError: matplotlib is missing.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UserError("figures need matplotlib, the extra 'plots'") from error


def draw(table: Table, column: str, folder: Path, name: str) -> list[Path]:
    """Draws one column of a table, a panel a dataset, as NAME.png and NAME.svg.

    Args:
      table: rows with nothing run are left out; those with a ``point`` become curves.
      column: which.
      folder: made if missing.
      name: of the files.

    Returns:
      the files; empty where nothing was run.

    Raises:
      UserError: matplotlib is missing, or the folder cannot be written.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    index = list(table.columns).index(column)
    panels: dict[str, list[tuple[Row, float, float]]] = {}
    for row in table.rows:
        cell = row.cells[index]
        if cell.ours is not None:
            panels.setdefault(row.dataset, []).append((row, cell.ours, cell.deviation or 0.0))
    if not panels:
        with write_errors(folder):  # of another state of the runs
            for ending in ("png", "svg"):
                (folder / f"{name}.{ending}").unlink(missing_ok=True)
        return []
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files = []
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.0, 3.2 * len(panels)))
        FigureCanvasAgg(figure)
        for place, (dataset, shown) in enumerate(panels.items()):
            axes = figure.add_subplot(len(panels), 1, place + 1)
            axes.set_title(dataset, loc="left")
            axes.set_ylabel(f"test {column}")
            points = [(row.point, mean, error) for row, mean, error in shown if row.point]
            if points:
                _curves(axes, points)
            else:
                _points(axes, [(row.name, mean, error) for row, mean, error in shown])
        figure.supxlabel(table.title, fontsize=7)
        for ending, extra in (("png", {"Software": None}), ("svg", {"Date": None})):
            image = io.BytesIO()
            figure.savefig(image, format=ending, dpi=200, metadata=extra)
            files.append(folder / f"{name}.{ending}")
            atomic_write_bytes(files[-1], image.getvalue())
    return files


def _points(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    groups = [name.partition("+")[0].partition(" ")[0] for name, _, _ in points]
    colours = {group: _COLOURS[i % 6] for i, group in enumerate(dict.fromkeys(groups))}
    names, means, errors = zip(*points, strict=True)
    places = range(len(points))
    # No bars: gaps are small beside the figures, and a bar that does not begin at 0 enlarges them.
    for place, mean, error, group in zip(places, means, errors, groups, strict=True):
        axes.errorbar(
            place, mean, error or None, color=colours[group], marker="o", markersize=5, capsize=2
        )
    axes.grid(axis="y", linewidth=0.3)
    axes.set_xticks(places, [name.replace("+", "\n+", 1) for name in names], fontsize=7)


def _curves(axes: Axes, points: Sequence[tuple[Point, float, float]]) -> None:
    curves: dict[tuple[str, str], list[tuple[str, float, float]]] = {}
    for point, mean, error in points:
        curve = curves.setdefault((point.field, point.curve), [])
        curve.append((point.value, mean, error))
    for index, ((field, name), curve) in enumerate(curves.items()):
        values, means, errors = zip(*curve, strict=True)
        # Side by side, for values of different fields have nothing in common.
        axes.errorbar(
            [f"{field}\n{value}" for value in values], means, errors,
            color=_COLOURS[index % 6], marker=_MARKERS[index // 6 % 4], markersize=4, capsize=2,
            label=f"{field} ({name})" if name else field,
        )  # fmt: skip
    axes.tick_params(axis="x", labelsize=6)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside many curves
