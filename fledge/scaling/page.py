"""The page of a fit: one self-contained HTML file with the laws, their intervals and plots. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import fledge
from fledge.scaling.fit import frontier, surface_of
from fledge.scaling.laws import PowerLaw
from fledge.scaling.points import Point
from fledge.train.markup import Child, Html, table, tag
from fledge.train.page import page_head
from fledge.train.plot import Chart, Line, figure

SHADES = 5  # of the curves of budgets, the smallest the palest
OWN_STYLE = ".line.cloud { stroke: none; }" + "".join(
    f" .shade{n} {{ opacity: {0.45 + 0.55 * n / (SHADES - 1):.2f}; }}" for n in range(SHADES)
)
MOST_CURVES = 40
LAW_POINTS = 60
LONG = {"N": "parameters", "D": "tokens", "C": "FLOPs (6 N D)"}
ROWS = (
    ("L(N, D) = E + A / N^α + B / D^β (approach 3)", "approach_3", ("E", "A", "alpha", "B", "beta", "a", "b")),
    ("N = k C^a, envelope of training curves (approach 1)", "approach_1", ("a", "b")),
    ("N = k C^a, IsoFLOP parabolas (approach 2)", "approach_2", ("a", "b")),
)


def page(found: dict[str, Any], points: Sequence[Point], name: str) -> str:
    """The whole page about a fit to `points`."""
    title = f"{name} - scaling laws"
    head = page_head(title, OWN_STYLE)
    count = found["count"].replace("_", "-")
    about = f"{len(points)} runs; N counts {count} parameters; loss in nats a token; C = 6 N D."
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("p", about, class_="quiet")),
        tag("section", tag("h2", "Laws"), laws(found)),
        tag("section", tag("h2", "Plots"), tag("div", *map(figure, charts(found, points)), class_="charts")),
        tag("section", tag("h2", "Runs"), runs(found, points)),
        tag("footer", tag("p", f"Written by fledge {fledge.__version__}; fit {found['digest'][:12]}.", class_="quiet")),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def laws(found: dict[str, Any]) -> Html:
    rows: list[tuple[Child, ...]] = []
    parts: list[tuple[str, Any, tuple[str, ...]]] = [(title, found[key], names) for title, key, names in ROWS]
    parts += [
        (f"L({key}) = E + A / {key}^α, lowest losses", law, ("E", "A", "alpha")) for key, law in found["laws"].items()
    ]
    for title, part, names in parts:
        if "missing" in part:
            rows.append((title, "not fitted", "", part["missing"]))
            continue
        for index, name in enumerate(names):
            bounds = part.get("intervals", {}).get(name)
            why = part.get("no_intervals", "") if index == 0 else ""
            between = f"{bounds[0]:.4g} .. {bounds[1]:.4g}" if bounds else why
            rows.append((title if index == 0 else "", name, f"{part[name]:.5g}", between))
    return table(("law", "number", "value", "95 % bootstrap interval"), rows, (2,))


def charts(found: dict[str, Any], points: Sequence[Point]) -> list[Chart]:
    """Losses over C, N and D with their laws, the IsoFLOP curves, and residuals of the surface. x is a logarithm."""
    made = [law_chart(found, points, key) for key in "CND"]
    made.insert(1, isoflop_chart(found, points))
    surface = found["approach_3"]
    if "missing" not in surface:
        law = surface_of(surface)
        pairs = tuple((law.loss(p.size(found["count"]), p.tokens), p.loss) for p in points)
        low, high = min(min(pair) for pair in pairs), max(max(pair) for pair in pairs)
        lines = (Line("runs", pairs, "first cloud", dots=True), Line("equal", ((low, low), (high, high)), "faint"))
        made.append(Chart("Measured against L(N, D)", lines, "loss by the law", "loss measured"))
    return made


def law_chart(found: dict[str, Any], points: Sequence[Point], key: str) -> Chart:
    count = found["count"]
    pick = {"N": lambda p: p.size(count), "D": lambda p: p.tokens, "C": lambda p: p.products(count)}[key]
    every = tuple(sorted((math.log10(pick(p)), p.loss) for p in points))
    xs, losses = frontier(points, key, count)
    lowest = tuple((math.log10(x), float(loss)) for x, loss in zip(xs, losses, strict=True))
    lines = [Line("runs", every, "first cloud", dots=True), Line("lowest", lowest, "second cloud", dots=True)]
    law = found["laws"][key]
    if "missing" not in law:
        fitted = PowerLaw(law["E"], law["A"], law["alpha"])
        low, high = every[0][0], every[-1][0]
        at = [low + (high - low) * i / (LAW_POINTS - 1) for i in range(LAW_POINTS)]
        lines.append(Line("law", tuple((x, fitted.loss(10**x)) for x in at), "second"))
    return Chart(f"Loss over {LONG[key]}", tuple(lines), f"log10 {key}", "nats per token")


def isoflop_chart(found: dict[str, Any], points: Sequence[Point]) -> Chart:
    """Loss over size, a line for each budget, and the lowest points that approach 2 found."""
    count = found["count"]
    groups: dict[float, list[tuple[float, float]]] = {}
    for point in points:
        if point.budget:
            groups.setdefault(point.budget, []).append((math.log10(point.size(count)), point.loss))
    budgets = sorted(groups.items())[:MOST_CURVES]
    lines = [
        Line(f"{budget:.2g} FLOPs", tuple(sorted(group)), f"first shade{rank(number, len(budgets))}", dots=True)
        for number, (budget, group) in enumerate(budgets)
    ]
    curves = found["approach_2"].get("curves", [])
    lowest = tuple((math.log10(curve["parameters"]), curve["loss"]) for curve in curves)
    lines += [Line("lowest points", lowest, "second cloud", dots=True)] if lowest else []
    return Chart("IsoFLOP curves", tuple(lines), "log10 N", "nats per token")


def rank(number: int, of: int) -> int:
    """The shade of one of some budgets in their order, the last the darkest."""
    return SHADES - 1 if of == 1 else number * (SHADES - 1) // (of - 1)


def runs(found: dict[str, Any], points: Sequence[Point]) -> Html:
    head = ("run", "N", "without embeddings", "D", "C", "loss", "seed", "model")
    rows: list[tuple[Child, ...]] = [
        (
            p.run, f"{p.parameters:,.0f}", f"{p.parameters_non_embedding:,.0f}", f"{p.tokens:,.0f}",
            f"{p.products(found['count']):.3g}", f"{p.loss:.4f}", p.seed, tag("code", p.digest[:12]),
        )
        for p in points
    ]  # fmt: skip
    return table(head, rows, (1, 2, 3, 4, 5, 6))
