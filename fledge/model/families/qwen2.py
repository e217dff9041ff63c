"""Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv 2407.10671): LLaMA with biases on queries, keys and values."""

from __future__ import annotations

from typing import Any

from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import (
    decoder_config,
    faithful,
    from_shape,
    read_sizes,
    read_window,
    read_windows,
    rope_of,
    sizes_json,
    types_json,
    weight_table,
    window_json,
)
from fledge.model.families.family import Family, flag, integer, number
from fledge.model.families.rotary import longest, read_rope, rope_json
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, Heads, LayerConfig, Norm, StackConfig

DEFAULT = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "intermediate_size": 22016, "max_position_embeddings": 32768, "vocab_size": 151936,
}  # fmt: skip


def read(raw: dict[str, Any]) -> ModelConfig:
    sizes = read_sizes(raw, DEFAULT)
    heads = Heads(sizes.heads, sizes.kv_heads, sizes.channels, qkv_bias=True)
    return with_heads(raw, "qwen2", sizes, heads)


def with_heads(raw: dict[str, Any], family: str, sizes: Any, heads: Heads) -> ModelConfig:
    """Qwen's layers, the upper ones with a window where config.json asks for it."""
    rope = read_rope(raw, sizes.channels, sizes.context)
    window = read_window(raw, 4096) if flag(raw, "use_sliding_window", False) else None
    full = integer(raw, "max_window_layers", 28)
    windowed = read_windows(raw, sizes.layers, window, lambda index: window is not None and index >= full)
    dense = Dense(sizes.hidden, sizes.activation, True)
    layers = tuple(LayerConfig(heads, dense, rope, window if slides else None) for slides in windowed)
    stack = StackConfig(sizes.width, layers, Norm("rms", number(raw, "rms_norm_eps", 1e-6)))
    return decoder_config(raw, family, sizes, stack, longest(rope, sizes.context))


def write(config: ModelConfig) -> dict[str, Any]:
    layers, rope, window = config.stack.layers, rope_of(config, "qwen2"), window_json(config)
    return {
        **sizes_json(config),
        "rms_norm_eps": config.stack.norm.eps,
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": next((index for index, layer in enumerate(layers) if layer.window), len(layers)),
        "layer_types": types_json(config),
        **rope_json(rope, layers[0].mixer.head_channels),
    }


def extra(shape: ShapeConfig) -> dict[str, Any]:
    """A window, in all layers."""
    return {"use_sliding_window": bool(shape.window), "sliding_window": shape.window or None, "max_window_layers": 0}


TAKES = ("rope_theta", "rope_scaling", "window")


def preset(
    width: int,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    context: int,
    vocab: int = 151936,
    tie: bool = False,
) -> ShapeConfig:
    return ShapeConfig(
        "qwen2", width=width, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, context_tokens=context,
        vocab_size=vocab, tie=tie, rope_theta=1000000.0, norm_eps=1e-6 if tie or hidden == 18944 else 1e-5,
    )  # fmt: skip


FAMILY = Family(
    name="qwen2",
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    tasks=decoder_tasks("Qwen2ForCausalLM", span_prefix="transformer."),
    build=from_shape("qwen2", read, TAKES, extra=extra, eps=1e-6),
    read=read,
    write=faithful("qwen2", read, write),
    weights=weight_table,
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    presets={
        "qwen2-0.5b": preset(896, 4864, 24, 14, 2, 131072, tie=True),
        "qwen2-1.5b": preset(1536, 8960, 28, 12, 2, 131072, tie=True),
        "qwen2-7b": preset(3584, 18944, 28, 28, 4, 131072, 152064),
        "qwen2-72b": preset(8192, 29568, 80, 64, 8, 131072, 152064),
        "qwen2.5-0.5b": preset(896, 4864, 24, 14, 2, 32768, tie=True),
        "qwen2.5-1.5b": preset(1536, 8960, 28, 12, 2, 131072, tie=True),
        "qwen2.5-3b": preset(2048, 11008, 36, 16, 2, 32768, tie=True),
        "qwen2.5-7b": preset(3584, 18944, 28, 28, 4, 131072, 152064),
        "qwen2.5-14b": preset(5120, 13824, 48, 40, 8, 131072, 152064),
        "qwen2.5-32b": preset(5120, 27648, 64, 40, 8, 131072, 152064),
        "qwen2.5-72b": preset(8192, 29568, 80, 64, 8, 131072, 152064),
    },
)
