"""Memory of a training step, counted from a config: the step is run on tensors that have shapes and no data.

Exact for what tensors hold at once; what the allocator rounds up, and a kernel's own scratch, come on top.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from fledge.batch import OneDocument, one_document
from fledge.errors import ConfigError
from fledge.model.config import ModelConfig
from fledge.model.transformer import Transformer, build
from fledge.nn.live_bytes import LiveBytes

MOMENTS = 2  # AdamW keeps two numbers for each weight


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes in FP32. `activations`: what the forward pass keeps for the backward one. `peak`: the most at one time,
    above the sum by the loss's own logits and by what a block computes again, below it as activations go while
    gradients come."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


def training_memory(
    config: ModelConfig,
    rows: int,
    row_tokens: int,
    checkpoint_blocks: bool = False,
    change: Callable[[Transformer], Transformer] = lambda model: model,
) -> TrainingMemory:
    """Memory of one step of AdamW over `rows` documents of `row_tokens` tokens at once (micro_rows), on a CPU.
    `change`: what is done to the model before it is trained.

    Raises ConfigError for a length that the model doesn't take, and for mixtures of experts, whose shapes depend on
    what the router chooses.
    """
    try:
        with FakeTensorMode():
            return counted(config, rows, row_tokens, checkpoint_blocks, change)
    except (DataDependentOutputException, DynamicOutputShapeException):
        raise ConfigError(
            "rows: the memory of a mixture of experts depends on which expert each token chooses, so it can't be "
            "counted from the config; leave rows out"
        ) from None


def counted(
    config: ModelConfig,
    rows: int,
    row_tokens: int,
    checkpoint_blocks: bool,
    change: Callable[[Transformer], Transformer],
) -> TrainingMemory:
    with LiveBytes() as live:
        model = change(build(config, "cpu")).train().checkpoint_blocks(checkpoint_blocks)
        weights = live.now
        trained = [p for p in model.parameters() if p.requires_grad]
        moments = [torch.empty_like(p, requires_grad=False) for p in trained for _ in range(MOMENTS)]
        optimizer = live.now - weights
        tokens = one_document(torch.zeros(rows, row_tokens, dtype=torch.int64))
        weight = torch.ones(rows, row_tokens)
        start = live.now
        source = (tokens, OneDocument()) if config.encoder is not None and config.decoder is not None else None
        loss = model.loss_sum(tokens, OneDocument(), tokens.ids, weight, source)
        activations = live.now - start
        loss.backward()
        # gradients of maps that are computed as one are views of one storage
        storages = [p.grad.untyped_storage() for p in trained if p.grad is not None]
        gradients = sum({storage._cdata: storage.nbytes() for storage in storages}.values())
        del moments
        return TrainingMemory(weights, gradients, optimizer, activations, live.peak)
