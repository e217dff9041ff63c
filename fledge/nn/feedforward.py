"""Feed-forward layers: dense, gated, and mixtures of experts. B rows, T tokens, D width, E experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.nn.config import Activation, Dense, Ffn, Moe
from fledge.nn.linear import Joined, Linear


class FeedForward(nn.Module):
    """down(activation(up(x))), or down(activation(gate(x)) · up(x)) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, config: Dense):
        super().__init__()
        self.activation = config.activation
        self.gated, self.dropout = config.gated, 0.0
        names = ("gate", "up") if config.gated else ("up",)
        self.inward = Joined(width, dict.fromkeys(names, config.hidden), config.bias)
        self.down = Linear(config.hidden, width, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.gate(x) if self.gated else activate(self.inward(x), self.activation)
        if self.dropout and self.training:
            hidden = F.dropout(hidden, self.dropout)
        return self.down(hidden)

    def gate(self, x: Tensor) -> Tensor:
        """activation(gate(x)) · up(x), [..., H]."""
        inward = self.inward
        parted = isinstance(inward, Joined) and inward.may_part(x)
        gate, up = inward(x, apart=True) if parted else inward(x).chunk(2, -1)
        by_hand = self.activation == "silu" and torch.is_grad_enabled() and gate.requires_grad
        if by_hand and not torch.compiler.is_compiling():
            return GatedSilu.apply(gate, up)
        hidden = activate(gate, self.activation)
        return hidden * up if hidden.requires_grad else hidden.mul_(up)


class GatedSilu(torch.autograd.Function):
    """silu(gate) · up: [..., H] each -> [..., H].

    Written out so that the gradients of both stand side by side in memory, where autograd would glue two tensors.
    """

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        grad_gate, grad_up = gate.new_empty(*gate.shape[:-1], 2 * gate.shape[-1]).chunk(2, -1)
        torch.mul(grad, F.silu(gate), out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return grad_gate, grad_up


class Experts(nn.Module):
    """Each token through the `top_k` experts that its router scores highest, weighted by their softmax.

    Dropless: every expert takes all tokens that chose it. `routed`, after a forward pass in training, is what the
    router gave and chose in that pass: probabilities [B·T, E] and experts [B·T, top_k] (see `load_balance`).
    """

    def __init__(self, width: int, config: Moe):
        super().__init__()
        self.config = config
        self.router = Linear(width, config.n_experts)
        self.experts = nn.ModuleList(FeedForward(width, config.expert) for _ in range(config.n_experts))
        self.routed: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        probabilities = torch.softmax(self.router(flat).float(), -1)
        weights, chosen = probabilities.topk(self.config.top_k, -1)
        if self.config.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = (chosen == number).nonzero(as_tuple=True)
            if token.numel():
                part = expert(flat[token]) * weights[token, place, None].to(flat.dtype)
                out = out.index_add(0, token, part)
        self.routed = (probabilities, chosen) if self.training and self.config.balance else None
        return out.view(x.shape)


def load_balance(layer: Experts, there: Tensor | None = None) -> Tensor:
    """The load-balancing loss of a layer's last pass in training: E · Σ share of choices · mean probability, 1 when the
    experts are used evenly. `there` [B, T]: which tokens exist. Raises TypeError if there was no such pass.
    Source: Fedus et al. 2021 (arXiv 2101.03961), eq. 4-6, with shares of all top_k choices."""
    if layer.routed is None:
        raise TypeError("load_balance: expected a pass in training of a layer with balance above 0, got none")
    probabilities, chosen = layer.routed
    weight = torch.ones_like(probabilities[:, 0]) if there is None else there.flatten().to(probabilities.dtype)
    weight = weight / weight.sum().clamp(min=1)
    used = F.one_hot(chosen, layer.config.n_experts).to(weight.dtype).sum(1) / layer.config.top_k
    return layer.config.n_experts * ((weight @ used) * (weight @ probabilities)).sum()


def activate(x: Tensor, name: Activation) -> Tensor:
    if name == "silu":
        return F.silu(x)
    if name == "relu":
        return F.relu(x)
    if name == "relu2":
        return F.relu(x).square()
    if name == "tanh":
        return torch.tanh(x)
    if name == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


def make_ffn(width: int, config: Ffn) -> nn.Module:
    """The feed-forward module that `config` names."""
    return Experts(width, config) if isinstance(config, Moe) else FeedForward(width, config)
