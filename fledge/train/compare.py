"""Runs side by side: final figures, what differs in their configs, losses over shared axes. Imports no torch."""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from fledge.train.curves import STYLES, validation
from fledge.train.markup import Child, Html, table, tag
from fledge.train.plot import Chart, Line, Point, figure, short
from fledge.train.record import RunRecord, finite, number
from fledge.train.timeline import spikes

Figures = dict[str, dict[str, float]]
Differences = dict[str, dict[str, Any]]
NOT_COMPARED = ("run.dir", "sample.prompt")
TAIL = 0.05  # share of the logged steps whose mean is the last training loss
AXES = (("step", "steps"), ("tokens", "tokens"), ("seconds", "seconds"), ("FLOPs", "FLOPs"))
ABSENT = "-"


def labels(runs: Sequence[RunRecord]) -> list[str]:
    """A name for each run: its folder's, with as many folders above it as tell them apart; then by number."""
    parts = [run.folder.absolute().parts for run in runs]
    for depth in range(1, max(len(p) for p in parts) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{run.name} ({number_of})" for number_of, run in enumerate(runs, 1)]


def comparable(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Groups of two runs or more of the same verb, told by the groups of their configs: a pre-training is not compared
    with the tuning that followed it."""
    kinds: dict[tuple[str, ...], list[RunRecord]] = {}
    for run in runs:
        kinds.setdefault(tuple(sorted(set(run.config) - {"objective"})), []).append(run)
    return [group for group in kinds.values() if len(group) > 1]


def final_figures(runs: Sequence[RunRecord]) -> Figures:
    """Label -> figure -> value: losses at the end, size, tokens, time, speed, what went wrong."""
    return {label: figures_of(run) for label, run in zip(labels(runs), runs, strict=True)}


def figures_of(run: RunRecord) -> dict[str, float]:
    validated = run.of("evaluate")
    last = {**(validated[-1] if validated else {}), **run.end}
    found = {key: number(value) for key, value in last.items() if key.startswith(("val_", "ema_val", "last_val"))}
    known: dict[str, float | None] = {key: value for key, value in found.items() if key != "val_tokens"}
    losses = [loss for _, loss in run.series("step", "loss") if finite(loss)]
    tail = losses[-max(1, round(TAIL * len(losses))) :]
    tokens, per_token = run.last("step", "tokens"), number(run.start.get("flops_per_token"))
    best = [loss for _, loss in validation(run, "val_loss") if finite(loss)]
    known |= {
        "best_val_loss": min(best) if best else None,
        "training_loss": sum(tail) / len(tail) if tail else None,
        "steps": run.last("step", "step"),
        "tokens": tokens,
        "flops": tokens * per_token if tokens and per_token else None,
        "parameters": number(run.start.get("parameters")),
        "seconds": run.seconds or None,
        "tokens_per_second": median(run, "tokens_per_second"),
        "mfu": median(run, "mfu"),
        "skipped": run.last("step", "skipped"),
        "resumes": float(len(run.of("resume"))),
        "spikes": float(len(spikes(run.series("step", "loss")))),
    }
    return {key: value for key, value in known.items() if value is not None}


def median(run: RunRecord, key: str) -> float | None:
    values = [value for _, value in run.series("step", key) if finite(value)]
    return statistics.median(values) if values else None


def differences(runs: Sequence[RunRecord]) -> Differences:
    """Config key -> label -> value, of the keys whose values are not the same in all runs; where a run goes is none."""
    names = labels(runs)
    flat = [flattened(run.config) for run in runs]
    found: Differences = {}
    for key in sorted({key for one in flat for key in one}):
        values = [one.get(key, ABSENT) for one in flat]
        if key not in NOT_COMPARED and any(value != values[0] for value in values):
            found[key] = dict(zip(names, values, strict=True))
    return found


def flattened(tree: Any, at: str = "") -> dict[str, Any]:
    """A config by dotted keys; lists are values."""
    if not isinstance(tree, dict):
        return {at: tree}
    return {key: value for name, inner in tree.items() for key, value in
            flattened(inner, f"{at}.{name}" if at else str(name)).items()}  # fmt: skip


def axis(run: RunRecord, name: str) -> Callable[[float], float | None]:
    """From a step to a place on an axis, by the last step logged until then."""
    if name == "step":
        return lambda step: step
    per_token = number(run.start.get("flops_per_token"))
    series = run.series("step", "seconds" if name == "seconds" else "tokens")
    steps = [step for step, _ in series]

    def at(step: float) -> float | None:
        place = bisect.bisect_right(steps, step) - 1
        value = series[place][1] if place >= 0 else 0.0
        return value if name != "FLOPs" else value * per_token if per_token else None

    return at


def along(points: Sequence[Point], at: Callable[[float], float | None]) -> tuple[Point, ...]:
    placed = ((at(step), value) for step, value in points)
    return tuple((x, value) for x, value in placed if x is not None)


def comparison(runs: Sequence[RunRecord]) -> Html:
    """The section of the page."""
    names, figures = labels(runs), final_figures(runs)
    charts = []
    for x_name, words in AXES:
        for kind in ("training", "validation"):
            lines = []
            for place, (name, run) in enumerate(zip(names, runs, strict=True)):
                points = run.series("step", "loss") if kind == "training" else validation(run, "val_loss")
                lines.append(Line(name, along(points, axis(run, x_name)), f"run{place % STYLES}", kind != "training"))
            charts.append(Chart(f"{kind.capitalize()} loss by {words}", tuple(lines), x_name=x_name))
    changed = differences(runs)
    config_rows: list[tuple[Child, ...]] = [
        (tag("code", key), *(str(values[name]) for name in names)) for key, values in changed.items()
    ]
    return tag(
        "section",
        tag("h2", "Comparison"),
        table(("", *names), figure_rows(figures), tuple(range(1, len(names) + 1))),
        tag("h3", "What differs in their configs"),
        table(("key", *names), config_rows) if changed else tag("p", "nothing", class_="quiet"),
        tag("div", *(figure(chart) for chart in charts), class_="charts"),
    )


def figure_rows(figures: Figures) -> list[tuple[Child, ...]]:
    keys = list(dict.fromkeys(key for one in figures.values() for key in one))
    return [(key.replace("_", " "), *(shown(key, one.get(key)) for one in figures.values())) for key in keys]


def shown(key: str, value: float | None) -> str:
    if value is None:
        return ABSENT
    if key == "mfu" or "accuracy" in key:
        return f"{100 * value:.2f} %"
    if "loss" in key:
        return f"{value:.4f}"
    return (
        short(value) if key == "flops" else f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.4g}"
    )


def text_table(runs: Sequence[RunRecord]) -> str:
    """Final figures and differing keys in columns, for a terminal."""
    names = labels(runs)
    rows = [("", *names), *figure_rows(final_figures(runs))]
    changed = differences(runs)
    rows += [("", *("" for _ in names))] if changed else []
    rows += [(key, *(str(values[name]) for name in names)) for key, values in changed.items()]
    plain = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in plain) for column in range(len(names) + 1)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in plain
    )
