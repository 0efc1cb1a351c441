"""The tables of a report by groups of users: what each model reaches, what a variant gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pdrec_jax.evaluation.groups import METRIC
from pdrec_jax.report import tables

_HEADINGS = {
    "history_length": "history length",
    "item_popularity": "training events of the test item",
}
_NOTE = (
    "Test NDCG@10 over the users whom every model ranks, in groups of about the same size; in "
    "brackets the gain over the base with its 95 % bootstrap interval, not corrected for the "
    "number of groups."
)


def markdown_groups(results: Mapping[str, Any]) -> str:
    """Lays out the groups of results as Markdown, a table for each ranking and kind of group.

    Args:
      results: ``groups`` as ``evaluation.groups.by_group`` returns them; may be missing.

    Returns:
      a section, empty without groups.
    """
    groups = results.get("groups") or []
    names = {str(m["key"]): str(m.get("name") or m["key"]) for m in results.get("models") or []}
    parts = []
    for block in tables.BLOCKS:
        for by, heading in _HEADINGS.items():
            some = [each for each in groups if (each["block"], each["by"]) == (block, by)]
            if some:
                keys = list(some[0][METRIC])
                head = [heading, "users", *(names.get(key, key) for key in keys)]
                parts.append(f"{block.capitalize()} ranking:\n\n" + _table(head, keys, some))
    return "\n\n".join(["## By groups of users", *parts, _NOTE]) if parts else ""


def _table(head: Sequence[str], keys: Sequence[str], groups: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [each["group"], f"{each['users']:,}", *(_cell(each, key) for key in keys)]
        for each in groups
    ]
    return tables.markdown_rows(head, rows)


def _cell(group: Mapping[str, Any], key: str) -> str:
    value = tables.number(group[METRIC][key])
    gain = group["gains"].get(key)
    if gain is None or None in (gain["difference"], gain["low"], gain["high"]):
        return value
    difference, low, high = (
        f"{gain[name]:+.4f}".replace("0.", ".", 1) for name in ("difference", "low", "high")
    )
    return f"{value} ({difference}, {low} to {high})"
