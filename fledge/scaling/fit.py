"""Chinchilla's three approaches (Hoffmann et al. 2022, §3) and power laws in one quantity, with bootstrap intervals.

Each gives its result as plain values, or `{"missing": reason}` where the points don't suffice. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fledge.errors import DataError
from fledge.scaling.descent import bootstrap_powers, fit_powers, powers, redraw_residuals
from fledge.scaling.laws import FLOPS_PER_PARAMETER_TOKEN, Surface
from fledge.scaling.minimise import Array
from fledge.scaling.points import Count, Point

LEVELS = (2.5, 97.5)
SAME_BUDGET = 0.05  # points within this share of each other's C are one IsoFLOP curve
ENVELOPE = 400  # budgets at which the envelope of training curves is read
LEAST_SAMPLES = 20
SPARE_POINTS = 2  # beyond a law's numbers, which else goes through all of them: residuals of 0 say nothing of noise
NAMES = ("A", "alpha", "B", "beta", "E")
Parabola = tuple[float, float, Array]
"""(log N of its lowest point, the loss there, coefficients around the mean of log N)."""


@dataclass(frozen=True)
class FitSettings:
    """Which N, how many bootstrap samples (0: no intervals), from which seed, and where Huber's loss turns."""

    count: Count
    bootstrap: int
    seed: int
    delta: float


def fit_surface(points: Sequence[Point], settings: FitSettings) -> dict[str, Any]:
    """Approach 3: E, A, B, alpha, beta, the exponents a and b of N and D in C, residuals of log L, and bootstrap
    samples of the law, or `no_intervals`, why there are none. Raises DataError for points that determine no such
    law."""
    sizes, tokens, losses = columns(points, settings.count)
    data = powers([sizes, tokens], losses)
    theta = fit_powers(data, settings.delta)
    law = dict(zip(NAMES, data.natural(theta[None])[0].tolist(), strict=True))
    for name, quantity in (("alpha", "parameters"), ("beta", "tokens")):
        if not np.isfinite(list(law.values())).all() or law[name] <= 0.005:
            raise DataError(
                f"points: expected the loss to fall with {quantity}, got the exponent {law[name]:.3g}; "
                "sweep over a wider range, or look for runs that went wrong"
            )
    residuals = data.residuals(theta[None])[0]
    found: dict[str, Any] = law | exponents(law) | {"points": len(points), "residuals": residuals.tolist()}
    least = data.n_parameters + SPARE_POINTS
    if settings.bootstrap and len(points) < least:
        found["no_intervals"] = f"points: expected at least {least} for intervals, got {len(points)}; add runs"
    elif settings.bootstrap:
        drawn = data.natural(bootstrap_powers(data, theta, settings.bootstrap, settings.seed, settings.delta))
        drawn = drawn[np.isfinite(drawn).all(1) & (drawn[:, 1] > 0) & (drawn[:, 3] > 0)]
        if len(drawn) < max(LEAST_SAMPLES, settings.bootstrap // 2):
            raise DataError(
                f"points: expected a law in at least half of {settings.bootstrap} bootstrap samples, got {len(drawn)}; "
                "more runs are needed"
            )
        shares = drawn[:, 3] / (drawn[:, 1] + drawn[:, 3])
        found["intervals"] = intervals(NAMES, drawn) | intervals(("a", "b"), np.stack([shares, 1 - shares], 1))
        found["samples"] = drawn.tolist()
    return found


def exponents(law: dict[str, float]) -> dict[str, float]:
    a = law["beta"] / (law["alpha"] + law["beta"])
    return {"a": a, "b": 1 - a}


def surface_of(found: dict[str, Any]) -> Surface:
    """The law of `fit_surface`'s result."""
    return Surface(found["E"], found["A"], found["B"], found["alpha"], found["beta"])


def columns(points: Sequence[Point], count: Count) -> tuple[Array, Array, Array]:
    rows = np.array([[p.size(count), p.tokens, p.loss] for p in points], dtype=np.float64).reshape(-1, 3)
    if not (np.isfinite(rows).all() and (rows > 0).all()):
        raise DataError("points: expected N, D and loss to be finite and above 0; leave such runs out")
    return rows[:, 0], rows[:, 1], rows[:, 2]


def intervals(names: Sequence[str], drawn: Array) -> dict[str, list[float]]:
    low, high = np.percentile(drawn, LEVELS, axis=0)
    return {name: [float(low[i]), float(high[i])] for i, name in enumerate(names)}


def or_missing(fit: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `fit` gives, or why it can't."""
    try:
        return fit()
    except DataError as error:
        return {"missing": str(error)}


def fit_envelope(points: Sequence[Point], settings: FitSettings) -> dict[str, Any]:
    """Approach 1: at each budget the training curve with the lowest loss; N = k C^a through the winners. Budgets won by
    the smallest or the largest model are left out: a better size may lie beyond. Raises DataError."""
    curves = [(p.size(settings.count), *curve_of(p, settings.count)) for p in points if len(p.curve) >= 2]
    if len({size for size, _, _ in curves}) < 3:
        raise DataError(f"points: expected training curves of at least 3 sizes, got {len({s for s, _, _ in curves})}")
    logs = winners(curves)
    if len(np.unique(logs[:, 1])) < 2:
        raise DataError("points: expected at least 2 sizes between the smallest and the largest to win, got fewer")
    slope, start = np.polyfit(logs[:, 0], logs[:, 1], 1)
    drawn, random = [], np.random.default_rng(settings.seed)
    for _ in range(settings.bootstrap):
        chosen = [curves[i] for i in random.integers(len(curves), size=len(curves))]
        if len({size for size, _, _ in chosen}) >= 3:
            again = winners(chosen)
            if len(np.unique(again[:, 1])) >= 2:
                drawn.append(np.polyfit(again[:, 0], again[:, 1], 1))
    return allotment(float(slope), float(start), drawn, settings) | {"sizes": len(np.unique(logs[:, 1]))}


def curve_of(point: Point, count: Count) -> tuple[Array, Array]:
    """(log C, loss) along a run's training curve, by rising C."""
    pairs = np.array(sorted(point.curve))
    return np.log(FLOPS_PER_PARAMETER_TOKEN * point.size(count) * pairs[:, 0]), pairs[:, 1]


def winners(curves: Sequence[tuple[float, Array, Array]]) -> Array:
    """[budgets, (log C, log N)] of the curve with the lowest loss at each budget, where it is no extreme size."""
    sizes = np.array([size for size, _, _ in curves])
    budgets = np.linspace(min(c[0] for _, c, _ in curves), max(c[-1] for _, c, _ in curves), ENVELOPE)
    losses = np.stack([np.interp(budgets, c, loss, left=np.inf, right=np.inf) for _, c, loss in curves])
    best = losses.argmin(0)
    inside = np.isfinite(losses.min(0)) & (sizes[best] > sizes.min()) & (sizes[best] < sizes.max())
    return np.stack([budgets[inside], np.log(sizes[best][inside])], axis=1)


def allotment(slope: float, start: float, drawn: Sequence[Any], settings: FitSettings) -> dict[str, Any]:
    """N = k C^a as plain values, with intervals where there are samples enough."""
    found: dict[str, Any] = {"k": float(np.exp(start)), "a": slope, "b": 1 - slope}
    if settings.bootstrap and len(drawn) >= max(LEAST_SAMPLES, settings.bootstrap // 2):
        slopes = np.array([[one[0], 1 - one[0]] for one in drawn])
        found["intervals"] = intervals(("a", "b"), slopes)
    return found


def fit_isoflop(points: Sequence[Point], settings: FitSettings) -> dict[str, Any]:
    """Approach 2: a parabola of loss over log N for each budget; N = k C^a through their lowest points. Intervals come
    from residuals drawn anew; with three sizes a budget there are no residuals. Raises DataError."""
    groups = budgets_of(points, settings.count)
    found = [(group, parabola(*group_columns(group, settings.count))) for group in groups]
    kept = [(group, fit) for group, fit in found if fit is not None]
    if len(kept) < 2:
        raise DataError(
            f"points: expected at least 2 budgets whose losses have a lowest point between their sizes, got {len(kept)}"
            f" of {len(groups)} budgets with 3 sizes{other_count(points, settings.count)}"
        )
    n_points = sum(len(group) for group, _ in kept)
    known = n_points > 3 * len(kept)
    logs_C = np.array([np.mean(np.log([p.products(settings.count) for p in group])) for group, _ in kept])
    vertices = np.array([fit[0] for _, fit in kept])
    slope, start = np.polyfit(logs_C, vertices, 1)
    drawn, random, shares = [], np.random.default_rng(settings.seed), shares_off(kept, settings.count)
    for _ in range(settings.bootstrap if known else 0):
        again = [redrawn(group, fit, settings.count, shares, random) for group, fit in kept]
        if all(vertex is not None for vertex in again):
            drawn.append(np.polyfit(logs_C, np.array(again, dtype=np.float64), 1))
    curves = [
        {"flops": float(np.exp(c)), "parameters": float(np.exp(fit[0])), "loss": fit[1], "points": len(group)}
        for c, (group, fit) in zip(logs_C, kept, strict=True)
    ]
    allotted = allotment(float(slope), float(start), drawn, settings) | {"curves": curves}
    if settings.bootstrap and not known:
        allotted["no_intervals"] = (
            f"points: expected more than 3 sizes in a budget for intervals, got {n_points} points"
        )
    return allotted


def budgets_of(points: Sequence[Point], count: Count) -> list[list[Point]]:
    """Points of one budget each, where at least three sizes share it: by the budget they were made for, where it is
    their C as `count` counts, or by C."""
    groups: list[list[Point]] = []
    by_budget: dict[float, list[Point]] = {}
    loose = []
    for point in points:
        if is_budget(point, count):
            by_budget.setdefault(point.budget, []).append(point)
        else:
            loose.append(point)
    for point in sorted(loose, key=lambda p: p.products(count)):
        if groups and point.products(count) <= groups[-1][0].products(count) * (1 + SAME_BUDGET):
            groups[-1].append(point)
        else:
            groups.append([point])
    groups += [by_budget[budget] for budget in sorted(by_budget)]
    return [group for group in groups if len({point.size(count) for point in group}) >= 3]


def is_budget(point: Point, count: Count) -> bool:
    """Whether a point was made for a budget of this N."""
    return bool(point.budget) and abs(point.products(count) / point.budget - 1) <= SAME_BUDGET


def other_count(points: Sequence[Point], count: Count) -> str:
    """What to do where budgets were of another N; empty where none was."""
    other = sum(bool(point.budget) and not is_budget(point, count) for point in points)
    told = f"; {other} runs have another C than the budget they were made for, fit with the sweep's count"
    return told if other else ""


def group_columns(group: Sequence[Point], count: Count) -> tuple[Array, Array]:
    sizes, _, losses = columns(group, count)
    return np.log(sizes), losses


def parabola(logs: Array, losses: Array) -> Parabola | None:
    """The parabola through losses over log N; None where it has no lowest point between the sizes."""
    centre = logs.mean()
    coefficients = np.polyfit(logs - centre, losses, 2)
    if coefficients[0] <= 0:
        return None
    vertex = -coefficients[1] / (2 * coefficients[0])
    if not logs.min() <= vertex + centre <= logs.max():
        return None
    return float(vertex + centre), float(np.polyval(coefficients, vertex)), coefficients


def shares_off(kept: Sequence[tuple[list[Point], Parabola]], count: Count) -> Array:
    """By which shares losses lie off their parabolas, widened for the three numbers that each of these fits."""
    shares = []
    for group, fit in kept:
        logs, losses = group_columns(group, count)
        shares.append(losses / expected_of(fit, logs) - 1)
    n_points = sum(map(len, shares))
    return np.concatenate(shares) * np.sqrt(n_points / max(1, n_points - 3 * len(kept)))


def redrawn(
    group: Sequence[Point], fit: Parabola, count: Count, shares: Array, random: np.random.Generator
) -> float | None:
    """The lowest point of a parabola through losses that are off by shares drawn anew from those of all."""
    logs, _ = group_columns(group, count)
    again = parabola(logs, expected_of(fit, logs) * (1 + random.choice(shares, len(logs))))
    return None if again is None else again[0]


def expected_of(fit: Parabola, logs: Array) -> Array:
    return np.polyval(fit[2], logs - logs.mean())


def fit_law(points: Sequence[Point], quantity: str, settings: FitSettings) -> dict[str, Any]:
    """L(X) = E + A / X^alpha for X of N, D or C, through the lowest loss at each X, where it is below that of every
    smaller X. With 2 or 3 values of X there is no E (Kaplan et al. 2020). Raises DataError."""
    xs, losses = frontier(points, quantity, settings.count)
    if len(xs) < 2:
        raise DataError(f"points: expected at least 2 values of {quantity} with losses that fall, got {len(xs)}")
    if len(xs) < 4:
        slope, start = np.polyfit(np.log(xs), np.log(losses), 1)
        if slope >= 0:
            raise DataError(f"points: expected the loss to fall with {quantity}, got the exponent {-slope:.3g}")
        return {"E": 0.0, "A": float(np.exp(start)), "alpha": float(-slope), "points": len(xs)}
    data = powers([xs], losses)
    theta = fit_powers(data, settings.delta)
    coefficient, exponent, constant = data.natural(theta[None])[0].tolist()
    if not (np.isfinite([coefficient, exponent, constant]).all() and exponent > 0.005):
        raise DataError(f"points: expected the loss to fall with {quantity}, got the exponent {exponent:.3g}")
    found: dict[str, Any] = {"E": constant, "A": coefficient, "alpha": exponent, "points": len(xs)}
    if settings.bootstrap:
        drawn = data.natural(redraw_residuals(data, theta, settings.bootstrap, settings.seed, settings.delta))
        found["intervals"] = intervals(("A", "alpha", "E"), drawn[np.isfinite(drawn).all(1)])
    return found


def frontier(points: Sequence[Point], quantity: str, count: Count) -> tuple[Array, Array]:
    """(X, loss) by rising X: the lowest loss at each X (within SAME_BUDGET of each other), as long as it falls."""
    pick = {"N": lambda p: p.size(count), "D": lambda p: p.tokens, "C": lambda p: p.products(count)}[quantity]
    best: list[tuple[float, float]] = []
    first = 0.0  # the smallest of those that count as one X
    for x, loss in sorted((pick(point), point.loss) for point in points):
        if x > first * (1 + SAME_BUDGET):
            first = x
            best.append((x, loss))
        elif loss < best[-1][1]:
            best[-1] = (x, loss)
    falling = [best[0]] if best else []
    falling += [(x, loss) for n, (x, loss) in enumerate(best[1:], 1) if loss < min(other for _, other in best[:n])]
    return np.array([x for x, _ in falling]), np.array([loss for _, loss in falling])
