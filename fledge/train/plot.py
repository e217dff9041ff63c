"""Line charts as SVG: no script, colours from the page's style sheet, readable from a phone to a desk. No torch."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from fledge.train.markup import Child, Html, escape, join, tag

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 34
MOST_POINTS = 240

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One series. `style` is a class of the style sheet: "first", "second", "faint" or "run0" to "run7"; `dots` marks
    every point."""

    name: str
    points: tuple[Point, ...]
    style: str = "first"
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """Something that happened at `x`: a "checkpoint", "resume", "skipped" batch or "spike"."""

    x: float
    kind: str
    text: str


@dataclass(frozen=True)
class Chart:
    """Lines over one x and one y axis. `log`: the y axis is logarithmic (values at or below 0 are not drawn)."""

    title: str
    lines: tuple[Line, ...]
    x_name: str = "step"
    y_name: str = ""
    log: bool = False
    marks: tuple[Mark, ...] = ()


def figure(chart: Chart) -> Html:
    """A chart with its title, legend and, for readers that see no pictures, its values in words."""
    lines = [Line(line.name, drawable(line.points, chart.log), line.style, line.dots) for line in chart.lines]
    lines = [line for line in lines if line.points]
    title = tag("figcaption", chart.title, tag("span", f" {chart.y_name}" if chart.y_name else "", class_="unit"))
    if not lines:
        return tag("figure", title, tag("p", "nothing logged", class_="quiet"))
    legend = None
    keys = [tag("span", line.name, class_=f"key {line.style}") for line in lines] if len(lines) > 1 else []
    kinds = sorted({mark.kind for mark in chart.marks})
    keys += [tag("span", kind, class_=f"key mark {kind}") for kind in kinds]
    if keys:
        legend = tag("p", *keys, class_="legend")
    return tag("figure", title, legend, svg(lines, chart))


def svg(lines: list[Line], chart: Chart) -> Html:
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), log_ticks(min(ys), max(ys)) if chart.log else ticks(min(ys), max(ys))
    x_low = min(xs)
    x_high = max(xs) if max(xs) > x_low else x_low + 1
    y_low, y_high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def across(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        low, high, at = (math.log(v) for v in (y_low, y_high, y)) if chart.log else (y_low, y_high, y)
        share = (at - low) / (high - low) if high > low else 0.5
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts: list[Html] = []
    for y in y_ticks:
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=place(up(y)), y2=place(up(y)), class_="grid"))
        parts.append(tag("text", short(y), x=LEFT - 6, y=place(up(y) + 4), text_anchor="end"))
    for x in x_ticks:
        if x_low <= x <= x_high:
            parts.append(tag("text", short(x), x=place(across(x)), y=HEIGHT - BOTTOM + 16, text_anchor="middle"))
    parts.append(tag("text", chart.x_name, x=WIDTH - RIGHT, y=HEIGHT - 3, text_anchor="end", class_="unit"))
    shown = [mark for mark in chart.marks if x_low <= mark.x <= x_high]
    parts += [marked(mark, across(mark.x)) for mark in shown[:: max(1, len(shown) // MOST_POINTS)]]
    for line in lines:
        at = [(across(x), up(y)) for x, y in line.points]
        if len(at) > 1:
            path = " ".join(f"{place(x)},{place(y)}" for x, y in at)
            parts.append(tag("polyline", points=path, class_=f"line {line.style}"))
        if line.dots or len(at) == 1:
            for (x, y), (step, value) in zip(at, line.points, strict=True):
                spoken = tag("title", f"{line.name}: {exact(value)} at {chart.x_name} {short(step)}")
                parts.append(tag("circle", spoken, cx=place(x), cy=place(y), r=3, class_=f"dot {line.style}"))
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=in_words(lines, chart))


def marked(mark: Mark, x: float) -> Html:
    """A mark's line: through the whole chart, or for a checkpoint a short one on the axis."""
    low = HEIGHT - BOTTOM
    top = low - 8 if mark.kind == "checkpoint" else TOP
    return tag("line", tag("title", mark.text), x1=place(x), x2=place(x), y1=top, y2=low, class_=f"mark {mark.kind}")


def drawable(points: tuple[Point, ...], log: bool) -> tuple[Point, ...]:
    """Finite points (positive on a logarithmic axis), thinned by means of equal runs to at most MOST_POINTS."""
    good = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log)]
    if len(good) <= MOST_POINTS:
        return tuple(good)
    size = len(good) / MOST_POINTS
    runs = [good[round(i * size) : round((i + 1) * size)] for i in range(MOST_POINTS)]
    means = [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]
    means[0], means[-1] = good[0], good[-1]  # the ends are what people look up
    return tuple(means)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that span low..high."""
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that span low..high; with 2s and 5s between where there would be few."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if last - first <= 2:
        marks = [m * 10.0**p for p in range(first, last + 1) for m in (1, 2, 5)]
        below = [m for m in marks if m <= low * 1.000001]
        above = [m for m in marks if m >= high * 0.999999]
        return [m for m in marks if below[-1] <= m <= (above[0] if above else marks[-1])]
    return [10.0**p for p in range(first, max(last, first + 1) + 1)]


def place(value: float) -> str:
    return f"{value:.1f}"


def short(value: float) -> str:
    """A number in few characters: 12k, 1.5M, 3e-4."""
    size = abs(value)
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{value / unit:.4g}{name}"
    if size and size < 0.01:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:.4g}"


def exact(value: float) -> str:
    return f"{value:.6g}"


def in_words(lines: list[Line], chart: Chart) -> str:
    """The chart for those who hear it."""
    said = [f"{line.name} from {exact(line.points[0][1])} to {exact(line.points[-1][1])}" for line in lines]
    counts = Counter(mark.kind for mark in chart.marks)
    said += [f"{count} × {kind}" for kind, count in sorted(counts.items())]
    return f"{chart.title}: {'; '.join(said)}"


def bars(rows: list[tuple[str, float, bool]], unit: str) -> Html:
    """Horizontal bars (label, value, whether it is ours), longest first; each with its value beside it."""
    longest = max((value for _, value, _ in rows), default=1.0) or 1.0
    children: list[Child] = []
    for label, value, ours in sorted(rows, key=lambda row: -row[1]):
        width = tag("span", class_="bar ours" if ours else "bar", style=f"width:{70 * value / longest:.1f}%")
        children.append(tag("dt", label))
        children.append(tag("dd", width, tag("span", escape(f"{value:.3f} {unit}"), class_="figure")))
    return tag("dl", join(*children), class_="bars")
