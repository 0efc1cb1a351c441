"""The plots of the page, as inline SVG: small, drawn for the width of a phone.

A plot takes its colours from the page (``var(--...)``), so that it follows light and dark, and says
in its title and description what it shows, for those who cannot see it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

from pdrec_jax.inspect.explanation import Curve, Event, Negatives, View
from pdrec_jax.inspect.words import shown

_WIDTH = 360
_LEFT, _RIGHT = 40, 8
_LATEST, _FEWEST = 60, 12  # bars that fit side by side, and how many places there are at least
_POINTS = 160  # of the curve


def _svg(name: str, height: float, title: str, described: str, body: Sequence[str]) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {height:g}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-desc">{html.escape(shown(described))}</desc>{"".join(body)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
        + (f' class="{kind}"' if kind else "")
        + f">{html.escape(shown(text))}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def history(events: Sequence[Event], diffusion: str) -> str:
    """Draws the interval weights and HBR's weights of the training events, one above the other.

    Args:
      events: of the user; held-out ones are left out.
      diffusion: name of the model that has the interval weights.

    Returns:
      an SVG element; empty text where no event has a weight.
    """
    trained = [event for event in events if event.part == "training"][-_LATEST:]
    panels = [
        (f"Weight in the user's vector ({diffusion})", [e.interval for e in trained], "diffusion"),
        ("Weight as a target (HBR)", [e.hbr for e in trained], "encoder"),
    ]
    panels = [panel for panel in panels if any(value is not None for value in panel[1])]
    if not panels:
        return ""
    body, top, high = [], 18.0, 64.0
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(trained), _FEWEST)
    for name, values, kind in panels:
        most = max([value for value in values if value is not None] + [1e-9])
        base = top + high
        body.append(_text(_LEFT, top - 5, name, kind="head"))
        for share in (0, 1):
            y = base - share * high
            body.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, "grid"))
            body.append(_text(_LEFT - 4, y + 4, f"{share * most:.2g}", "end"))
        for place, value in enumerate(values):
            if value is None:
                continue
            tall = max(value / most * high, 0.8)  # a weight of 0 is still an event
            body.append(
                f'<rect x="{_LEFT + (place + 0.1) * step:.1f}" y="{base - tall:.1f}" '
                f'width="{step * 0.8:.1f}" height="{tall:.1f}" class="{kind}"/>'
            )
        top = base + 30
    body.append(_text(_LEFT, top - 14, "earliest"))
    body.append(_text(_LEFT + step * len(trained), top - 14, "latest", "end"))
    title = f"Weights of the latest {len(trained)} training events"
    return _svg(
        "history",
        top - 6,
        title,
        "Bars, one an event from the earliest to the latest; the table below has the numbers.",
        body,
    )


def ranking(curve: Curve, negatives: Negatives) -> str:
    """Draws the scores by rank, with the pool of negatives, the sample and DPA's candidates.

    Args:
      curve: of the preferences.
      negatives: with ranks.

    Returns:
      an SVG element.
    """
    count, low, high = len(curve.values), float(curve.values[-1]), float(curve.values[0])
    span = high - low or 1.0
    top, base = 24.0, 168.0
    across = _WIDTH - _LEFT - _RIGHT
    decades = math.log10(max(count, 2))

    def x(place: float) -> float:
        return _LEFT + math.log10(max(place, 1)) / decades * across

    def y(place: int) -> float:
        return base - (float(curve.values[place - 1]) - low) / span * (base - top)

    body = []
    if negatives.pool is not None:
        first, last, _ = negatives.pool
        body.append(
            f'<rect x="{x(first):.1f}" y="{top}" width="{max(x(last) - x(first), 1):.1f}" '
            f'height="{base - top}" class="pool"/>'
        )
        body.append(_text(x(last) - 2, top - 8, "NNS pool", "end"))
    for power in range(math.floor(decades) + 1):
        body.append(_line(x(10**power), top, x(10**power), base, "grid"))
        body.append(_text(x(10**power), base + 14, f"{10**power:,}", "middle"))
    places = np.unique(np.geomspace(1, count, min(_POINTS, count)).round().astype(int))
    points = " ".join(f"{x(place):.1f},{y(place):.1f}" for place in places)
    body.append(f'<polyline points="{points}" class="curve"/>')
    for place in np.unique(curve.candidates):
        body.append(_line(x(place), y(int(place)) - 5, x(place), y(int(place)) + 5, "dpa"))
    if negatives.ranks is not None:
        for place in _thinned(negatives.ranks):
            body.append(_line(x(place), base - 6, x(place), base, "sample"))
    for place, name in zip(curve.heldout, ("validation", "test"), strict=True):
        if place is not None:
            body.append(f'<circle cx="{x(place):.1f}" cy="{y(place):.1f}" r="4" class="{name}"/>')
    body.append(_text(_LEFT - 4, top + 8, f"{high:.2g}", "end"))
    body.append(_text(_LEFT - 4, base, f"{low:.2g}", "end"))
    body.append(_text(_WIDTH - _RIGHT, base + 28, "rank (log scale)", "end"))
    described = f"A falling curve over {count:,} ranked items. "
    if len(curve.candidates):
        described += f"DPA's {len(curve.candidates)} candidates are marked on it. "
    if negatives.pool is not None:
        described += f"NNS's pool spans ranks {negatives.pool[0]:,} to {negatives.pool[1]:,}."
    return _svg("ranking", base + 34, "Preference score by rank", described, body)


def _thinned(ranks: np.ndarray) -> np.ndarray:
    return ranks[:: max(1, len(ranks) // _POINTS)]


def heldout(views: Sequence[View]) -> str:
    """Draws the rank of the two held-out items for each model, on a log scale.

    Args:
      views: at least one.

    Returns:
      an SVG element.
    """
    most = max(view.ranked for view in views)
    across, decades = _WIDTH - 16.0, math.log10(max(most, 2))

    def x(place: float) -> float:
        return 8 + math.log10(max(place, 1)) / decades * across

    body, y = [], 30.0
    bottom = 12 + 34 * len(views)
    for power in range(math.floor(decades) + 1):
        body.append(_line(x(10**power), 8, x(10**power), bottom, "grid"))
        where = "start" if power == 0 else "middle"
        body.append(_text(x(10**power), bottom + 14, f"{10**power:,}", where))
    for view in views:
        body.append(_text(8, y - 10, view.name, kind="head"))
        body.append(_line(8, y, _WIDTH - 8, y, "grid"))
        for place, kind in ((view.validation_rank, "validation"), (view.test_rank, "test")):
            body.append(f'<circle cx="{x(place):.1f}" cy="{y:.1f}" r="4.5" class="{kind}"/>')
        y += 34
    body.append(_text(_WIDTH - 8, bottom + 28, "rank (log scale), left is better", "end"))
    described = "; ".join(
        f"{view.name}: validation item {view.validation_rank:g}, test item {view.test_rank:g}"
        for view in views
    )
    return _svg("heldout", bottom + 34, "Rank of the held-out items", described, body)
