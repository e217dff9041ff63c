"""PaLM (Chowdhery et al. 2022, arXiv 2204.02311) for counting and training: attention and a gated feed-forward side by
side behind one LayerNorm, multi-query heads of 256 channels, no biases, tied output. No folder format exists for it."""

from __future__ import annotations

from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import only_fields
from fledge.model.families.family import Family, Weight, needed
from fledge.nn.config import Dense, Heads, LayerConfig, Norm, Rope, StackConfig


def build(shape: ShapeConfig) -> ModelConfig:
    needed(shape, "width", "layers", "heads", "context_tokens", "vocab_size")
    only_fields(shape, "palm", ("rope_theta",))
    if shape.bias or shape.tie is False:
        raise ConfigError("model.bias, model.tie: expected none and true, as PaLM has them; unset both")
    heads = Heads(shape.heads, shape.kv_heads or 1, shape.head_channels or 256)
    ffn = Dense(shape.hidden or 4 * shape.width, shape.activation or "silu", True)
    layer = LayerConfig(heads, ffn, Rope(shape.rope_theta or 10000.0))
    stack = StackConfig(
        shape.width,
        (layer,) * shape.layers,
        Norm("layer", shape.norm_eps or 1e-6),
        dropout=shape.dropout,
        parallel="one_norm",
    )
    return ModelConfig(
        family="palm",
        vocab_size=shape.vocab_size,
        context_tokens=shape.context_tokens,
        decoder=stack,
        tie=True,
        logit_scale=shape.width**-0.5,  # the paper's §2: the embedding is the output matrix, of unit variance
        init=shape.init,
    )


def read(raw: dict[str, Any]) -> ModelConfig:
    raise ConfigError("config.json: model_type: PaLM has no folder format (its weights were never published)")


def write(config: ModelConfig) -> dict[str, Any]:
    raise ConfigError(
        "model.family: palm can be counted but not saved: no folder format exists for it; train family llama, or "
        "gpt_neox for parallel blocks"
    )


def weights(config: ModelConfig) -> list[Weight]:
    return []


def preset(width: int, layers: int, heads: int) -> ShapeConfig:
    return ShapeConfig(
        "palm", width=width, layers=layers, heads=heads, kv_heads=1, head_channels=256, context_tokens=2048,
        vocab_size=256000,
    )  # fmt: skip


FAMILY = Family(
    name="palm",
    model_type="palm",
    architecture="",
    build=build,
    read=read,
    write=write,
    weights=weights,
    presets={
        "palm-8b": preset(4096, 32, 16),
        "palm-62b": preset(8192, 64, 32),
        "palm-540b": preset(18432, 118, 48),
    },
)
