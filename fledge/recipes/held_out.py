"""Validation on several sources: each one's figures, and those of all by stated weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fledge.batch import Batch

COUNTED = "val_tokens"


@dataclass(frozen=True)
class HeldOut:
    """The held-out batches of one source of a mixture. `weight`: its part in the figures of all."""

    name: str
    weight: float
    batches: Sequence[Batch]


def overall(found: Sequence[tuple[HeldOut, dict[str, float]]]) -> dict[str, float]:
    """Every figure as the mean of the sources by their weights, and as `FIGURE/NAME` of each source; `val_tokens` is a
    sum. A source without held-out text is left out, and the others' weights then make up the whole."""
    there = [(source, figures) for source, figures in found if figures[COUNTED] > 0]
    whole = sum(source.weight for source, _ in there)
    result: dict[str, float] = {}
    for key in found[0][1]:
        parts = [(source.weight, figures[key]) for source, figures in there]
        mean = sum(weight * value for weight, value in parts) / whole if whole else math.nan
        result[key] = sum(value for _, value in parts) if key == COUNTED else mean
    return result | {f"{key}/{source.name}": value for source, figures in there for key, value in figures.items()}
