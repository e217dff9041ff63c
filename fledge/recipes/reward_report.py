"""What a reward model is worth on held-out pairs: accuracy, beside what length alone tells, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import fledge
from fledge.align.calibration import calibration_error, reliability
from fledge.data.preference_batches import Item
from fledge.evals.score import METHOD, change_score, mean_score
from fledge.lineage import write_text_durably
from fledge.recipes.preference_data import Items
from fledge.train.markup import Child, table, tag
from fledge.train.page import page_head
from fledge.train.plot import Chart, Line, figure

FILE, PAGE = "calibration.json", "calibration.html"


def report(rewards: Sequence[tuple[float, float]], items: Items, n_bins: int, seed: int) -> dict[str, Any]:
    """Figures of held-out pairs from their (chosen, rejected) rewards; scores have n and an interval, and
    `above_length` is the gain pair by pair."""
    chosen, rejected = np.array(rewards, float).T
    margins = chosen - rejected
    right = half_right(margins)
    rule, by_length = length_alone(items)
    bins = reliability(margins.tolist(), n_bins)
    return {
        "accuracy": mean_score(right.tolist(), seed).as_dict(),
        "length_accuracy": mean_score(by_length.tolist(), seed).as_dict(),
        "length_rule": rule,
        "above_length": change_score(right.tolist(), by_length.tolist(), [1.0] * len(right), seed).as_dict(),
        "margin": mean_score(margins.tolist(), seed).as_dict(),
        "reward_mean": float((chosen.mean() + rejected.mean()) / 2),
        "reward_deviation": float(np.concatenate([chosen, rejected]).std()),
        "calibration_error": calibration_error(bins),
        "reliability": [asdict(one) for one in bins],
        "method": METHOD,
    }


def half_right(differences: np.ndarray) -> np.ndarray:
    """1 above 0, 0 below, 1/2 at 0, where a coin decides."""
    return (np.sign(differences) + 1) / 2


def length_alone(items: Items) -> tuple[str, np.ndarray]:
    """The rule about length that is right more often on training pairs ("longer" or "shorter" is better), and whether
    it is right on each held-out one."""
    sign = 1.0 if half_right(longer_by(items.training)).mean() >= 0.5 else -1.0
    return "longer" if sign > 0 else "shorter", half_right(sign * longer_by(items.held_out))


def longer_by(items: Sequence[Item]) -> np.ndarray:
    """Tokens that each chosen answer has more than its rejected one."""
    return np.array([float(item.answers[0].trained.sum() - item.answers[1].trained.sum()) for item in items])


def write_page(folder: Path, found: dict[str, Any]) -> None:
    """The figures as one self-contained page."""
    bins = found["reliability"]
    lines = (
        Line("pairs", tuple((one["confidence"], one["accuracy"]) for one in bins), "first", dots=True),
        Line("as sure as right", ((0.5, 0.5), (1.0, 1.0)), "faint"),
    )
    chart = Chart("Reliability", lines, x_name="confidence", y_name="accuracy")
    names = {"accuracy": "accuracy", "length_accuracy": f"accuracy of length alone ({found['length_rule']} is better)",
             "above_length": "difference", "margin": "margin"}  # fmt: skip
    rows: list[tuple[Child, ...]] = []
    for name, text in names.items():
        score = found[name]
        rows.append((text, f"{score['value']:.4f}", between(score), score["n"]))
    rows.append(("expected calibration error", f"{found['calibration_error']:.4f}", "", rows[0][3]))
    cells: list[tuple[Child, ...]] = []
    for one in bins:
        span = f"{one['low']:.3f} to {one['high']:.3f}"
        cells.append((span, one["n"], f"{one['confidence']:.4f}", f"{one['accuracy']:.4f}"))
    title = "Reward model on held-out pairs"
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("p", found["method"], class_="quiet")),
        tag("section", tag("h2", "Figures"), table(("", "value", "95 %", "pairs"), rows, (1, 2, 3))),
        tag("section", tag("h2", "Calibration"), tag("div", figure(chart), class_="charts"),
            table(("confidence", "pairs", "mean", "accuracy"), cells, (1, 2, 3))),
        tag("footer", tag("p", f"Written by fledge {fledge.__version__}; {found['model'][:12]}.", class_="quiet")),
    )  # fmt: skip
    page = f"<!doctype html>\n{tag('html', page_head(title), body, lang='en')}\n"
    write_text_durably(folder / PAGE, page)


def told(found: dict[str, Any]) -> str:
    """What people read."""
    own, by_length, error = found["accuracy"], found["length_accuracy"], found["calibration_error"]
    return (
        f"{own['n']} held-out pairs: accuracy {within(own)}, length alone ({found['length_rule']}) "
        f"{within(by_length)}, calibration error {error:.3f}"
    )


def within(score: dict[str, Any]) -> str:
    """A figure and its interval, where it has one."""
    return f"{score['value']:.3f}" + (f" ({between(score)})" if score["interval"] else "")


def between(score: dict[str, Any]) -> str:
    return "" if score["interval"] is None else f"{score['interval'][0]:.4f} .. {score['interval'][1]:.4f}"
