"""Hugging Face's weight names and layouts to ours and back, by a family's table."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fledge.errors import CheckpointError
from fledge.model.config import ModelConfig
from fledge.model.families.family import Family, Weight


def expanded(family: Family, config: ModelConfig) -> Iterator[Weight]:
    """The name table with `{i}` filled in for every layer."""
    for weight in family.weights(config):
        if "{i}" not in weight.theirs:
            yield weight
            continue
        for index in range(len(config.stack.layers)):
            ours = tuple(name.replace("{i}", str(index)) for name in weight.ours)
            yield Weight(weight.theirs.replace("{i}", str(index)), ours, weight.how, weight.size)


def their_shape(weight: Weight, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape their tensor must have, from the shapes of our parameters."""
    if weight.how == "zeros":
        return (weight.size,)
    parts = [shapes[name] for name in weight.ours]
    rows = sum(part[0] for part in parts)
    stacked = (rows, *parts[0][1:])
    return stacked[::-1] if weight.how in ("transposed", "fused_transposed") else stacked


def to_ours(weight: Weight, tensor: Tensor, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Our parameters from their tensor. Raises CheckpointError if a tensor that must be zero is not."""
    if weight.how == "zeros":
        if bool(tensor.count_nonzero()):
            raise CheckpointError(f"{weight.theirs}: expected zeros (the config has no biases), got other values")
        return {}
    if weight.how in ("transposed", "fused_transposed"):
        tensor = tensor.t() if tensor.dim() == 2 else tensor
    pieces = tensor.split([shapes[name][0] for name in weight.ours])
    whole = len(weight.ours) == 1
    return {
        name: piece.contiguous() if whole else piece.clone(memory_format=torch.contiguous_format)
        for name, piece in zip(weight.ours, pieces, strict=True)
    }


def to_theirs(weight: Weight, parameters: dict[str, Tensor]) -> Tensor:
    """Their tensor from our parameters."""
    if weight.how == "zeros":
        return torch.zeros(weight.size, dtype=next(iter(parameters.values())).dtype)
    parts = [parameters[name].detach() for name in weight.ours]
    tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
    if weight.how in ("transposed", "fused_transposed") and tensor.dim() == 2:
        tensor = tensor.t()
    return tensor.contiguous()
