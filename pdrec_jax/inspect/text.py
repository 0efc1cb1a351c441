"""An explanation as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from pdrec_jax.inspect.explanation import Explanation
from pdrec_jax.inspect.words import number, rank, score, shown, when

_ID = 28  # characters of an id in a table
_LATEST = 30  # events of a long history
_SHOWN_CANDIDATES = 50
_SHOWN_NEGATIVES = 12


def as_text(told: Explanation) -> str:
    """Writes an explanation.

    Args:
      told: of one user.

    Returns:
      lines, of which the first and the last name the source of the data.
    """
    parts = [told.title, f"user {shown(told.user)}"]
    parts += [f"note: {shown(note)}" for note in told.notes]
    parts += ["", *_history(told)]
    parts += ["", *_candidates(told)]
    parts += ["", *_negatives(told)]
    parts += ["", *_models(told)]
    return "\n".join([*parts, "", told.source]) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    """Aligns columns; those of ``right`` to the right."""
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return ("  " + "  ".join(padded)).rstrip()

    return [line(head), *map(line, rows)]


def _history(told: Explanation) -> list[str]:
    events = told.events[-_LATEST:]
    left = len(told.events) - len(events)
    head = ("#", "item", "time", "interval", "score", "HBR", "")
    rows = [
        (
            str(left + place + 1),
            shown(event.item, _ID),
            when(event.time),
            number(event.interval),
            score(event.score),
            number(event.hbr),
            "" if event.part == "training" else event.part,
        )
        for place, event in enumerate(events)
    ]
    title = f"History: {len(told.events):,} events"
    if left:
        title += f", the latest {len(events)} of them"
    return [title, *_table(head, rows, (0, 3, 4, 5))]


def _candidates(told: Explanation) -> list[str]:
    if not told.candidates:
        return ["DPA: no candidates"]
    rows = [
        (
            str(place + 1),
            shown(candidate.item, _ID),
            score(candidate.score),
            shown(", ".join(candidate.picked_by)),
            candidate.part,
        )
        for place, candidate in enumerate(told.candidates)
        if place < _SHOWN_CANDIDATES or candidate.part or candidate.picked_by
    ]
    title = f"DPA: the {told.coarse} coarse candidates, of which "
    title += (
        f"{told.drawn} drawn at every position" if told.drawn else f"the encoder picks {told.fine}"
    )
    lines = [title, *_table(("#", "item", "score", "picked by", ""), rows, (0, 2))]
    if len(told.candidates) > len(rows):
        lines.append(f"  and {len(told.candidates) - len(rows):,} more")
    return lines


def _negatives(told: Explanation) -> list[str]:
    found = told.negatives
    if found is None:
        return ["NNS: no sample"]
    title = f"NNS: {len(found.items):,} different negatives kept"
    if found.pool is None or found.ranks is None:
        return [
            title,
            "  " + ", ".join(shown(item, _ID) for item in found.items[:_SHOWN_NEGATIVES]),
        ]
    first, last, size = found.pool
    title += (
        f", drawn from {size:,} items of rank {first:,} to {last:,} among {found.ranked:,}; "
        f"theirs are {int(found.ranks[0]):,} to {int(found.ranks[-1]):,}"
    )
    rows = [
        (f"{int(place):,}", shown(item, _ID))
        for place, item in list(zip(found.ranks, found.items, strict=True))[:_SHOWN_NEGATIVES]
    ]
    lines = [title, *_table(("rank", "item"), rows, (0,))]
    if len(found.items) > len(rows):
        lines.append(f"  and {len(found.items) - len(rows):,} more")
    return lines


def _models(told: Explanation) -> list[str]:
    head = ("model", "validation item", "test item", "of", "among sampled")
    rows = [
        (
            shown(view.name),
            rank(view.validation_rank),
            rank(view.test_rank),
            f"{view.ranked:,}",
            rank(view.sampled_rank),
        )
        for view in told.views
    ]
    lines = ["Rank of the held-out items, 1 for the highest", *_table(head, rows, (1, 2, 3, 4))]
    marks = {"test": " (test)", "validation": " (validation)"}
    for view in told.views:
        top = [
            (str(place + 1), shown(item.item, _ID) + marks.get(item.part, ""), score(item.score))
            for place, item in enumerate(view.top)
        ]
        lines += ["", f"Top of {shown(view.name)}", *_table(("#", "item", "score"), top, (0, 2))]
    return lines
