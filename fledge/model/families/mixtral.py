"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): Mistral with a mixture of experts for its feed-forward."""

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
    window_json,
)
from fledge.model.families.experts import experts_in_shape, experts_json, read_experts, weights_apart, weights_stacked
from fledge.model.families.family import Family, Weight, number, refuse
from fledge.model.families.rotary import longest, read_rope, rope_json
from fledge.nn.config import Dense, Heads, LayerConfig, Norm, StackConfig

EXPERTS = "num_local_experts"
DEFAULT = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "vocab_size": 32000, "num_local_experts": 8,
    "num_experts_per_tok": 2,
}  # fmt: skip


def read(raw: dict[str, Any]) -> ModelConfig:
    refuse(raw, "router_jitter_noise", (0, 0.0, None), "a router without noise")
    sizes = read_sizes(raw, DEFAULT)
    rope = read_rope(raw, sizes.channels, sizes.context, 1000000.0)
    ffn = read_experts(raw, EXPERTS, DEFAULT, Dense(sizes.hidden, sizes.activation, True), True, 0.001)
    heads = Heads(sizes.heads, sizes.kv_heads, sizes.channels)
    layer = LayerConfig(heads, ffn, rope, read_window(raw, None))
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, Norm("rms", number(raw, "rms_norm_eps", 1e-5)))
    return decoder_config(raw, "mixtral", sizes, stack, longest(rope, sizes.context))


def write(config: ModelConfig) -> dict[str, Any]:
    layer, rope = config.stack.layers[0], rope_of(config, "mixtral")
    return {
        **sizes_json(config),
        "rms_norm_eps": config.stack.norm.eps,
        "sliding_window": window_json(config),
        **experts_json(config, EXPERTS),
        **rope_json(rope, layer.mixer.head_channels),
    }


def weights(config: ModelConfig) -> list[Weight]:
    parts = {"w1": "inward.gate", "w3": "inward.up", "w2": "down"}
    return weights_apart(config, "model.layers.{i}.block_sparse_moe.", parts)


def extra(shape: ShapeConfig) -> dict[str, Any]:
    return {"sliding_window": shape.window or None, **experts_in_shape(shape, EXPERTS)}


def preset(width: int, hidden: int, layers: int, heads: int, context: int, vocab_size: int) -> ShapeConfig:
    return ShapeConfig(
        "mixtral", width=width, hidden=hidden, layers=layers, heads=heads, kv_heads=8, context_tokens=context,
        vocab_size=vocab_size, rope_theta=1000000.0, experts=8, experts_per_token=2,
    )  # fmt: skip


FAMILY = Family(
    name="mixtral",
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    build=from_shape(
        "mixtral", read, ("rope_theta", "rope_scaling", "window", "experts", "experts_per_token"), extra=extra
    ),
    read=read,
    write=faithful("mixtral", read, write),
    weights=weights,
    spellings=(weights_stacked,),
    aliases={EXPERTS: "num_experts"},
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    presets={
        "mixtral-8x7b": preset(4096, 14336, 32, 32, 32768, 32000),
        "mixtral-8x22b": preset(6144, 16384, 56, 48, 65536, 32768),
    },
)
