"""Plots of a run: losses, NDCG by epoch and by history length, what each plugin did.

matplotlib is imported when a plot is drawn, not before: training must work without it.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pdrec_jax.evaluation.groups import quantile_bins
from pdrec_jax.evaluation.metrics import user_values
from pdrec_jax.files import atomic_write_bytes, write_errors
from pdrec_jax.report.tables import BLOCKS, is_simulated, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = "plots"
_INCHES = 7.0  # with 9 to 10 point text, what is read easily at 700 pixels
_DPI = 200
_INK = "#333333"
_PALE = "#9aa0a6"
_PLUGIN = "#0072b2"
# Okabe and Ito's colours, told apart by colour-blind readers too; the markers serve in print.
_COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a3d9a", "#555555",
)  # fmt: skip
_MARKERS = "osD^vPX*"
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _PALE,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e6e8",
    "grid.linewidth": 0.8,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": _INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "figure.constrained_layout.use": True,
}


class PlotsUnavailableError(ImportError):
    """matplotlib is not installed (or does not import)."""


class Curve(NamedTuple):
    """How one stage looks in every plot."""

    key: str
    name: str
    colour: str
    marker: str
    is_diffusion: bool
    best_epoch: int | None


def write_plots(
    workdir: Path,
    results: Mapping[str, Any],
    metric_lines: Sequence[Mapping[str, Any]],
    per_user: Mapping[str, np.ndarray] | None,
) -> list[Path]:
    """Draws what there is to draw into workdir/plots.

    A model has the same colour and marker in every plot; each plot names the source of the data.
    Parts that are missing (no plugin, no diffusion model, no ranks) are left out.

    Args:
        workdir: The run's folder.
        results: A results dict as in results.json; parts may be missing.
        metric_lines: The lines of metrics.jsonl.
        per_user: "history_length" [U'] and, for each model key, "<key>/sampled_rank" and
            "<key>/full_rank" [U'] float32 (0 is best, NaN where the user was not evaluated), or
            None.

    Returns:
        The PNG files written, in reading order.

    Raises:
        PlotsUnavailableError: matplotlib is missing.
        UserError: The disk is full or the folder cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotsUnavailableError("plots need matplotlib") from error

    curves = _curves(results, metric_lines)
    drawings: list[tuple[str, Callable[[Figure], bool]]] = [
        ("losses.png", lambda figure: _losses(figure, curves, metric_lines)),
        ("ndcg_by_epoch.png", lambda figure: _ndcg_by_epoch(figure, curves, metric_lines, results)),
        ("ndcg_by_history_length.png", lambda figure: _by_length(figure, curves, per_user or {})),
        ("plugins.png", lambda figure: _plugins(figure, results.get("plugins") or {})),
    ]
    folder = workdir / FOLDER
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in drawings:
        # A figure without pyplot: no window system, no global state, safe in any thread.
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=(_INCHES, 3.1))
            FigureCanvasAgg(figure)
            if not draw(figure):
                continue
            _label_source(figure, results)
            image = io.BytesIO()
            # Without the version in the file, the same run gives the same bytes.
            figure.savefig(image, format="png", dpi=_DPI, metadata={"Software": None})
        atomic_write_bytes(folder / name, image.getvalue())
        written.append(folder / name)
    return written


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half the width of its 95 % normal interval, 1.96 s / sqrt(n).

    Args:
        values: [n], n >= 1.

    Returns:
        The mean and the half width; NaN for the latter where n = 1.
    """
    if len(values) < 2:
        return float(values[0]), float("nan")
    return float(values.mean()), float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))


def _curves(results: Mapping[str, Any], lines: Iterable[Mapping[str, Any]]) -> list[Curve]:
    models = {str(model["key"]): model for model in results.get("models") or []}
    # Models first, in the order of the table, so that a stage without a result shifts no colour.
    keys = list(dict.fromkeys([*models, *(str(line["stage"]) for line in lines)]))
    curves = []
    for index, key in enumerate(keys):
        model = models.get(key, {})
        name, stage = str(model.get("name") or key), model.get("stage", key)
        colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
        best_epoch = model.get("best_epoch")
        curves.append(Curve(key, name, colour, marker, stage == "diffusion", best_epoch))
    return curves


def _series(
    lines: Sequence[Mapping[str, Any]], key: str, value: str
) -> tuple[np.ndarray, np.ndarray]:
    points = [
        (line["epoch"], line[value])
        for line in lines
        if line["stage"] == key and line.get(value) is not None
    ]
    pairs = np.asarray(points, np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _stage_panels(
    figure: "Figure", curves: Sequence[Curve], lines: Sequence[Mapping[str, Any]], value: str
) -> list[tuple["Axes", list[tuple[Curve, np.ndarray, np.ndarray]]]]:
    """Draws a value by epoch, diffusion to the left, encoders to the right, where there are any."""
    from matplotlib.ticker import MaxNLocator

    groups: dict[str, list[tuple[Curve, np.ndarray, np.ndarray]]] = {}
    for curve in curves:
        epochs, values = _series(lines, curve.key, value)
        if len(epochs):
            name = "Diffusion" if curve.is_diffusion else "Encoder"
            groups.setdefault(name, []).append((curve, epochs, values))
    panels = []
    for index, name in enumerate(sorted(groups)):
        axes = figure.add_subplot(1, len(groups), index + 1, title=name, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        for curve, epochs, values in groups[name]:
            marker = "." if len(epochs) <= 15 else ""
            axes.plot(epochs, values, color=curve.colour, marker=marker)
        panels.append((axes, groups[name]))
    return panels


def _losses(figure: "Figure", curves: Sequence[Curve], lines: Sequence[Mapping[str, Any]]) -> bool:
    panels = _stage_panels(figure, curves, lines, "loss")
    for axes, series in panels:
        axes.set_ylabel("training loss")
        values = np.concatenate([values for _, _, values in series])
        if values.min() > 0 and values.max() > 30 * values.min():
            axes.set_yscale("log")
    _legend(figure, [(curve, curve.name) for _, series in panels for curve, _, _ in series])
    return bool(panels)


def _ndcg_by_epoch(
    figure: "Figure",
    curves: Sequence[Curve],
    lines: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any],
) -> bool:
    panels = _stage_panels(figure, curves, lines, "ndcg")
    part = {"strict": "validation ", "reference": "test "}.get(str(results.get("protocol")), "")
    labels = []
    for axes, series in panels:
        axes.set_ylabel(f"{part}NDCG@10")
        if axes is not panels[0][0]:
            axes.sharey(panels[0][0])
        for curve, epochs, values in series:
            at = np.flatnonzero(epochs == curve.best_epoch)
            best = int(at[0]) if len(at) else int(values.argmax())
            axes.plot(
                epochs[best], values[best], marker="*", markersize=13, color=curve.colour,
                markeredgecolor="white", markeredgewidth=0.9, clip_on=False, zorder=5,
            )  # fmt: skip
            labels.append((curve, f"{curve.name}: {values[best]:.4f} at epoch {epochs[best]:.0f}"))
    _legend(figure, labels, marker="*", markersize=10, markeredgecolor="white")
    return bool(panels)


def _by_length(
    figure: "Figure", curves: Sequence[Curve], per_user: Mapping[str, np.ndarray]
) -> bool:
    blocks = {}
    for block in BLOCKS:
        ranks = {
            curve.key: np.asarray(per_user[f"{curve.key}/{block}_rank"], np.float64)
            for curve in curves
            if f"{curve.key}/{block}_rank" in per_user
        }
        ranks = {key: values for key, values in ranks.items() if not np.isnan(values).all()}
        if ranks and "history_length" in per_user:
            # The same users for every model, or a bin would compare different people.
            common = ~np.isnan(np.stack(list(ranks.values()))).any(axis=0)
            if common.any():
                blocks[block] = ranks, common
    if not blocks:
        return False
    figure.set_size_inches(_INCHES, 1.1 + 2.2 * len(blocks))
    shown = []
    for row, (block, (ranks, common)) in enumerate(blocks.items()):
        axes = figure.add_subplot(len(blocks), 1, row + 1)
        bins, labels = quantile_bins(np.asarray(per_user["history_length"])[common])
        counts = np.bincount(bins)
        shown = [curve for curve in curves if curve.key in ranks]
        for index, curve in enumerate(shown):
            gains = user_values("NDCG@10", ranks[curve.key][common])
            means, margins = np.transpose(
                [mean_interval(gains[bins == each]) for each in range(len(labels))]
            )
            shift = (index - (len(shown) - 1) / 2) * min(0.14, 0.7 / len(shown))
            places = np.arange(len(labels)) + shift
            low = np.minimum(margins, means)
            axes.errorbar(
                places, means, [low, margins], color=curve.colour, marker=curve.marker,
                markersize=4.5, linewidth=0.7, elinewidth=1.3,
            )  # fmt: skip
        below = [f"{count:,} user{'s' if count > 1 else ''}" for count in counts]
        axes.set_xticks(range(len(labels)), map("\n".join, zip(labels, below, strict=True)))
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set_ylim(bottom=0)
        axes.grid(axis="x", visible=False)
        axes.set(title=f"{block.capitalize()} ranking", ylabel="test NDCG@10")
        if row == len(blocks) - 1:
            axes.set_xlabel("history length (items) and users of that length; bars: 95 % intervals")
    _legend(figure, [(curve, curve.name) for curve in shown], markers=True)
    return True


def _plugins(figure: "Figure", plugins: Mapping[str, Any]) -> bool:
    drawn: list[tuple[float, Callable[[Axes], None]]] = []
    hbr, dpa, nns = (plugins.get(key) or {} for key in ("hbr", "dpa", "nns"))
    if sum(hbr.get("counts") or [0]) > 0 and len(hbr.get("edges") or []) == len(hbr["counts"]) + 1:
        drawn.append((1.7, lambda axes: _weights(axes, hbr)))
    for plugin, name, rate, what in (
        (dpa, "DPA", "hit_rate", "hit rate"),
        (nns, "NNS", "false_negative_rate", "false negatives"),
    ):
        pair = plugin.get(rate), plugin.get(f"uniform_{rate}")
        if all(share is not None and np.isfinite(share) for share in pair):
            drawn.append((1.0, _pair(name, what, pair)))
    if not drawn:
        return False
    grid = figure.add_gridspec(1, len(drawn), width_ratios=[width for width, _ in drawn])
    for index, (_, draw) in enumerate(drawn):
        draw(figure.add_subplot(grid[index]))
    return True


def _weights(axes: "Axes", hbr: Mapping[str, Any]) -> None:
    edges, counts = np.asarray(hbr["edges"], np.float64), np.asarray(hbr["counts"], np.float64)
    shares = 100 * counts / counts.sum()
    axes.bar(
        edges[:-1], shares, np.diff(edges), align="edge",
        color=_PLUGIN, edgecolor="white", linewidth=0.6,
    )  # fmt: skip
    axes.set_ylim(0, 1.3 * shares.max())  # the tallest bar may be the last, below the notes
    notes = [
        f"{100 * hbr[key]:.1f} % {what}"
        for key, what in (
            ("low_share", "below a tenth of the mean"),
            ("clipped_share", "are clipped"),
        )
        if hbr.get(key) is not None
    ]
    if notes:
        axes.text(
            0.97, 0.96, "\n".join(notes), transform=axes.transAxes, ha="right", va="top",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 2},
        )  # fmt: skip
    axes.grid(axis="x", visible=False)
    axes.set(title="HBR: weights", xlabel="weight", ylabel="observed items (%)")


def _pair(name: str, what: str, rates: tuple[Any, Any]) -> Callable[["Axes"], None]:
    def draw(axes: "Axes") -> None:
        bars = axes.bar([name, "uniform"], [100 * rate for rate in rates], 0.62)
        for bar, rate, colour in zip(bars, rates, (_PLUGIN, _PALE), strict=True):
            bar.set_facecolor(colour)
            axes.annotate(
                f"{100 * rate:.3g} %", (bar.get_x() + bar.get_width() / 2, bar.get_height()),
                (0, 3), textcoords="offset points", ha="center",
            )  # fmt: skip
        ratio = f"{rates[0] / rates[1]:.3g} times uniform" if rates[1] else ""
        axes.set(title=f"{name}: {what}", ylabel=f"{what} (%)", xlabel=ratio)
        axes.margins(x=0.2, y=0.14)
        axes.grid(axis="x", visible=False)

    return draw


def _legend(
    figure: "Figure", labels: Sequence[tuple[Curve, str]], markers: bool = False, **style: Any
) -> None:
    from matplotlib.lines import Line2D

    if not labels:
        return
    longest = max(len(label) for _, label in labels)
    handles = []
    for curve, label in labels:
        look = {"marker": curve.marker} if markers else style
        handles.append(Line2D([], [], color=curve.colour, label=label, **look))
    columns = max(1, min(len(labels), 108 // (longest + 8)))
    # The legend must not take its room from the panels.
    figure.set_figheight(figure.get_figheight() + 0.19 * (-(-len(labels) // columns) - 1))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, columnspacing=1.6)


def _label_source(figure: "Figure", results: Mapping[str, Any]) -> None:
    simulated = is_simulated(results)
    figure.supxlabel(
        title(results), x=0.99, ha="right", fontsize=8,
        color="#b00020" if simulated else "#777777", fontweight="bold" if simulated else "normal",
    )  # fmt: skip
