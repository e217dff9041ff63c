"""A running mean of the weights (EMA; Polyak & Juditsky 1992), kept beside them: often the better model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fledge.optim.optimizer import put_back
from fledge.optim.part import local


class Average:
    """The mean of a model's trained parameters over updates, newer ones weighing more.

    After update t (from 1) the decay is min(decay, (1 + t) / (10 + t)), so that initial weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in trained]
        self.parameters: list[Tensor] = [local(p) for _, p in trained]
        self.means: list[Tensor] = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update `step`, counted from 1."""
        torch._foreach_lerp_(self.means, self.parameters, 1.0 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and means, in place."""
        for parameter, mean in zip(self.parameters, self.means, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While in it the model computes with the means."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def state(self) -> dict[str, Tensor]:
        """The means: `ema/NAME`."""
        return {f"ema/{name}": mean for name, mean in zip(self.names, self.means, strict=True)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave. Raises CheckpointError where it is not there."""
        for name, mean in zip(self.names, self.means, strict=True):
            put_back(mean, tensors, f"ema/{name}")
