"""The figures of a run as a plain-text table and as Markdown.

The source of the data is said first and last, so that nobody takes figures of a simulated log for
figures of a real one.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pdrec_jax.evaluation.metrics import CUTOFFS

WIDTH = 100
BLOCKS = {
    "sampled": "Sampled ranking: the test item and {negatives} drawn items",
    "full": "Full ranking: the test item among the whole catalogue",
}
_NAME_WIDTH = 19
_CELL = 6  # a space and ".1234"
DEVIATION = "  +-"  # name of the row below a model that has its standard deviations
_MISSING = "-"

_NDCG = [(f"@{k}", f"NDCG@{k}") for k in CUTOFFS]
_HR = [(f"@{k}", f"HR@{k}") for k in CUTOFFS]
_OTHER = [("AUC", "AUC"), ("MRR", "MRR")]


def is_simulated(results: Mapping[str, Any]) -> bool:
    """Whether the log of a run was made by the simulator.

    Args:
        results: A results dict as in results.json.

    Returns:
        True for simulated data.
    """
    return _data(results).get("source") == "simulated"


def data_label(results: Mapping[str, Any]) -> str:
    """Names the source of a run's data, in capitals where it is not a real log.

    Args:
        results: A results dict as in results.json.

    Returns:
        "SIMULATED DATA", "real data" or, when the dict does not say, "DATA OF UNKNOWN SOURCE".
    """
    if is_simulated(results):
        return "SIMULATED DATA"
    return "real data" if _data(results).get("source") == "real" else "DATA OF UNKNOWN SOURCE"


def title(results: Mapping[str, Any]) -> str:
    """Names a run in one line: source of the data, name, protocol, seed.

    Args:
        results: A results dict as in results.json.

    Returns:
        At most 100 characters; a long name is cut.
    """
    seeds = results.get("seeds")
    which = f"seeds {_in_short(seeds)}" if seeds else f"seed {results.get('seed', '?')}"
    tail = f" | protocol {results.get('protocol', '?')} | {which}"
    head = f"{data_label(results)} | "
    return _cut(head + _cut(str(results.get("name", "")), WIDTH - len(head) - len(tail)) + tail)


def _in_short(seeds: Sequence[int]) -> str:
    """Some seeds, in ascending order, in words."""
    if len(seeds) > 1 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def source_line(results: Mapping[str, Any]) -> str:
    """Says in one line where the data comes from; the last line of every table and report.

    Args:
        results: A results dict as in results.json.

    Returns:
        For a simulated log a warning, for a real one its files, with checksums as far as they fit
        into 100 characters.
    """
    if is_simulated(results):
        return "SIMULATED DATA: made by the simulator; not comparable with figures of any real log."
    files = ", ".join(
        f"{file.get('name', '?')} (sha256 {str(file.get('sha256', '?'))[:12]})"
        for file in _data(results).get("files") or []
    )
    label = data_label(results)
    return _cut(f"{label[0].upper()}{label[1:]}" + (f": {files}" if files else ""))


def results_table(results: Mapping[str, Any]) -> str:
    """Lays out the test figures of all models as plain text of at most 100 columns.

    Two blocks, sampled and full ranking, a row a model; figures drop the leading zero (".1823").
    The paper's NDCG@10 stands beside ours, except on simulated data, where the two have nothing in
    common. A figure that is missing or not finite is shown as "-".

    Args:
        results: A results dict as in results.json; parts may be missing.

    Returns:
        The lines, ASCII unless a name is not, without a newline at the end. The first names data,
        protocol and seed, the last the data source.
    """
    models = results.get("models") or []
    lines = [title(results), *_about(results)]
    for block in BLOCKS:
        lines += ["", *_block(results, models, block)]
    if not models:
        lines = [*lines[: 1 + len(_about(results))], "", "No model has been evaluated."]
    lines += ["", *_costs(results), source_line(results)]
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(results: Mapping[str, Any]) -> str:
    """Lays out the test figures of all models as Markdown, the best figure of a column in bold.

    Args:
        results: A results dict as in results.json; parts may be missing.

    Returns:
        A heading and a table for each kind of ranking, without a newline at the end.
    """
    models = results.get("models") or []
    if not models:
        return "No model has been evaluated."
    ranked = [model for model in models if model.get("name") != DEVIATION]
    parts = []
    for block in BLOCKS:
        names = [name for _, name in (*_NDCG, *_HR, *_OTHER)]
        best = {name: _best(ranked, block, name) for name in names}
        head, rows = [*names], []
        has_paper = block == "sampled" and _has_paper(results, models)
        for model in models:
            row = []
            for name in names:
                cell = number(_value(model, block, name))
                strong = cell == best[name] and model in ranked and len(ranked) > 1
                strong = strong and cell != _MISSING
                row.append(f"**{cell}**" if strong else cell)
            if has_paper:
                row.insert(names.index("NDCG@10") + 1, number(_paper(model)))
            rows.append([_name(model), *row])
        if has_paper:
            head.insert(names.index("NDCG@10") + 1, "paper's NDCG@10")
        heading = _heading(results, block) + _users(models)
        parts.append(f"{heading}\n\n" + markdown_rows(["model", *head], rows))
    return "\n\n".join(parts)


def markdown_rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Writes a Markdown table: first column to the left, figures to the right.

    Args:
        head: The headings.
        rows: The cells, as long as `head` each; a bar within a cell is escaped.

    Returns:
        The table without a newline at the end.
    """
    marks = ["---", *["---:"] * (len(head) - 1)]
    table = [head, marks, *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table
    )


def duration(seconds: float) -> str:
    """Writes a time for people: "8.1 s", "12 min 34 s" or "1 h 02 min".

    Args:
        seconds: The time.

    Returns:
        The text.
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def number(value: Any, short: bool = False) -> str:
    """Writes a metric with four digits.

    Args:
        value: The figure; None, NaN and infinities count as missing.
        short: Drop the leading zero, so that it fits five characters: ".1823", "1.000".

    Returns:
        The text, "-" where the figure is missing.
    """
    if not _finite(value):
        return _MISSING
    text = f"{value:.4f}"
    return (text[1:] if text.startswith("0.") else text[:5]) if short else text


def p_value(value: float) -> str:
    """Writes a p-value to three digits, ``-`` where there is none."""
    if not math.isfinite(value):
        return "-"
    return "<.001" if value < 0.001 else f"{value:.3f}".replace("0.", ".", 1)


def _block(results: Mapping[str, Any], models: Sequence[Any], block: str) -> list[str]:
    has_paper = _has_paper(results, models)
    columns: list[tuple[str, Callable[[Any], Any] | None, str]] = []
    for group, metrics in (("NDCG", _NDCG), ("HR", _HR), ("", _OTHER)):
        for heading, metric in metrics:
            columns.append((heading, _getter(block, metric), group))
            if metric == "NDCG@10" and has_paper:
                # Blank in the block without paper figures, so that the blocks' columns line up.
                paper = ("paper", _paper) if block == "sampled" else ("", None)
                columns.append((*paper, group))
    above, below = " " * _NAME_WIDTH, "model".ljust(_NAME_WIDTH)
    spaces = []
    previous = None
    for heading, _, group in columns:
        gap = " " * (group != previous)
        spaces.append(gap)
        below += gap + heading.rjust(_CELL)
        if group and group != previous:
            span = _CELL * sum(column[2] == group for column in columns) - 2
            above += gap + "  " + f" {group} ".center(span, "-")
        previous = group
    lines = [_heading(results, block) + _users(models), above, below]
    for model in models:
        cells = "".join(
            gap + (number(get(model), short=True) if get else "").rjust(_CELL)
            for gap, (_, get, _) in zip(spaces, columns, strict=True)
        )
        name = _cut(_name(model))
        if len(name) > _NAME_WIDTH:
            lines.append(name)
            name = ""
        lines.append(name.ljust(_NAME_WIDTH) + cells)
    return lines


def _heading(results: Mapping[str, Any], block: str) -> str:
    return BLOCKS[block].format(negatives=results.get("negatives", 99))


def _about(results: Mapping[str, Any]) -> list[str]:
    data = _data(results)
    counts = [
        f"{data[key]:,} {name}"
        for key, name in (("users", "users"), ("items", "items"), ("events", "events"))
        if data.get(key) is not None
    ]
    if data.get("dropped_users"):
        counts.append(f"{data['dropped_users']:,} users with fewer than 3 events dropped")
    lines = [", ".join(counts)] if counts else []
    if data.get("note"):
        lines += textwrap.wrap(str(data["note"]), WIDTH)
    return lines


def _costs(results: Mapping[str, Any]) -> list[str]:
    times = results.get("times") or {}
    parts = [] if times.get("total") is None else [f"{duration(times['total'])} in all"]
    if times.get("compiling"):
        parts.append(f"{duration(times['compiling'])} of it compiling")
    if results.get("device"):
        parts.append(f"on {results['device']}")
    if results.get("peak_memory_bytes"):
        parts.append(f"peak memory {results['peak_memory_bytes'] / 2**30:.2f} GiB")
    return [_cut(", ".join(parts))] if parts else []


def _users(models: Sequence[Any]) -> str:
    counts = {model["users"] for model in models if model.get("users") is not None}
    if len(counts) == 1:
        return f", {counts.pop():,} users"
    return f", {min(counts):,} to {max(counts):,} users" if counts else ""


def _best(models: Sequence[Any], block: str, metric: str) -> str:
    values = [_value(model, block, metric) for model in models]
    return number(max((value for value in values if _finite(value)), default=None))


def _has_paper(results: Mapping[str, Any], models: Sequence[Any]) -> bool:
    return not is_simulated(results) and any(_finite(_paper(model)) for model in models)


def _paper(model: Any) -> Any:
    return (model.get("paper") or {}).get("NDCG@10")


def _value(model: Any, block: str, metric: str) -> Any:
    return (model.get(block) or {}).get(metric)


def _getter(block: str, metric: str) -> Callable[[Any], Any]:
    return lambda model: _value(model, block, metric)


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _name(model: Any) -> str:
    return str(model.get("name") or model.get("key") or "?")


def _data(results: Mapping[str, Any]) -> Mapping[str, Any]:
    return results.get("data") or {}


def _cut(text: str, width: int = WIDTH) -> str:
    return text if len(text) <= width else text[: max(width - 3, 0)] + "..."
