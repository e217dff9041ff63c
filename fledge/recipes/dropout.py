"""Dropout of a model that is to be trained: config.json does not carry it, so it is set on the model."""

from __future__ import annotations

from dataclasses import replace

from fledge.errors import ConfigError
from fledge.model.transformer import Transformer
from fledge.nn.attention import Attention, CrossAttention
from fledge.nn.block import Block, InputLayer, Stack
from fledge.nn.config import Kernelised, LowRank
from fledge.nn.feedforward import FeedForward
from fledge.train.config import DropoutConfig


def with_dropout(model: Transformer, everywhere: float, kinds: DropoutConfig) -> Transformer:
    """Set `kinds` on a model, `everywhere` where embedding and residual say nothing themselves.

    Raises ConfigError for dropout of attention weights in a model whose attention has none.
    """
    embedding = everywhere if kinds.embedding is None else kinds.embedding
    residual = everywhere if kinds.residual is None else kinds.residual
    for part in model.modules():
        if isinstance(part, InputLayer):
            part.dropout = embedding
        elif isinstance(part, Block):
            part.dropout = residual
        elif isinstance(part, Attention | CrossAttention):
            if kinds.attention and isinstance(part.config, Kernelised | LowRank):
                raise ConfigError(
                    f"train.dropout.attention: expected 0 for attention without weights for each key, got "
                    f"{kinds.attention}; leave it at 0, or take model.attention=full"
                )
            part.dropout = kinds.attention
        elif isinstance(part, FeedForward):
            part.dropout = kinds.feed_forward
        elif isinstance(part, Stack):
            part.layer_drop = kinds.layers
    config = model.config
    encoder, decoder = (stack and replace(stack, dropout=residual) for stack in (config.encoder, config.decoder))
    model.config = replace(config, encoder=encoder, decoder=decoder)
    return model
