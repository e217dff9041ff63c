"""Muon: the momentum of a hidden matrix, orthogonalised, is its update (Jordan et al. 2024,
kellerjordan.github.io/posts/muon); everything else goes through AdamW.

A test holds it equal to torch.optim.Muon, and its orthogonalisation to a float64 formula over singular values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fledge.optim.adamw import AdamW, AdamWConfig
from fledge.optim.config import GroupConfig, MuonConfig
from fledge.optim.groups import members
from fledge.optim.optimizer import Optimizer, put_back
from fledge.optim.part import ALL, Part, local

# Each step maps a singular value s to A s + B s^3 + C s^5; chosen for their slope at 0, not to converge to 1: after
# five steps singular values lie in about 0.7..1.2 (Jordan et al. 2024).
A, B, C = 3.4445, -4.7750, 2.0315
SMALLEST_NORM = 1e-7
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Matrix:
    """One matrix that Muon moves, its values here, and its mean gradient."""

    name: str
    parameter: Tensor
    values: Tensor
    momentum: Tensor
    rate: float
    weight_decay: float


class Muon(Optimizer):
    """Muon for the matrices of maps inside blocks, AdamW for embeddings, heads, norms and biases.

    `step(rate)` takes AdamW's rate; Muon's is `ratio` times it. The decay is decoupled, by the rate before its scale.
    Where processes share a matrix, each orthogonalises the whole and moves its `part`.
    """

    def __init__(
        self,
        model: nn.Module,
        config: MuonConfig,
        adamw: AdamWConfig,
        ratio: float = 1.0,
        groups: Sequence[GroupConfig] = (),
        part: Part = ALL,
    ):
        found = [m for m in members(model, "muon", adamw.weight_decay, groups) if part.moves(m.name)]
        self.config, self.ratio, self.part = config, ratio, part
        self.rest = AdamW.of([member for member in found if member.method == "adamw"], adamw)
        self.matrices = [
            Matrix(m.name, m.parameter, values, torch.zeros_like(values, requires_grad=False), m.rate, m.weight_decay)
            for m in found
            if m.method == "muon"
            for values in (local(m.parameter),)
        ]

    @property
    def parameters(self) -> list[Tensor]:
        return [matrix.parameter for matrix in self.matrices] + self.rest.parameters

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for matrix in self.matrices:
            self.update(matrix, rate * self.ratio * matrix.rate)
        self.rest.step(rate)

    def update(self, matrix: Matrix, rate: float) -> None:
        config = self.config
        assert matrix.parameter.grad is not None
        gradient = local(matrix.parameter.grad)
        matrix.momentum.lerp_(gradient, 1 - config.momentum)
        mean = gradient.lerp(matrix.momentum, config.momentum) if config.nesterov else matrix.momentum
        direction = orthogonalised(self.part.whole(matrix.name, mean), config.iterations, TYPES[config.precision])
        length = rate * update_scale(direction.shape, config.scale)
        own = self.part.own(matrix.name, direction)
        matrix.values.mul_(1 - rate * matrix.weight_decay)
        matrix.values.add_(own.to(matrix.values.dtype), alpha=-length)

    def state(self) -> dict[str, Tensor]:
        """`momentum/NAME` of each matrix, and AdamW's state of the rest."""
        return {f"momentum/{m.name}": m.momentum for m in self.matrices} | self.rest.state()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for matrix in self.matrices:
            put_back(matrix.momentum, tensors, f"momentum/{matrix.name}")
        self.rest.load(tensors)


def orthogonalised(matrix: Tensor, iterations: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """About U Vᵀ of `matrix` = U S Vᵀ, by Newton-Schulz steps in `dtype`; a matrix of zeros stays one."""
    x = matrix.to(dtype)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=SMALLEST_NORM)  # the Frobenius norm: no singular value is above 1 then
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.T if tall else x


def update_scale(shape: Sequence[int], scale: str) -> float:
    """What an orthogonal update of [rows, columns] is multiplied by; see `MuonConfig.scale`."""
    rows, columns = shape
    return 0.2 * math.sqrt(max(rows, columns)) if scale == "rms" else math.sqrt(max(1.0, rows / columns))
