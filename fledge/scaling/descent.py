"""Fitting sums of powers to losses: Huber's loss on log L, through log-sum-exp, from a grid of starts (Hoffmann et al.
2022, §3.3). Imports no torch.

# S starts or bootstrap samples, P points of a sweep, K quantities (N and D, or one alone)
log L = logsumexp_k(c_k - g_k log x_k, e), with x_k divided by its geometric mean, which makes c and g independent.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fledge.errors import DataError
from fledge.scaling.minimise import Array, Objective, minimise

DELTA = 1e-3  # where Huber's loss turns from a square into a line
KEPT, FINAL = 96, 6  # starts of the grid that are descended from, and those of them that go to the end
BOOTSTRAP_ITERATIONS = 150
EXPONENTS, OFFSETS, CONSTANTS = (
    (0.0, 0.5, 1.0, 1.5, 2.0),
    (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    (-1.0, -0.5, 0.0, 0.5, 1.0),
)


@dataclass(frozen=True)
class Powers:
    """log quantities [P, K] less their means [K], and log losses [P]."""

    centred_PK: Array
    means_K: Array
    log_loss_P: Array

    @property
    def n_parameters(self) -> int:
        return 2 * self.centred_PK.shape[1] + 1

    def residuals(self, theta: Array) -> Array:
        """log L predicted less measured [S, P]."""
        return self.predicted(theta)[0] - self.log_loss_P

    def predicted(self, theta: Array) -> tuple[Array, Array]:
        """log L [S, P], and each term's share of L [S, P, K + 1]. theta: [S, (c, g) * K + e]."""
        terms = theta[:, None, 0:-1:2] - theta[:, None, 1:-1:2] * self.centred_PK
        terms = np.concatenate([terms, np.broadcast_to(theta[:, None, -1:], (*terms.shape[:2], 1))], axis=2)
        top = terms.max(2, keepdims=True)
        weights = np.exp(terms - top)
        total = weights.sum(2, keepdims=True)
        return (top + np.log(total))[..., 0], weights / total

    def objective(
        self, delta: float = DELTA, counts: Array | None = None, log_losses: Array | None = None
    ) -> Objective:
        """Sum of Huber's losses over points, divided by delta. `counts` [S, P]: how often each point was drawn;
        `log_losses` [S, P]: other losses than the measured ones."""

        def value_and_slope(theta: Array, rows: NDArray[np.intp]) -> tuple[Array, Array]:
            with np.errstate(all="ignore"):  # a start far off may overflow; its value is then not finite, and refused
                expected, share = self.predicted(theta)
                residual = expected - (self.log_loss_P if log_losses is None else log_losses[rows])
                small = np.minimum(np.abs(residual), delta)
                loss = small * (np.abs(residual) - small / 2) / delta
                pull = np.clip(residual / delta, -1.0, 1.0)
                if counts is not None:
                    loss, pull = loss * counts[rows], pull * counts[rows]
                slope = np.empty_like(theta)
                slope[:, 0:-1:2] = np.einsum("sp,spk->sk", pull, share[..., :-1])
                slope[:, 1:-1:2] = -np.einsum("sp,spk,pk->sk", pull, share[..., :-1], self.centred_PK)
                slope[:, -1] = (pull * share[..., -1]).sum(1)
                return loss.sum(1), slope

        return value_and_slope

    def starts(self) -> Array:
        """The paper's grid: exponents 0..2, log coefficients 0..25, log E -1..1; in centred form."""
        n_quantities = self.centred_PK.shape[1]
        theta = np.array(list(itertools.product(*([OFFSETS, EXPONENTS] * n_quantities), CONSTANTS)))
        theta[:, 0:-1:2] -= theta[:, 1:-1:2] * self.means_K
        return theta

    def natural(self, theta: Array) -> Array:
        """[S, (coefficient, exponent) * K + E]: out of logarithms and centred form."""
        found = theta.copy()
        with np.errstate(over="ignore"):
            found[:, 0:-1:2] = np.exp(theta[:, 0:-1:2] + theta[:, 1:-1:2] * self.means_K)
            found[:, -1] = np.exp(theta[:, -1])
        return found


def powers(quantities: list[Array], losses: Array) -> Powers:
    """The fit's data. Raises DataError for fewer points than a law has parameters, or a quantity that never changes."""
    logs = np.log(np.stack(quantities, axis=1))
    data = Powers(logs - logs.mean(0), logs.mean(0), np.log(losses))
    if len(losses) < data.n_parameters:
        raise DataError(
            f"points: expected at least {data.n_parameters} for a law of as many parameters, got {len(losses)}"
        )
    if (np.ptp(logs, axis=0) < 1e-9).any():
        raise DataError("points: expected several values of each quantity, got one alone; sweep over sizes and tokens")
    return data


def fit_powers(data: Powers, delta: float = DELTA) -> Array:
    """The parameters [P'] in centred form of the lowest Huber loss found from the grid."""
    starts = data.starts()
    every = np.arange(len(starts))
    objective = data.objective(delta)
    value, _ = objective(starts, every)
    best = np.argsort(np.where(np.isfinite(value), value, np.inf))[:KEPT]
    theta, value = minimise(objective, starts[best], iterations=60)
    theta, value = minimise(objective, theta[np.argsort(value)[:FINAL]])
    return theta[int(np.argmin(value))]


def bootstrap_powers(data: Powers, theta: Array, samples: int, seed: int, delta: float = DELTA) -> Array:
    """[S, P'] parameters of fits to `samples` draws of the points with replacement, each from `theta`."""
    n = len(data.log_loss_P)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=samples).astype(np.float64)
    found, value = minimise(data.objective(delta, counts), np.tile(theta, (samples, 1)), BOOTSTRAP_ITERATIONS)
    return found[np.isfinite(value)]


def redraw_residuals(data: Powers, theta: Array, samples: int, seed: int, delta: float = DELTA) -> Array:
    """[S, P'] parameters of fits to losses whose residuals were drawn anew, widened for the numbers that a law fits:
    for few points, where draws of points would leave too few different ones."""
    n, residuals = len(data.log_loss_P), data.residuals(theta[None])[0]
    spread = np.sqrt(n / max(1, n - data.n_parameters))
    drawn = np.random.default_rng(seed).choice(residuals, (samples, n)) * spread
    log_losses = data.log_loss_P + residuals - drawn
    objective = data.objective(delta, log_losses=log_losses)
    found, value = minimise(objective, np.tile(theta, (samples, 1)), BOOTSTRAP_ITERATIONS)
    return found[np.isfinite(value)]
