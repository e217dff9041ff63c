"""Stacked bars as SVG: parts of a whole, side by side over the steps. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from fledge.train.markup import Html, tag
from fledge.train.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, exact, place, short, ticks


def stacked(
    title: str, unit: str, bars: Sequence[tuple[float, dict[str, float]]], parts: Sequence[str], x_name: str = "step"
) -> Html:
    """A figure of bars (x, value by part), each part in the colour of its place in `parts`, the first at the bottom."""
    styles = {part: f"run{number}" for number, part in enumerate(parts)}
    there = [part for part in parts if any(values.get(part) for _, values in bars)]
    caption = tag("figcaption", title, tag("span", f" {unit}", class_="unit"))
    if not there:
        return tag("figure", caption, tag("p", "nothing logged", class_="quiet"))
    highest = max(sum(values.values()) for _, values in bars)
    y_ticks = ticks(0.0, highest)
    scale = (HEIGHT - TOP - BOTTOM) / y_ticks[-1]
    room = (WIDTH - LEFT - RIGHT) / len(bars)
    drawn: list[Html] = []
    for y in y_ticks:
        at = place(HEIGHT - BOTTOM - y * scale)
        drawn.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid"))
        drawn.append(tag("text", short(y), x=LEFT - 6, y=place(float(at) + 4), text_anchor="end"))
    for number, (x, values) in enumerate(bars):
        base = float(HEIGHT - BOTTOM)
        for part in there:
            height = values.get(part, 0.0) * scale
            if height > 0:
                base -= height
                spoken = tag("title", f"{part}: {exact(values[part])} {unit} up to {x_name} {short(x)}")
                drawn.append(tag("rect", spoken, x=place(LEFT + (number + 0.1) * room), y=f"{base:.2f}",
                                 width=place(0.8 * room), height=f"{height:.2f}",
                                 class_=f"part {styles[part]}"))  # fmt: skip
        if number in (0, len(bars) - 1) or (len(bars) > 8 and number == len(bars) // 2):
            middle = place(LEFT + (number + 0.5) * room)
            drawn.append(tag("text", short(x), x=middle, y=HEIGHT - BOTTOM + 16, text_anchor="middle"))
    drawn.append(tag("text", x_name, x=WIDTH - RIGHT, y=HEIGHT - 3, text_anchor="end", class_="unit"))
    legend = tag("p", *(tag("span", part, class_=f"key block {styles[part]}") for part in there), class_="legend")
    words = f"{title}: " + "; ".join(f"{p} up to {exact(max(v.get(p, 0.0) for _, v in bars))} {unit}" for p in there)
    return tag(
        "figure", caption, legend, tag("svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=words)
    )
