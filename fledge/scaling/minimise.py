"""Minimising many small problems at once: BFGS with a backtracking line search, every start a row of one array.

The problems of scaling laws have 3 or 5 parameters and thousands of starts (a grid, bootstrap samples): dense inverse
Hessians of that size cost nothing, and numpy does all rows together. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Objective = Callable[[Array, NDArray[np.intp]], tuple[Array, Array]]
"""(points [S, P], which rows of all [S]) -> (values [S], gradients [S, P])."""

SUFFICIENT = 1e-4  # share of the slope that a step must gain (Nocedal & Wright 2006, §3.1)
HALVINGS = 30
LEAST_GAIN, PATIENCE = 1e-9, 4  # a row ends after so many steps in turn that gain less than this share of its value


def minimise(
    objective: Objective, starts: Array, iterations: int = 400, tolerance: float = 1e-9
) -> tuple[Array, Array]:
    """The points [S, P] where each start's descent ended, and their values [S].

    A row ends when no slope is above `tolerance`, when steps along its direction gain next to nothing, or after
    `iterations`. A row whose value is not finite stays where it is with the value infinity.
    """
    x = np.array(starts, dtype=np.float64)
    n_rows, n_parameters = x.shape
    rows = np.arange(n_rows)
    value, slope = objective(x, rows)
    bad = ~(np.isfinite(value) & np.isfinite(slope).all(1))
    value[bad], slope[bad] = np.inf, 0.0
    inverse = np.tile(np.eye(n_parameters), (n_rows, 1, 1))
    active = rows[np.abs(slope).max(1) > tolerance]
    fresh = np.ones(n_rows, dtype=bool)  # inverse Hessian still the identity
    idle = np.zeros(n_rows, dtype=np.intp)
    for _ in range(iterations):
        if not len(active):
            break
        direction = -np.einsum("sij,sj->si", inverse[active], slope[active])
        gain = np.einsum("si,si->s", direction, slope[active])
        uphill = ~(gain < 0)
        direction[uphill] = -slope[active][uphill]
        gain[uphill] = -np.square(slope[active][uphill]).sum(1)
        inverse[active[uphill]] = np.eye(n_parameters)
        fresh[active[uphill]] = True
        length = np.where(fresh[active], np.minimum(1.0, 1.0 / np.sqrt(-gain)), 1.0)
        new, new_value, new_slope, moved = line_search(
            objective, x[active], value[active], direction, gain, length, active
        )
        update(inverse, fresh, active[moved], (new - x[active])[moved], (new_slope - slope[active])[moved])
        stuck = ~moved & ~fresh[active]  # start again along the slope before giving up
        inverse[active[~moved]] = np.eye(n_parameters)
        fresh[active[~moved]] = True
        done = active[moved]
        slow = value[done] - new_value[moved] < LEAST_GAIN * np.abs(value[done])
        idle[done] = np.where(slow, idle[done] + 1, 0)
        x[done], value[done], slope[done] = new[moved], new_value[moved], new_slope[moved]
        going = moved & (np.abs(new_slope).max(1) > tolerance) & (idle[active] < PATIENCE)
        active = active[going | stuck]
    return x, value


def line_search(
    objective: Objective, x: Array, value: Array, direction: Array, gain: Array, length: Array, rows: NDArray[np.intp]
) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
    """Halve each row's step until it gains enough: new points, values, slopes, and which rows moved."""
    new, new_value, new_slope = x.copy(), value.copy(), np.zeros_like(x)
    moved = np.zeros(len(x), dtype=bool)
    waiting = np.arange(len(x))
    for _ in range(HALVINGS):
        tried = x[waiting] + length[waiting, None] * direction[waiting]
        found, slope = objective(tried, rows[waiting])
        enough = found <= value[waiting] + SUFFICIENT * length[waiting] * gain[waiting]
        enough &= np.isfinite(found) & np.isfinite(slope).all(1) & (found < value[waiting])
        hit = waiting[enough]
        new[hit], new_value[hit], new_slope[hit], moved[hit] = tried[enough], found[enough], slope[enough], True
        waiting = waiting[~enough]
        if not len(waiting):
            break
        length[waiting] /= 2
    return new, new_value, new_slope, moved


def update(inverse: Array, fresh: NDArray[np.bool_], rows: NDArray[np.intp], step: Array, change: Array) -> None:
    """BFGS's update of the inverse Hessians (Nocedal & Wright 2006, eq. 6.17), where the curvature is positive."""
    curvature = np.einsum("si,si->s", step, change)
    good = curvature > 1e-14 * np.sqrt(np.square(step).sum(1) * np.square(change).sum(1))
    rows, step, change, curvature = rows[good], step[good], change[good], curvature[good]
    if not len(rows):
        return
    identity = np.eye(step.shape[1])
    first = fresh[rows]
    scale = curvature[first] / np.square(change[first]).sum(1)
    inverse[rows[first]] = scale[:, None, None] * identity
    fresh[rows] = False
    left = identity - np.einsum("si,sj->sij", step, change) / curvature[:, None, None]
    inverse[rows] = left @ inverse[rows] @ left.transpose(0, 2, 1)
    inverse[rows] += np.einsum("si,sj->sij", step, step) / curvature[:, None, None]
