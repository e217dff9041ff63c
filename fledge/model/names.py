"""Hugging Face's weight names and layouts to ours and back, by a family's table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fledge.errors import CheckpointError
from fledge.model.config import ModelConfig
from fledge.model.families.family import Family, Weight
from fledge.model.families.task import task_of_config
from fledge.model.transformer import build


def expanded(family: Family, config: ModelConfig) -> Iterator[Weight]:
    """The name table with `{i}` and `{e}` filled in for every block and expert, and the rows of the heads."""
    if family.own_names:
        for name, _ in build(config).named_parameters():
            yield Weight(name, (name,))
        return
    for weight in rows_of(family, config):
        if "{i}" not in weight.theirs:
            yield weight
            continue
        stack = config.stacks[weight.stack] if weight.stack else config.stack
        for index in range(stack.n_blocks) if weight.blocks is None else weight.blocks:
            for expert in range(max(1, weight.experts)):
                yield filled(weight, index, expert)


def rows_of(family: Family, config: ModelConfig) -> list[Weight]:
    """The family's rows, those of the output left out of a model without one, and a row for each weight of a head."""
    table = [row for row in family.weights(config) if config.lm or not reads_output(row)]
    if not config.heads:
        return table
    heads = {head.name: head for head in task_of_config(family.all_tasks, config).heads}
    for head in config.heads:
        biased = {"dense": head.hidden_bias, "norm": config.stack.norm.bias, "out": head.bias}
        for ours, theirs in heads[head.name].modules().items():
            for end in ("weight", "bias") if biased[ours] else ("weight",):
                table.append(Weight(f"{theirs}.{end}", (f"heads.{head.name}.{ours}.{end}",)))
    return table


def reads_output(row: Weight) -> bool:
    return any(name.startswith(("output.", "output_bias", "transform.")) for name in row.ours)


def filled(weight: Weight, index: int, expert: int) -> Weight:
    def fill(name: str) -> str:
        return name.replace("{i}", str(index)).replace("{e}", str(expert))

    return replace(weight, theirs=fill(weight.theirs), ours=tuple(fill(name) for name in weight.ours))


def their_shape(weight: Weight, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape their tensor must have, from the shapes of our parameters."""
    if weight.how == "zeros":
        return (1, weight.size) if weight.row else (weight.size,)
    parts = [shapes[name] for name in weight.ours]
    rows = sum(part[0] for part in parts)
    stacked = (rows, *parts[0][1:])
    if weight.how == "stacked":
        return (weight.size, rows // weight.size, *parts[0][1:])
    return stacked[::-1] if weight.how in ("transposed", "fused_transposed") else stacked


def to_ours(weight: Weight, tensor: Tensor, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Our parameters from their tensor. Raises CheckpointError if a tensor that must be zero is not."""
    if weight.how == "zeros":
        if bool(tensor.count_nonzero()):
            raise CheckpointError(f"{weight.theirs}: expected zeros (the config has no biases), got other values")
        return {}
    if weight.how in ("transposed", "fused_transposed"):
        tensor = tensor.t() if tensor.dim() == 2 else tensor
    if weight.how == "stacked":
        tensor = tensor.flatten(0, 1)
    if weight.channels:
        tensor = rotary_pairs(tensor, weight, split=True)
    if weight.how == "interleaved":
        sizes = [shapes[name][0] // weight.heads for name in weight.ours]
        by_head = tensor.unflatten(0, (weight.heads, -1)).split(sizes, 1)
        return {name: piece.flatten(0, 1) for name, piece in zip(weight.ours, by_head, strict=True)}
    pieces = tensor.split([shapes[name][0] for name in weight.ours])
    whole = len(weight.ours) == 1
    return {
        name: piece.contiguous() if whole else piece.clone(memory_format=torch.contiguous_format)
        for name, piece in zip(weight.ours, pieces, strict=True)
    }


def to_theirs(weight: Weight, parameters: dict[str, Tensor]) -> Tensor:
    """Their tensor from our parameters."""
    if weight.how == "zeros":
        return torch.zeros((1, weight.size) if weight.row else weight.size, dtype=next(iter(parameters.values())).dtype)
    parts = [parameters[name].detach() for name in weight.ours]
    if weight.how == "interleaved":
        return torch.cat([part.unflatten(0, (weight.heads, -1)) for part in parts], 1).flatten(0, 1)
    tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
    if weight.channels:
        tensor = rotary_pairs(tensor, weight, split=False)
    if weight.how == "stacked":
        tensor = tensor.unflatten(0, (weight.size, -1))
    if weight.how in ("transposed", "fused_transposed") and tensor.dim() == 2:
        tensor = tensor.t()
    return tensor.contiguous()


def rotary_pairs(tensor: Tensor, weight: Weight, split: bool) -> Tensor:
    """Rows of each head's turned channels from pairs (c, c + 1) to (c, c + R/2), or back."""
    by_head = tensor.unflatten(0, (weight.heads, -1)).clone()
    turned = by_head[:, : weight.channels].clone()  # of one pair the regrouped channels would be themselves
    grid = (weight.channels // 2, 2) if split else (2, weight.channels // 2)
    by_head[:, : weight.channels] = turned.unflatten(1, grid).transpose(1, 2).flatten(1, 2)
    return by_head.flatten(0, 1)
