"""What every optimizer shares: it owns parameters, clips and forgets their gradients, and has a state by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fledge.errors import CheckpointError
from fledge.optim.part import local


class Optimizer(ABC):
    """Moves parameters by their gradients; the rate comes with every step."""

    @property
    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """Every parameter it moves."""

    @abstractmethod
    def step(self, rate: float) -> None:
        """One update at learning rate `rate`. Every parameter must have a gradient."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What it remembers, by kind and parameter (`exp_avg/NAME`)."""

    @abstractmethod
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave. Raises CheckpointError for the state of another optimizer or model."""

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def clip(self, limit: float, norm_of: Callable[[list[Tensor]], float] | None = None) -> float:
        """Scale the gradients in place to a global L2 norm of at most `limit` (0: leave them); gives the norm before.
        `norm_of`: the norm over all processes, of the parameters that this one moves, where several share a model.

        A parameter without a gradient gets zeros: its part of the model saw no data in this batch. A norm that is not
        finite leaves the gradients untouched: the caller must not step.
        """
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = (norm_of or norm_of_all)(self.parameters)
        found = gradients(self.parameters)
        if limit and limit < norm < float("inf"):
            torch._foreach_mul_(found, limit / (norm + 1e-6))
        return norm


def norm_of_all(parameters: list[Tensor]) -> float:
    """The L2 norm of all gradients together."""
    norms = torch._foreach_norm(gradients(parameters))
    return torch.linalg.vector_norm(torch.stack(norms)).item()


def gradients(parameters: list[Tensor]) -> list[Tensor]:
    """The gradients that there are, of a sharded parameter this process's part."""
    return [local(p.grad) for p in parameters if p.grad is not None]


def put_back(into: Tensor, tensors: Mapping[str, Tensor], key: str) -> None:
    """Copy the saved tensor `key` into `into`. Raises CheckpointError if it is missing or of another shape."""
    saved = tensors.get(key)
    if saved is None or saved.numel() != into.numel():
        got = "none" if saved is None else f"{list(saved.shape)}"
        raise CheckpointError(
            f"optimizer state: expected {key} of {list(into.shape)}, got {got}; "
            "the checkpoint is another optimizer's, go on with its settings or start in another run.dir"
        )
    into.copy_(saved.reshape(into.shape))
