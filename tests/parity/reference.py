"""What the parity tests share: tiny models of transformers with every parameter random, ids, and how near is equal."""

from __future__ import annotations

import torch
import transformers

VOCAB = 101


def randomised(model: transformers.PreTrainedModel, std: float = 0.3) -> transformers.PreTrainedModel:
    """`model` for inference with every parameter drawn from a normal distribution: a weight that is not read shows."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, std, generator=generator)
    return model.eval()


def some_ids(rows: int = 3, length: int = 40, low: int = 3, high: int = VOCAB) -> torch.Tensor:
    return torch.randint(low, high, (rows, length), generator=torch.Generator().manual_seed(3))


def limit(expected: torch.Tensor) -> float:
    """The largest difference that counts as equal in float32."""
    return 1e-5 * max(1.0, float(expected.detach().abs().max()))


def mask_of(lengths: tuple[int, ...], length: int) -> torch.Tensor:
    """transformers' attention mask [B, T] of right-padded rows."""
    return torch.tensor([[1] * n + [0] * (length - n) for n in lengths])
