"""The figures of several seeds: means, deviations, and what a variant gains over its base."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pdrec_jax.evaluation.over_seeds import is_repeated
from pdrec_jax.files import atomic_write_text, write_errors
from pdrec_jax.report import tables
from pdrec_jax.report.groups import markdown_groups

FILE = "report.md"
_LEVEL = 0.05
_ROWS = (
    ("gain", "difference"),
    ("95 % from", "low"),
    ("95 % to", "high"),
    ("p, users", "p_users_holm"),
    ("p, seeds", "p_seeds_holm"),
)
_NOTE = (
    "Gain: mean difference to the base over seeds and users, with its bootstrap interval. "
    "p: paired t-tests over users and over seeds, Holm-corrected over the {count} comparisons "
    "of the ranking{same}{fewer}; * below 0.05.{alone}"
)


def seeds_table(results: Mapping[str, Any]) -> str:
    """Lays out means, standard deviations and comparisons as plain text of at most 100 columns.

    Args:
      results: of several seeds, see ``evaluation.over_seeds``.

    Returns:
      the lines, without a newline at the end.
    """
    table = tables.results_table({**results, "models": with_deviations(results)})
    *lines, source = table.splitlines()
    for block in tables.BLOCKS:
        lines += _comparisons(results, block)
    return "\n".join([*lines, source])


def write_seeds_report(workdir: Path, results: Mapping[str, Any]) -> Path:
    """Writes workdir/report.md; each seed's own report lies in its folder.

    Args:
      workdir: of the run.
      results: of several seeds.

    Returns:
      the path.

    Raises:
      UserError: the disk is full or the folder cannot be written.
    """
    path = workdir / FILE
    with write_errors(path):
        workdir.mkdir(parents=True, exist_ok=True)
    seeds = results.get("seeds") or []
    links = ", ".join(f"[{seed}](seed-{seed}/{FILE})" for seed in seeds)
    sections = [
        f"# {tables.title(results)}",
        f"Mean and standard deviation over {len(seeds)} seeds. The report of each: {links}.",
        "## Results\n\n" + tables.markdown_table({**results, "models": with_deviations(results)}),
        *markdown_comparisons(results),
        *filter(None, [markdown_groups(results)]),
        f"**{tables.source_line(results)}**",
    ]
    atomic_write_text(path, "\n\n".join(sections) + "\n")
    return path


def with_deviations(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Puts a row of standard deviations below each model that has them, for a table."""
    rows: list[dict[str, Any]] = []
    for model in results.get("models") or []:
        rows.append(dict(model))
        if model.get("deviation"):
            rows.append({"name": tables.DEVIATION, **model["deviation"]})
    return rows


def _of(results: Mapping[str, Any], block: str) -> dict[str, list[Mapping[str, Any]]]:
    """The comparisons of a block by model, in order."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for each in results.get("comparisons") or []:
        if each["block"] == block:
            found.setdefault(each["key"], []).append(each)
    return found


def _names(results: Mapping[str, Any]) -> dict[str, str]:
    return {str(m["key"]): str(m.get("name") or m["key"]) for m in results.get("models") or []}


def _comparisons(results: Mapping[str, Any], block: str) -> list[str]:
    by_model, names = _of(results, block), _names(results)
    if not by_model:
        return []
    lines = ["", f"{block.capitalize()} ranking, gains over the base:"]
    for key, family in by_model.items():
        lines.append(f"{names[key]} less {names[family[0]['base']]}")
        short = [each["metric"].replace("NDCG", "N") for each in family]
        lines.append(" " * 10 + "".join(name.rjust(7) for name in short))
        for label, field in _ROWS:
            cells = [_cell(each[field], field) for each in family]
            lines.append(label.ljust(10) + "".join(cell.rjust(7) for cell in cells))
    return [*lines, *textwrap.wrap(_note(by_model), tables.WIDTH)]


def _note(by_model: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What the rows of a block's comparisons are."""
    every = [each for family in by_model.values() for each in family]
    repeated = [is_repeated(each, family) for family in by_model.values() for each in family]
    same = ", where N@1 and HR@1 are one" * any(repeated)
    counts = [
        sum(
            each[field] is not None and math.isfinite(each[field]) and not again
            for each, again in zip(every, repeated, strict=True)
        )
        for field in ("p_users_holm", "p_seeds_holm")
    ]
    fewer = f", over the {counts[1]} of them where seeds differ" * (0 < counts[1] < counts[0])
    alone = any(each["metric"] == "AUC" for each in every)
    return _NOTE.format(
        count=counts[0],
        same=same,
        fewer=fewer,
        alone=" AUC is compared in this ranking alone." * alone,
    )


def markdown_comparisons(results: Mapping[str, Any]) -> list[str]:
    """Lays out ``comparisons`` as Markdown, a section a block; empty where there are none."""
    parts = []
    for block in tables.BLOCKS:
        by_model, names = _of(results, block), _names(results)
        if not by_model:
            continue
        metrics = [each["metric"] for each in next(iter(by_model.values()))]
        rows: list[Sequence[str]] = []
        for key, family in by_model.items():
            base = names[family[0]["base"]]
            for label, field in _ROWS:
                cells = [_cell(each[field], field) for each in family]
                rows.append([f"{names[key]} less {base}: {label}", *cells])
        parts.append(
            f"## Gains over the base, {block} ranking\n\n"
            + tables.markdown_rows(["comparison", *metrics], rows)
            + f"\n\n{_note(by_model)}"
        )
    return parts


def _cell(value: Any, field: str) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    if field.startswith("p_"):
        return tables.p_value(value) + "*" * (value < _LEVEL)
    return f"{value:+.4f}".replace("0.", ".", 1)
