"""Draws the pictures of how_it_works.md; `python docs/pictures/draw.py` writes them beside it."""

from __future__ import annotations

import html
from pathlib import Path

WIDTH = 480
INK, PALE, LINE = "#1f2933", "#52606d", "#9aa5b1"
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#b04a00", "#007a55", "#8a4d76"
TINTS = {BLUE: "#e3f0f8", ORANGE: "#f8ece2", GREEN: "#e1f2ec", PURPLE: "#f3eaf1", LINE: "#f5f7f9"}


def text(
    x: float, y: float, words: str, *, fill: str = INK, size: int = 13, at: str = "start"
) -> str:
    anchor = "" if at == "start" else f' text-anchor="{at}"'
    where = f'x="{x:g}" y="{y:g}"{anchor}'
    return f'<text {where} fill="{fill}" font-size="{size}">{html.escape(words)}</text>'


def bar(x: float, y: float, wide: float, high: float, colour: str, *, solid: bool = False) -> str:
    fill = colour if solid else TINTS[colour]
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{wide:g}" height="{high:g}" rx="3" fill="{fill}" '
        f'stroke="{colour}"/>'
    )


def box(x: float, y: float, wide: float, high: float, colour: str, *lines: str) -> str:
    top = y + high / 2 - 8 * (len(lines) - 1) + 4
    words = "".join(
        text(
            x + wide / 2,
            top + 16 * i,
            line,
            at="middle",
            size=12 if i else 13,
            fill=PALE if i else INK,
        )
        for i, line in enumerate(lines)
    )
    return bar(x, y, wide, high, colour) + words


def arrow(x1: float, y1: float, x2: float, y2: float, colour: str = PALE) -> str:
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" '
        'stroke-width="1.5" marker-end="url(#head)"/>'
    )


def picture(height: float, title: str, *parts: str) -> str:
    head = (
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{PALE}"/></marker>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
        f'height="{height:g}" font-family="system-ui, sans-serif" role="img">'
        f"<title>{html.escape(title)}</title><defs>{head}</defs>"
        # Ground of its own, so that it reads the same on a light page and on a dark one.
        f'<rect width="{WIDTH}" height="{height:g}" rx="8" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


def flow() -> str:
    return picture(
        452,
        "From a log to recommendations: diffusion scores all items once, three plugins use the "
        "scores in training, and the encoder recommends alone.",
        box(150, 14, 180, 44, LINE, "log", "who, what, when"),
        arrow(240, 58, 240, 78),
        box(150, 80, 180, 44, LINE, "split", "each user's last two held out"),
        arrow(240, 124, 240, 144),
        box(120, 146, 240, 44, BLUE, "TI-DiffRec", "trained; reverse loop once a user"),
        arrow(240, 190, 240, 210),
        box(
            60, 212, 360, 44, BLUE, "preferences", "top M items, R low ones, scores of the history"
        ),
        arrow(110, 256, 86, 284),
        arrow(240, 256, 240, 284),
        arrow(370, 256, 394, 284),
        box(16, 286, 138, 44, ORANGE, "HBR", "weighs the history"),
        box(171, 286, 138, 44, GREEN, "DPA", "adds positives"),
        box(326, 286, 138, 44, PURPLE, "NNS", "picks negatives"),
        arrow(86, 330, 180, 356),
        arrow(240, 330, 240, 356),
        arrow(394, 330, 300, 356),
        box(120, 358, 240, 36, LINE, "encoder in training: SASRec, .."),
        arrow(240, 394, 240, 412),
        text(240, 430, "encoder alone: recommendations for anyone with a history", at="middle"),
        text(
            240,
            446,
            "diffusion and plugins are not needed any more",
            at="middle",
            fill=PALE,
            size=12,
        ),
    )


def reverse() -> str:
    parts = [text(16, 24, "Step by step over all I items (what the formula says)")]
    for step, name in enumerate(("x_T", "x_2", "x_1", "x_0")):
        x = 24 + step * 116
        parts.append(bar(x, 36, 30, 120, BLUE, solid=step == 3))
        parts.append(text(x + 15, 172, name, at="middle", size=12, fill=PALE))
        if step < 3:
            parts.append(arrow(x + 36, 96, x + 110, 96))
            parts.append(text(x + 73, 84, ".." if step == 0 else "f(x, t)", at="middle", size=12))
            parts.append(text(x + 73, 114, "2 x I x H", at="middle", size=12, fill=ORANGE))
    parts.append(text(16, 208, "The same in H dimensions (what runs here)"))
    parts.append(bar(24, 222, 30, 120, BLUE))
    parts.append(text(39, 358, "x_T", at="middle", size=12, fill=PALE))
    parts.append(arrow(60, 282, 96, 282))
    parts.append(text(78, 274, "sum", at="middle", size=12))
    for step, name in enumerate(("z_T", "z_2", "z_1")):
        x = 104 + step * 92
        parts.append(bar(x, 264, 22, 36, GREEN))
        parts.append(text(x + 11, 316, name, at="middle", size=12, fill=PALE))
        if step < 2:
            parts.append(arrow(x + 28, 282, x + 86, 282))
            parts.append(text(x + 57, 274, ".." if step == 0 else "G", at="middle", size=12))
            parts.append(text(x + 57, 298, "H x H", at="middle", size=12, fill=GREEN))
    parts.append(arrow(318, 282, 396, 282))
    parts.append(text(357, 274, "W_o", at="middle", size=12))
    parts.append(text(357, 298, "I x H, once", at="middle", size=12, fill=ORANGE))
    parts.append(bar(404, 222, 30, 120, BLUE, solid=True))
    parts.append(text(419, 358, "x_0", at="middle", size=12, fill=PALE))
    parts.append(
        text(
            16,
            386,
            "Both give the same x_0. The second touches the items twice, not 2 T times.",
            size=12,
        )
    )
    return picture(
        400, "The reverse loop over all items, and the same loop in H dimensions.", *parts
    )


def plugins() -> str:
    parts = [text(16, 24, "HBR: doubtful behaviour weighs less", fill=ORANGE)]
    heights = (30, 8, 44, 52, 4, 38, 60)
    for place, high in enumerate(heights):
        x = 28 + place * 60
        parts.append(bar(x, 104 - high, 40, high, ORANGE, solid=high < 10))
        parts.append(text(x + 20, 120, f"event {place + 1}", at="middle", size=12, fill=PALE))
    parts.append(
        text(
            16,
            140,
            "height: the event's weight in the loss; two are hardly believed",
            size=12,
            fill=PALE,
        )
    )
    ranking = "all items the user has not seen, highest preference first"
    parts.append(text(16, 176, "DPA: likely items are positives too", fill=GREEN))
    parts.append(bar(16, 188, 448, 26, LINE))
    parts.append(bar(16, 188, 72, 26, GREEN))
    for x in (22, 46, 70):
        parts.append(bar(x, 192, 8, 18, GREEN, solid=True))
    parts.append(
        text(
            16, 232, "top M candidates (coarse); dark: the N that the encoder picks (fine)", size=12
        )
    )
    parts.append(text(16, 248, ranking, size=12, fill=PALE))
    parts.append(text(16, 284, "NNS: negatives from the far end", fill=PURPLE))
    parts.append(bar(16, 296, 448, 26, LINE))
    parts.append(bar(240, 296, 224, 26, PURPLE))
    for x in (252, 268, 301, 322, 349, 371, 388, 420, 433, 452):
        parts.append(bar(x, 302, 4, 14, PURPLE, solid=True))
    parts.append(
        text(
            16,
            340,
            "shaded: beyond the share omega_m; dark: the R that are drawn and kept",
            size=12,
        )
    )
    parts.append(text(16, 356, ranking, size=12, fill=PALE))
    return picture(370, "What the three plugins do: HBR, DPA and NNS.", *parts)


def packed() -> str:
    lengths = ((BLUE, 3), (ORANGE, 7), (GREEN, 2), (PURPLE, 4), (BLUE, 5), (ORANGE, 1), (GREEN, 6))
    cell, wide = 34, 12
    parts = [text(16, 24, "A user a row, padded to L: most cells are empty")]
    for row, (colour, count) in enumerate(lengths):
        for place in range(wide):
            filled = place >= wide - count
            parts.append(
                bar(
                    36 + place * cell,
                    34 + row * 20,
                    cell - 3,
                    16,
                    colour if filled else LINE,
                    solid=filled,
                )
            )
    y = 34 + len(lengths) * 20 + 32
    parts.append(text(16, y, "Packed: several users a row, each sees only its own cells"))
    rows: list[list[tuple[str, int]]] = [[], [], []]
    for part in sorted(lengths, key=lambda part: -part[1]):
        fits = [row for row in rows if sum(n for _, n in row) + part[1] <= wide]
        fits[0].append(part)
    for number, row in enumerate(rows):
        place = 0
        for colour, count in row:
            for _ in range(count):
                parts.append(
                    bar(36 + place * cell, y + 10 + number * 20, cell - 3, 16, colour, solid=True)
                )
                place += 1
        for empty in range(place, wide):
            parts.append(bar(36 + empty * cell, y + 10 + number * 20, cell - 3, 16, LINE))
    end = y + 10 + 3 * 20 + 18
    parts.append(
        text(
            16,
            end,
            "What the padding would add to the attention is known in closed form,",
            size=12,
            fill=PALE,
        )
    )
    parts.append(
        text(16, end + 16, "so the results are those of the padded rows.", size=12, fill=PALE)
    )
    return picture(end + 30, "Padded rows of histories, and the same histories packed.", *parts)


PICTURES = {"flow": flow, "reverse": reverse, "plugins": plugins, "packed": packed}


def main() -> None:
    for name, draw in PICTURES.items():
        (Path(__file__).parent / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
