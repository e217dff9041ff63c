"""Sweeps whose law is known, made without any training."""

from __future__ import annotations

import numpy as np

from fledge.scaling.laws import Surface
from fledge.scaling.points import Point

TRUTH = Surface(1.8, 480.0, 2000.0, 0.35, 0.366)


def points(
    seed: int, noise: float = 0.003, law: Surface = TRUTH, budgets: int = 5, per_budget: int = 6, spread: float = 5.0
) -> list[Point]:
    """IsoFLOP curves around the law's own best sizes, from a `spread`th to `spread` times them, with training curves
    and log-normal noise."""
    random, made = np.random.default_rng(seed), []
    for flops in np.geomspace(1e18, 1e21, budgets):
        centre = law.optimum(float(flops)).parameters
        for size in centre * np.geomspace(1 / spread, spread, per_budget):
            tokens = flops / 6 / size
            factor = float(np.exp(random.normal(0.0, noise)))
            seen = tokens * np.linspace(0.05, 1.0, 30)
            curve = tuple((float(t), law.loss(float(size), float(t)) * factor) for t in seen)
            loss = law.loss(float(size), float(tokens)) * factor
            made.append(Point(float(size), 0.8 * float(size), float(tokens), loss, budget=float(flops), curve=curve))
    return made
