"""Gemma (2024, arXiv 2403.08295): LLaMA with a scaled embedding, norms that keep weight - 1, wide heads, GELU gates."""

from __future__ import annotations

from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import (
    decoder_config,
    faithful,
    from_shape,
    read_sizes,
    rope_of,
    sizes_json,
    weight_table,
)
from fledge.model.families.family import Family, flag, number, refuse
from fledge.model.families.rotary import longest, read_rope, rope_json
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, Heads, Inputs, LayerConfig, Norm, StackConfig

DEFAULT = {
    "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256,
    "intermediate_size": 24576, "max_position_embeddings": 8192, "vocab_size": 256000,
    "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip


def read(raw: dict[str, Any]) -> ModelConfig:
    refuse(raw, "use_bidirectional_attention", (False, None), "a decoder sees the past alone")
    sizes = read_sizes({**raw, "hidden_act": activation_of(raw)}, DEFAULT)
    bias = flag(raw, "attention_bias", False)
    rope = read_rope(raw, sizes.channels, sizes.context)
    layer = LayerConfig(
        Heads(sizes.heads, sizes.kv_heads, sizes.channels, bias, bias),
        Dense(sizes.hidden, sizes.activation, True),
        rope,
    )
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, norm(raw), inputs=scaled(sizes.width))
    return decoder_config(raw, "gemma", sizes, stack, longest(rope, sizes.context), tie=True)


def activation_of(raw: dict[str, Any]) -> Any:
    """transformers 4 goes by hidden_activation, 5 by hidden_act; published ones say "gelu" and mean the tanh form."""
    default = "gelu_pytorch_tanh"
    names = [raw[key] for key in ("hidden_activation", "hidden_act") if raw.get(key) is not None] or [default]
    meant = [default if name == "gelu" else name for name in names]
    if meant[0] != meant[-1]:
        raise ConfigError(
            f"config.json: hidden_activation and hidden_act: expected one activation, got {str(names)[:60]}; remove one"
        )
    return meant[0]


def norm(raw: dict[str, Any]) -> Norm:
    return Norm("rms", number(raw, "rms_norm_eps", 1e-6), offset=1.0)


def scaled(width: int) -> Inputs:
    return Inputs(scale=width**0.5)


def write(config: ModelConfig) -> dict[str, Any]:
    layer, rope = config.stack.layers[0], rope_of(config, "gemma")
    sizes = sizes_json(config)
    return {
        **sizes,
        "hidden_activation": sizes["hidden_act"],
        "rms_norm_eps": config.stack.norm.eps,
        "attention_bias": layer.mixer.qkv_bias,
        **rope_json(rope, layer.mixer.head_channels),
    }


def preset(width: int, hidden: int, layers: int, heads: int, kv_heads: int) -> ShapeConfig:
    return ShapeConfig(
        "gemma", width=width, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, head_channels=256,
        context_tokens=8192, vocab_size=256000, norm_eps=1e-6,
    )  # fmt: skip


FAMILY = Family(
    name="gemma",
    model_type="gemma",
    architecture="GemmaForCausalLM",
    tasks=decoder_tasks("GemmaForCausalLM", ("sequence", "token")),
    build=from_shape("gemma", read, bias_keys=("attention_bias",), eps=1e-6),
    read=read,
    write=faithful("gemma", read, write),
    weights=weight_table,
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    presets={"gemma-2b": preset(2048, 16384, 18, 8, 1), "gemma-7b": preset(3072, 24576, 28, 16, 16)},
)
