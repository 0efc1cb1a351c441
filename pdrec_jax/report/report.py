"""report.md: everything a run has to say, on one page, readable as text and as Markdown."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pdrec_jax.files import atomic_write_text, write_errors
from pdrec_jax.report import plots, tables
from pdrec_jax.report.groups import markdown_groups

FILE = "report.md"
_CONFIG = "config.json"  # as in ``workdir``, which would load JAX
INSTALL_PLOTS = (
    "The plots need matplotlib, the extra `plots`: `pip install '.[plots]'` in the folder of the "
    "source code, then run the same command again."
)
_CAPTIONS = {
    "losses.png": "Training loss by epoch. Each plugin adds or weighs terms: losses of models with "
    "different plugins are not comparable.",
    "ndcg_by_epoch.png": "The NDCG@10 that chooses the epoch; the star is the epoch kept.",
    "ndcg_by_history_length.png": "Test NDCG@10 by the length of the user's history, over the "
    "users that every model was evaluated on.",
    "plugins.png": "What each plugin did, beside a uniform draw.",
}
# Heading of a plugin's figure, plugin, key.
_PLUGIN_FIGURES = (
    ("HBR: share of observed items with a weight below a tenth of the mean", "hbr", "low_share"),
    ("HBR: share of observed items with a clipped weight", "hbr", "clipped_share"),
    ("DPA: hit rate of the candidates", "dpa", "hit_rate"),
    ("DPA: hit rate of a uniform draw", "dpa", "uniform_hit_rate"),
    ("DPA: popularity percentile of the candidates", "dpa", "popularity_percentile"),
    ("NNS: false negatives among the draws", "nns", "false_negative_rate"),
    ("NNS: false negatives among uniform draws", "nns", "uniform_false_negative_rate"),
    ("NNS: popularity percentile of the draws", "nns", "popularity_percentile"),
)


def write_report(
    workdir: Path,
    results: Mapping[str, Any],
    metric_lines: Sequence[Mapping[str, Any]],
    per_user: Mapping[str, np.ndarray] | None,
) -> Path:
    """Writes workdir/report.md, and the plots that it links.

    Where matplotlib is missing the report says how to install it instead. The first and the last
    line name the source of the data.

    Args:
        workdir: The run's folder; if it holds config.json, the report quotes it.
        results: A results dict as in results.json; parts may be missing.
        metric_lines: The lines of metrics.jsonl.
        per_user: The arrays of per_user.npz, or None; see `plots.write_plots`.

    Returns:
        The path of the report.

    Raises:
        UserError: The disk is full or the folder cannot be written.
    """
    path = workdir / FILE
    with write_errors(path):
        workdir.mkdir(parents=True, exist_ok=True)
    sections = [
        f"# {tables.title(results)}",
        _data(results),
        "## Results\n\n" + tables.markdown_table(results),
        _training(results),
        _plots(workdir, results, metric_lines, per_user),
        markdown_groups(results),
        _plugins(results),
        _costs(results),
        _config(workdir),
        f"**{tables.source_line(results)}**",
    ]
    atomic_write_text(path, "\n\n".join(section for section in sections if section) + "\n")
    return path


def is_written(workdir: Path) -> bool:
    """Whether a folder has its report, with all that can be drawn here.

    Args:
        workdir: The run's folder.

    Returns:
        False where there is no report, or one that was written while matplotlib was missing.
    """
    path = workdir / FILE
    if not path.is_file():
        return False
    lacks_plots = INSTALL_PLOTS in path.read_text(encoding="utf-8", errors="replace")
    return not (lacks_plots and importlib.util.find_spec("matplotlib") is not None)


def _data(results: Mapping[str, Any]) -> str:
    data = results.get("data") or {}
    rows = [["source", tables.data_label(results)]]
    rows += [
        [file.get("name", "?"), f"sha256 {file.get('sha256', '?')}"]
        for file in data.get("files") or []
    ]
    for key, name in (
        ("users", "users"),
        ("items", "items"),
        ("events", "events"),
        ("dropped_users", "users dropped (fewer than 3 events)"),
    ):
        if data.get(key) is not None:
            rows.append([name, f"{data[key]:,}"])
    table = tables.markdown_rows(["data", "value"], rows)
    return "\n\n".join([*([f"**{data['note']}**"] if data.get("note") else []), table])


def _training(results: Mapping[str, Any]) -> str:
    head = ["model", "best epoch", "epochs", "validation NDCG@10", "test NDCG@10, sampled", "users"]
    rows = []
    for model in results.get("models") or []:
        figures = [(model.get(part) or {}).get("NDCG@10") for part in ("validation", "sampled")]
        rows.append(
            [
                str(model.get("name") or model.get("key") or "?"),
                _count(model.get("best_epoch")),
                _count(model.get("epochs")),
                *(tables.number(figure) for figure in figures),
                _count(model.get("users")),
            ]
        )
    return "## Training\n\n" + tables.markdown_rows(head, rows) if rows else ""


def _plots(
    workdir: Path,
    results: Mapping[str, Any],
    metric_lines: Sequence[Mapping[str, Any]],
    per_user: Mapping[str, np.ndarray] | None,
) -> str:
    try:
        files = plots.write_plots(workdir, results, metric_lines, per_user)
    except plots.PlotsUnavailableError:
        return f"## Plots\n\n{INSTALL_PLOTS}"
    parts = []
    for file in files:
        link = file.relative_to(workdir).as_posix()
        parts.append(f"{_CAPTIONS[file.name]}\n\n![{file.stem.replace('_', ' ')}]({link})")
    return "\n\n".join(["## Plots", *parts]) if parts else ""


def _plugins(results: Mapping[str, Any]) -> str:
    plugins = results.get("plugins") or {}
    rows = []
    for heading, plugin, key in _PLUGIN_FIGURES:
        value = (plugins.get(plugin) or {}).get(key)
        if value is not None:
            rows.append([heading, f"{value:.4g}"])
    return "## Plugins\n\n" + tables.markdown_rows(["figure", "value"], rows) if rows else ""


def _costs(results: Mapping[str, Any]) -> str:
    rows = [[name, tables.duration(spent)] for name, spent in (results.get("times") or {}).items()]
    if results.get("peak_memory_bytes"):
        rows.append(["peak memory", f"{results['peak_memory_bytes'] / 2**30:.2f} GiB"])
    if results.get("device"):
        rows.append(["device", str(results["device"])])
    rows += [[name, str(version)] for name, version in (results.get("versions") or {}).items()]
    return (
        "## Time and versions\n\n" + tables.markdown_rows(["part", "value"], rows) if rows else ""
    )


def _config(workdir: Path) -> str:
    path = workdir / _CONFIG
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    return (
        f"## Configuration\n\n<details><summary>{_CONFIG}</summary>\n\n"
        f"```json\n{text}\n```\n\n</details>"
    )


def _count(value: Any) -> str:
    return "-" if value is None else f"{value:,}"
