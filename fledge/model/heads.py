"""Task heads on hidden states. B rows, T tokens, D width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fledge.batch import Layout, Packed, Padded, Tokens
from fledge.errors import ConfigError
from fledge.model.config import HeadConfig, Transform
from fledge.nn.config import Norm
from fledge.nn.feedforward import activate
from fledge.nn.linear import Linear
from fledge.nn.norm import make_norm


class OutputTransform(nn.Module):
    """norm(activation(W x + b)): [..., D] -> [..., E]."""

    def __init__(self, inputs: int, outputs: int, config: Transform):
        super().__init__()
        self.activation = config.activation
        self.dense = Linear(inputs, outputs, config.bias)
        self.norm = make_norm(config.norm, outputs) if config.norm is not None else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense(x)
        x = x if self.activation is None else activate(x, self.activation)
        return x if self.norm is None else self.norm(x)


class TaskHead(nn.Module):
    """Hidden states [B, T, D] -> [B, labels], or [B, T, labels] where each token has its own answer."""

    def __init__(self, width: int, config: HeadConfig, norm: Norm):
        super().__init__()
        self.config = config
        self.dense = Linear(width, width, config.hidden_bias) if config.hidden else None
        self.norm = make_norm(norm, width) if config.norm else None
        self.out = Linear(width, config.labels, config.bias) if config.labels else None

    def forward(self, hidden: Tensor, tokens: Tokens, layout: Layout, eos_id: int | None = None) -> Tensor:
        x = taken(hidden, tokens, layout, self.config.take, eos_id)
        if self.dense is not None:
            x = activate(self.dense(x), self.config.activation)
        x = x if self.norm is None else self.norm(x)
        return x if self.out is None else self.out(x)


def taken(hidden: Tensor, tokens: Tokens, layout: Layout, take: str, eos_id: int | None) -> Tensor:
    """The states a head reads. Rows must be one document each unless each token is read."""
    if take == "each":
        return hidden
    if isinstance(layout, Packed):
        raise ConfigError("head: expected one document a row, got packed rows; a head on whole documents needs rows")
    if take == "first":
        return hidden[:, 0]
    n_rows, n_tokens = tokens.ids.shape
    lengths = torch.tensor(layout.lengths if isinstance(layout, Padded) else (n_tokens,) * n_rows, device=hidden.device)
    if take == "mean":
        there = (tokens.doc >= 0)[..., None].to(hidden.dtype)
        return (hidden * there).sum(1) / there.sum(1).clamp(min=1)
    last = lengths - 1
    if take == "eos":
        if eos_id is None:
            raise ConfigError("head: expected a model with an eos id, got none; set special_ids.eos")
        places = torch.arange(n_tokens, device=hidden.device)
        last = torch.where(tokens.ids == eos_id, places, -1).amax(1)
        if bool((last < 0).any()):
            raise ConfigError("head: expected an end-of-document token in every row, found a row without")
    return hidden[torch.arange(n_rows, device=hidden.device), last.clamp(min=0)]
