"""AdamW with decoupled decay (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2) in two parameter groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class AdamWConfig:
    """Peak rate and the constants of Adam. `clip_norm` 0 does not clip."""

    learning_rate: float
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_norm: float = 1.0


def make_adamw(model: nn.Module, config: AdamWConfig) -> torch.optim.AdamW:
    """torch's fused AdamW; matrices decay, vectors (norms, biases) don't. Frozen parameters are left out."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for _, p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def set_rate(optimizer: torch.optim.AdamW, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(parameters: list[Tensor], limit: float) -> float:
    """Scale the gradients in place to a global L2 norm of at most `limit` (0: leave them); gives the norm before.

    A norm that is not finite leaves them untouched: the caller must not step.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    norms = torch._foreach_norm(gradients)
    norm = float(torch.linalg.vector_norm(torch.stack(norms)))
    if limit and norm > limit and norm != float("inf"):
        torch._foreach_mul_(gradients, limit / (norm + 1e-6))
    return norm


def state_tensors(optimizer: torch.optim.AdamW, model: nn.Module) -> dict[str, Tensor]:
    """The moments by our parameter names: `exp_avg/NAME`, `exp_avg_sq/NAME`, and `step/NAME` (float32, one element)."""
    names = {id(p): name for name, p in model.named_parameters()}
    tensors = {}
    for parameter, state in optimizer.state.items():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            value = state[key]
            tensors[f"{key}/{names[id(parameter)]}"] = value.reshape(1) if key == "step" else value
    return tensors


def load_state_tensors(optimizer: torch.optim.AdamW, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what `state_tensors` gave."""
    for name, parameter in model.named_parameters():
        if f"exp_avg/{name}" not in tensors:
            continue
        optimizer.state[parameter] = {
            "step": tensors[f"step/{name}"].reshape(()).clone(),
            "exp_avg": tensors[f"exp_avg/{name}"].to(parameter.device),
            "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(parameter.device),
        }
