"""AdamW with decoupled decay (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2).

Ours rather than torch.optim's class, which costs 3 s of imports at its first use; the update itself is torch's fused
kernel, and a test holds the two equal for 100 steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fledge.optim.config import GroupConfig
from fledge.optim.groups import Member, members, together
from fledge.optim.optimizer import Optimizer, gradients, put_back
from fledge.optim.part import ALL, Part, local


@dataclass(frozen=True)
class AdamWConfig:
    """The constants of Adam; the rate comes with every step."""

    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8


@dataclass
class Group:
    """Parameters of one rate and decay with the values that are moved here, their moments and step counts, in equal
    order."""

    rate: float
    weight_decay: float
    names: list[str]
    parameters: list[Tensor]
    values: list[Tensor]
    exp_avg: list[Tensor]
    exp_avg_sq: list[Tensor]
    steps: list[Tensor]


class AdamW(Optimizer):
    """The optimizer of a model's trained parameters: matrices decay, vectors (norms, biases) don't, unless a group
    says otherwise. `part`: what of them this process moves."""

    def __init__(self, model: nn.Module, config: AdamWConfig, groups: Sequence[GroupConfig] = (), part: Part = ALL):
        found = members(model, "adamw", config.weight_decay, groups)
        self.move([member for member in found if part.moves(member.name)], config)

    @classmethod
    def of(cls, found: Sequence[Member], config: AdamWConfig) -> AdamW:
        """The optimizer of these parameters alone."""
        made = cls.__new__(cls)
        made.move(found, config)
        return made

    def move(self, found: Sequence[Member], config: AdamWConfig) -> None:
        self.config = config
        self.groups = [new_group(items, *key) for key, items in together(found).items()]

    @property
    def parameters(self) -> list[Tensor]:
        return [p for group in self.groups for p in group.parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        config = self.config
        for group in self.groups:
            torch._foreach_add_(group.steps, 1)
            torch._fused_adamw_(
                group.values,
                gradients(group.parameters),
                group.exp_avg,
                group.exp_avg_sq,
                [],
                group.steps,
                lr=rate * group.rate,
                beta1=config.beta1,
                beta2=config.beta2,
                weight_decay=group.weight_decay,
                eps=config.eps,
                amsgrad=False,
                maximize=False,
            )

    def state(self) -> dict[str, Tensor]:
        """The moments by parameter name: `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME` (float32, one element)."""
        tensors: dict[str, Tensor] = {}
        for group in self.groups:
            rows = zip(group.names, group.exp_avg, group.exp_avg_sq, group.steps, strict=True)
            for name, first, second, step in rows:
                tensors |= {f"exp_avg/{name}": first, f"exp_avg_sq/{name}": second, f"step/{name}": step.reshape(1)}
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for group in self.groups:
            for index, name in enumerate(group.names):
                put_back(group.exp_avg[index], tensors, f"exp_avg/{name}")
                put_back(group.exp_avg_sq[index], tensors, f"exp_avg_sq/{name}")
                put_back(group.steps[index], tensors, f"step/{name}")


def new_group(items: list[Member], rate: float, weight_decay: float) -> Group:
    names, parameters = [item.name for item in items], [item.parameter for item in items]
    values = [local(p) for p in parameters]
    steps: list[Tensor] = [torch.zeros((), device=p.device) for p in values]
    first, second = ([torch.zeros_like(p, requires_grad=False) for p in values] for _ in range(2))
    return Group(rate, weight_decay, names, list(parameters), values, first, second, steps)
