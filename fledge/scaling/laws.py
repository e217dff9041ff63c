"""Laws of loss: L(N, D) = E + A / N^alpha + B / D^beta, a power law in one quantity, and the published constants.

N parameters, D tokens, C FLOPs of training, taken as 6 N D. Loss in nats a token. Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from fledge.errors import ConfigError

FLOPS_PER_PARAMETER_TOKEN = 6.0
PF_DAY = 1e15 * 86400


@dataclass(frozen=True)
class Optimum:
    """The best use of a budget: `parameters` and `tokens`, and the `loss` that the law expects (None: it has none)."""

    parameters: float
    tokens: float
    loss: float | None


class Allocation(Protocol):
    """What says how to spend a budget of FLOPs."""

    def optimum(self, flops: float) -> Optimum: ...


@dataclass(frozen=True)
class Surface:
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, arXiv 2203.15556, eq. 2)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    @property
    def exponent_of_parameters(self) -> float:
        """a of N = G (C / 6)^a; tokens grow with 1 - a."""
        return self.beta / (self.alpha + self.beta)

    def optimum(self, flops: float) -> Optimum:
        """N and D of the lowest loss under 6 N D = `flops`: where alpha A / N^alpha = beta B / D^beta (eq. 4)."""
        share = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        products = flops / FLOPS_PER_PARAMETER_TOKEN
        parameters = share * products**self.exponent_of_parameters
        tokens = products / parameters
        return Optimum(parameters, tokens, self.loss(parameters, tokens))


@dataclass(frozen=True)
class PowerLaw:
    """L(X) = E + A / X^alpha."""

    E: float
    A: float
    alpha: float

    def loss(self, quantity: float) -> float:
        return self.E + self.A / quantity**self.alpha


@dataclass(frozen=True)
class Allotment:
    """N = `coefficient` C^`exponent`, D what is left of C / 6: what approaches 1 and 2 find."""

    coefficient: float
    exponent: float

    def optimum(self, flops: float) -> Optimum:
        parameters = self.coefficient * flops**self.exponent
        return Optimum(parameters, flops / FLOPS_PER_PARAMETER_TOKEN / parameters, None)


@dataclass(frozen=True)
class Kaplan:
    """Kaplan et al. 2020 (arXiv 2001.08361, table 6): N = 1.3e9 C^0.73 without embeddings, C in PF-days, at a small
    batch; L = (3.1e8 / C)^0.050."""

    def optimum(self, flops: float) -> Optimum:
        days = flops / PF_DAY
        parameters = 1.3e9 * days**0.73
        tokens = flops / FLOPS_PER_PARAMETER_TOKEN / parameters
        return Optimum(parameters, tokens, (3.1e8 / days) ** 0.050)


@dataclass(frozen=True)
class TokensPerParameter:
    """A fixed number of tokens for each parameter: 20 is the usual reading of Chinchilla (70B, 1.4T)."""

    ratio: float = 20.0

    def optimum(self, flops: float) -> Optimum:
        parameters = math.sqrt(flops / FLOPS_PER_PARAMETER_TOKEN / self.ratio)
        return Optimum(parameters, self.ratio * parameters, None)


PUBLISHED: dict[str, Allocation] = {
    # Hoffmann et al. 2022, eq. 10, as printed: exponents rounded to two digits
    "chinchilla": Surface(1.69, 406.4, 410.7, 0.34, 0.28),
    # the same fit with the digits that the paper's source has
    "chinchilla_precise": Surface(1.6934, 406.4, 410.7, 0.3392, 0.2849),
    # Besiroglu et al. 2024, arXiv 2404.10102, table 1: the same runs, read off the paper's figure and fitted again
    "besiroglu": Surface(1.8172, 482.01, 2085.43, 0.3478, 0.3658),
    "kaplan": Kaplan(),
    "twenty": TokensPerParameter(),
}


def published(name: str) -> Allocation:
    """Published constants by name. Raises ConfigError with the names there are."""
    if name not in PUBLISHED:
        raise ConfigError(f"constants: expected one of {', '.join(PUBLISHED)}, got {name!r}")
    return PUBLISHED[name]
