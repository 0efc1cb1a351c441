"""An explanation as one web page that needs nothing but itself.

Style and plots are inside the page, no script runs on it, and its content security policy forbids
every request. Whatever comes from the data is escaped where it is written.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from pdrec_jax.inspect import figures
from pdrec_jax.inspect.explanation import Explanation
from pdrec_jax.inspect.words import number, rank, score, shown, when

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_LATEST = 200  # events of a long history

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --pale: #52606d; --line: #d5dbe1;
  --paper: #ffffff; --card: #f5f7f9; --diffusion: #0072b2; --encoder: #b04a00; --test: #007a55;
  --validation: #8a4d76; --pool: #0072b222; --mark: #e8f3ee; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --pale: #a6b1bd; --line: #3a4652;
  --paper: #14191f; --card: #1c232b; --diffusion: #56b4e9; --encoder: #f0a35e; --test: #4cc79c;
  --validation: #dd9cc4; --pool: #56b4e933; --mark: #1d3a30; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
main, header, footer { max-width: 72rem; margin: 0 auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 1rem 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 .25rem; }
p { margin: .25rem 0 .75rem; max-width: 44rem; }
.pale, caption { color: var(--pale); }
.note { border-left: .25rem solid var(--encoder); padding: .25rem .75rem; background: var(--card); }
figure { margin: .75rem 0; max-width: 36rem; }
figcaption { color: var(--pale); font-size: .9rem; }
.plot { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; }
.plot text { fill: var(--pale); } .plot .head { fill: var(--ink); }
.plot .grid { stroke: var(--line); stroke-width: 1; }
.plot .curve { fill: none; stroke: var(--ink); stroke-width: 1.5; }
.plot .pool { fill: var(--pool); } .plot .sample { stroke: var(--diffusion); stroke-width: .8; }
.plot .dpa { stroke: var(--encoder); stroke-width: 2; }
.plot .diffusion { fill: var(--diffusion); } .plot .encoder { fill: var(--encoder); }
.plot .test { fill: var(--test); } .plot .validation { fill: var(--validation); }
.scroll { overflow: auto; max-height: 32rem; border: 1px solid var(--line); border-radius: .4rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
caption { text-align: left; padding: .4rem .6rem; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top;
  border-top: 1px solid var(--line); }
thead th { position: sticky; top: 0; background: var(--card); }
td.id, th[scope=row] { min-width: 8rem; max-width: 24rem; } thead th { min-width: 4rem; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.n:first-child, th.n:first-child { width: 3rem; min-width: 3rem; } td.t { white-space: nowrap; }
tr.held { background: var(--mark); }
.badge { display: inline-block; padding: 0 .4rem; border-radius: .6rem; font-size: .8rem;
  border: 1px solid currentColor; white-space: nowrap; }
.badge.test, .dot.test { color: var(--test); }
.badge.validation, .dot.validation { color: var(--validation); }
.dot.dpa { color: var(--encoder); } .dot.sample { color: var(--diffusion); }
a { color: var(--diffusion); } :focus-visible { outline: 2px solid var(--diffusion); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; padding: 0;
  margin: 0; }
footer { margin-top: 2rem; padding-bottom: 2rem; color: var(--pale); font-size: .9rem; }
"""

_SECTIONS = (
    ("ranks", "Held-out items"),
    ("history", "History"),
    ("dpa", "DPA's candidates"),
    ("nns", "NNS's sample"),
    ("top", "What each model recommends"),
)


def as_page(told: Explanation) -> str:
    """Writes an explanation as a page.

    Args:
      told: of one user.

    Returns:
      a whole HTML document.
    """
    bodies = {
        "ranks": _ranks(told),
        "history": _history(told),
        "dpa": _candidates(told),
        "nns": _negatives(told),
        "top": _top(told),
    }
    sections = "".join(
        f'<section aria-labelledby="{key}"><h2 id="{key}">{name}</h2>{bodies[key]}</section>\n'
        for key, name in _SECTIONS
    )
    links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name in _SECTIONS)
    notes = "".join(f'<p class="note">{_safe(note)}</p>' for note in told.notes)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{_safe(told.user)} | {_safe(told.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>User {_safe(told.user)}</h1>
<p class="pale">{_safe(told.title)}</p>
{notes}
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{sections}</main>
<footer><p>{_safe(told.source)}</p></footer>
</body>
</html>
"""


def _safe(text: str) -> str:
    """Escapes text for HTML, and what cannot be printed for the reader."""
    return html.escape(shown(text))


def _model(name: str) -> str:
    """A model's name, which may go on in the next line behind each plugin."""
    return _safe(name).replace("+", "+<wbr>")


def _id(text: str) -> str:
    return f'<td class="id">{_safe(text)}</td>'


def _n(text: str) -> str:
    return f'<td class="n">{html.escape(text)}</td>'


def _badge(part: str) -> str:
    return (
        f' <span class="badge {part}">{part} item</span>' if part in ("test", "validation") else ""
    )


def _row(part: str, cells: Iterable[str]) -> str:
    kind = ' class="held"' if part in ("test", "validation") else ""
    return f"<tr{kind}>{''.join(cells)}</tr>"


def _table(label: str, head: Sequence[tuple[str, bool]], rows: Iterable[str]) -> str:
    """A table that scrolls by itself; ``head`` says which columns are numbers."""
    cells = "".join(
        f'<th scope="col"{" class=n" if numeric else ""}>{_model(name)}</th>'
        for name, numeric in head
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(label)}"><table>'
        f"<caption>{html.escape(label)}</caption><thead><tr>{cells}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _figure(plot: str, caption: str) -> str:
    """``caption`` is HTML of our own."""
    return f"<figure>{plot}<figcaption>{caption}</figcaption></figure>" if plot else ""


def _dot(kind: str, name: str) -> str:
    return f'<span class="dot {kind}" aria-hidden="true">&#9679;</span> {name}'


def _ranks(told: Explanation) -> str:
    rows = (
        f'<tr><th scope="row">{_model(view.name)}</th>{_n(rank(view.validation_rank))}'
        f"{_n(rank(view.test_rank))}{_n(f'{view.ranked:,}')}{_n(rank(view.sampled_rank))}</tr>"
        for view in told.views
    )
    head = [("model", False), ("validation item", True), ("test item", True), ("of", True)]
    return (
        "<p>The last two items of the user were kept from training. Their rank in the whole "
        "catalogue, without what the user had seen by then: 1 is the highest.</p>"
        + _figure(
            figures.heldout(told.views),
            f"{_dot('validation', 'validation item')}, {_dot('test', 'test item')}",
        )
        + _table("Ranks by model", [*head, ("among sampled", True)], rows)
    )


def _history(told: Explanation) -> str:
    events = told.events[-_LATEST:]
    left = len(told.events) - len(events)
    rows = (
        _row(
            event.part,
            [
                _n(str(left + place + 1)),
                f'<td class="id">{_safe(event.item)}{_badge(event.part)}</td>',
                f'<td class="t">{html.escape(when(event.time))}</td>',
                _n(number(event.interval)),
                _n(score(event.score)),
                _n(number(event.hbr)),
            ],
        )
        for place, event in enumerate(events)
    )
    earlier = f" The latest {len(events)} are shown." if left else ""
    head = [("#", True), ("item", False), ("time (UTC)", False)]
    return (
        f"<p>{len(told.events):,} events.{earlier} The interval weight is what the event has in "
        "the vector that the diffusion model reads; of a repeated item the last event counts. "
        "HBR's weight is that of the event in the encoder's loss, so the first event, which is no "
        "target, has none.</p>"
        + _figure(figures.history(told.events, told.diffusion), "Training events, in order.")
        + _table(
            "Events",
            [*head, ("interval", True), ("score", True), ("HBR", True)],
            rows,
        )
    )


def _candidates(told: Explanation) -> str:
    if not told.candidates:
        return "<p>None: see the notes above.</p>"
    rows = (
        _row(
            candidate.part,
            [
                _n(str(place + 1)),
                f'<td class="id">{_safe(candidate.item)}{_badge(candidate.part)}</td>',
                _n(score(candidate.score)),
                f"<td>{_model(', '.join(candidate.picked_by))}</td>",
            ],
        )
        for place, candidate in enumerate(told.candidates)
    )
    use = (
        f"each position draws {told.drawn} of them, in every training step anew."
        if told.drawn
        else f"in each training step the encoder picks the {told.fine} of them that it scores "
        "highest then (fine); here is what the trained one would pick."
    )
    return (
        f"<p>The {told.coarse} items that the preferences rank highest (coarse): {use}</p>"
        + _table(
            "Candidates",
            [("#", True), ("item", False), ("score", True), ("picked by", False)],
            rows,
        )
    )


def _negatives(told: Explanation) -> str:
    found = told.negatives
    if found is None:
        return "<p>None: see the notes above.</p>"
    if found.ranks is None or found.pool is None:
        rows = (_row("", [_id(item)]) for item in found.items)
        return _table("Sample", [("item", False)], rows)
    first, last, size = found.pool
    plot = "" if told.curve is None else figures.ranking(told.curve, found)
    marks = (
        _dot("dpa", "DPA's candidates"),
        _dot("sample", "the sample, at the foot"),
        _dot("validation", "validation item"),
        _dot("test", "test item"),
    )
    rows = (
        _row("", [_n(f"{int(place):,}"), _id(item)])
        for place, item in zip(found.ranks, found.items, strict=True)
    )
    return (
        f"<p>{len(found.items):,} different negatives of the preferences, drawn from the {size:,} "
        f"items of rank {first:,} to {last:,} among {found.ranked:,}.</p>"
        + _figure(plot, f"Score of every item in the ranking: {', '.join(marks)}.")
        + _table("Sample, by rank", [("rank", True), ("item", False)], rows)
    )


def _top(told: Explanation) -> str:
    deepest = max(len(view.top) for view in told.views)
    head = [("#", True), *((view.name, False) for view in told.views)]

    def cell(place: int, view: int) -> str:
        top = told.views[view].top
        if place >= len(top):
            return "<td></td>"
        item = top[place]
        return (
            f'<td class="id">{_safe(item.item)} <span class="pale">{score(item.score)}</span>'
            f"{_badge(item.part)}</td>"
        )

    rows = (
        f"<tr>{_n(str(place + 1))}{''.join(cell(place, i) for i in range(len(told.views)))}</tr>"
        for place in range(deepest)
    )
    return (
        "<p>Items that the user had not seen, after the training and validation events, each with "
        "the model's score; scores of two models do not compare.</p>"
        + _table("Top items side by side", head, rows)
    )
