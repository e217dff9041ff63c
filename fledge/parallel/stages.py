"""Blocks shared out over the stages of a pipe. The first stage embeds, the last has the last norm and the output. A
function on a built model: its names and its config stay.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fledge.model.transformer import Transformer
from fledge.nn.block import Stack
from fledge.parallel.mesh import Line


class Elsewhere(nn.Module):
    """Stands where another stage has a module; passes on what it is given."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.register_buffer("weight", torch.empty(0, device=device), persistent=False)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x


def layers_of(stage: int, n_stages: int, n_layers: int) -> range:
    """The layers of a stage: equal shares, the first stages one more where it doesn't come out even."""
    base, rest = divmod(n_layers, n_stages)
    begin = stage * base + min(stage, rest)
    return range(begin, begin + base + (stage < rest))


def keep_stage(model: Transformer, stack: Stack, line: Line, tied: bool) -> None:
    config, elsewhere = stack.config, Elsewhere(model.embedding.weight.device)
    first, last = line.index == 0, line.index == line.size - 1
    layers = layers_of(line.index, line.size, len(config.layers))
    blocks = config.block_of_layer[layers.start : layers.stop]
    for block in set(config.block_of_layer) - set(blocks):
        stack.layers[block] = elsewhere
    stack.config = replace(config, layers=config.layers[layers.start : layers.stop], shared=tuple(blocks))
    if not first:
        stack.inputs, stack.conv = elsewhere, None  # type: ignore[assignment]
        if not (last and tied):
            model.embedding = elsewhere  # type: ignore[assignment]
    if not last:
        stack.norm = model.output = model.output_bias = model.transform = None
        model.heads = nn.ModuleDict()
