"""Mistral 7B (Jiang et al. 2023, arXiv 2310.06825): LLaMA with a sliding window."""

from __future__ import annotations

from typing import Any

from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import (
    decoder_config,
    faithful,
    from_shape,
    read_sizes,
    read_window,
    rope_of,
    sizes_json,
    weight_table,
    window_json,
)
from fledge.model.families.family import Family, number, refuse
from fledge.model.families.rotary import longest, read_rope, rope_json
from fledge.nn.config import Dense, Heads, LayerConfig, Norm, StackConfig

DEFAULT = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "vocab_size": 32000,
}  # fmt: skip


def read(raw: dict[str, Any]) -> ModelConfig:
    refuse(raw, "layer_types", (None,), "every layer of a Mistral has the window")
    sizes = read_sizes(raw, DEFAULT)
    rope = read_rope(raw, sizes.channels, sizes.context)
    layer = LayerConfig(
        Heads(sizes.heads, sizes.kv_heads, sizes.channels),
        Dense(sizes.hidden, sizes.activation, True),
        rope,
        read_window(raw, 4096),
    )
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, Norm("rms", number(raw, "rms_norm_eps", 1e-6)))
    return decoder_config(raw, "mistral", sizes, stack, longest(rope, sizes.context))


def write(config: ModelConfig) -> dict[str, Any]:
    layer, rope = config.stack.layers[0], rope_of(config, "mistral")
    return {
        **sizes_json(config),
        "rms_norm_eps": config.stack.norm.eps,
        "sliding_window": window_json(config),
        **rope_json(rope, layer.mixer.head_channels),
    }


def extra(shape: ShapeConfig) -> dict[str, Any]:
    return {"sliding_window": shape.window or None}


def preset(vocab_size: int, window: int, rope_theta: float) -> ShapeConfig:
    return ShapeConfig(
        "mistral", width=4096, hidden=14336, layers=32, heads=32, kv_heads=8, context_tokens=32768,
        vocab_size=vocab_size, window=window, rope_theta=rope_theta,
    )  # fmt: skip


FAMILY = Family(
    name="mistral",
    model_type="mistral",
    architecture="MistralForCausalLM",
    build=from_shape("mistral", read, ("rope_theta", "rope_scaling", "window"), extra=extra),
    read=read,
    write=faithful("mistral", read, write),
    weights=weight_table,
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    presets={
        "mistral-7b-v0.1": preset(32000, 4096, 10000.0),
        "mistral-7b-v0.2": preset(32000, 0, 1000000.0),
        "mistral-7b-v0.3": preset(32768, 0, 1000000.0),
    },
)
