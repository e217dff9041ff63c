"""Gemma 2 (2024, arXiv 2408.00118): Gemma with norms on both sides of each sublayer, bounded scores and logits, and a
window in every other layer."""

from __future__ import annotations

from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import (
    FULL,
    SLIDING,
    Sizes,
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
from fledge.model.families.family import Family, Weight, flag, number, refuse
from fledge.model.families.gemma import norm, scaled
from fledge.model.families.rotary import longest, read_rope, rope_json
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, Heads, LayerConfig, StackConfig

DEFAULT = {
    "hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "intermediate_size": 9216, "max_position_embeddings": 8192, "vocab_size": 256000,
    "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip
WINDOW = 4096
NORMS = {
    "input_layernorm": "attention_norms.before",
    "post_attention_layernorm": "attention_norms.after",
    "pre_feedforward_layernorm": "ffn_norms.before",
    "post_feedforward_layernorm": "ffn_norms.after",
}


def read(raw: dict[str, Any]) -> ModelConfig:
    sizes, heads = read_heads(raw, DEFAULT, soft=True)
    window = read_window(raw, WINDOW)
    windowed = read_windows(raw, sizes.layers, window, lambda index: index % 2 == 0)
    rope = read_rope(raw, sizes.channels, sizes.context)
    dense = Dense(sizes.hidden, sizes.activation, True)
    layers = tuple(LayerConfig(heads, dense, rope, window if slides else None) for slides in windowed)
    return assembled(raw, "gemma2", sizes, layers, longest(rope, sizes.context), 30.0)


def read_heads(raw: dict[str, Any], default: dict[str, Any], soft: bool) -> tuple[Sizes, Heads]:
    """`soft`: scores are bounded, by 50 unless config.json says otherwise; if not, heads are normalised."""
    refuse(raw, "use_bidirectional_attention", (False, None), "a decoder sees the past alone")
    sizes = read_sizes(raw, default, "hidden_activation")
    bias = flag(raw, "attention_bias", False)
    scalar = number(raw, "query_pre_attn_scalar", 256)
    if scalar <= 0:
        raise ConfigError(f"config.json: query_pre_attn_scalar: expected a number above 0, got {scalar}")
    scale = None if scalar == sizes.channels else scalar**-0.5
    cap = softcap(raw, "attn_logit_softcapping", 50.0) if soft else None
    return sizes, Heads(
        sizes.heads, sizes.kv_heads, sizes.channels, bias, bias, scale, cap, qk_norm="" if soft else "head"
    )


def softcap(raw: dict[str, Any], key: str, default: float | None) -> float | None:
    if raw.get(key, default) is None:
        return None
    cap = number(raw, key, default or 0.0)
    if cap <= 0:
        raise ConfigError(f"config.json: {key}: expected a number above 0 or null, got {cap}")
    return cap


def assembled(
    raw: dict[str, Any], family: str, sizes: Sizes, layers: tuple[LayerConfig, ...], context: int, cap: float | None
) -> ModelConfig:
    stack = StackConfig(sizes.width, layers, norm(raw), ("before", "after"), inputs=scaled(sizes.width))
    bound = softcap(raw, "final_logit_softcapping", cap)
    return decoder_config(raw, family, sizes, stack, context, tie=True, logit_softcap=bound)


def write(config: ModelConfig) -> dict[str, Any]:
    layer, rope = config.stack.layers[0], rope_of(config, "gemma2")
    return {
        **shared_json(config),
        "attn_logit_softcapping": layer.mixer.softcap,
        **rope_json(rope, layer.mixer.head_channels),
    }


def shared_json(config: ModelConfig) -> dict[str, Any]:
    mixer = config.stack.layers[0].mixer
    return {
        **sizes_json(config, "hidden_activation"),
        "rms_norm_eps": config.stack.norm.eps,
        "attention_bias": mixer.qkv_bias,
        "query_pre_attn_scalar": mixer.head_channels if mixer.scale is None else round(mixer.scale**-2),
        "sliding_window": window_json(config, WINDOW),
        "layer_types": types_json(config),
        "final_logit_softcapping": config.logit_softcap,
    }


def weights(config: ModelConfig) -> list[Weight]:
    return weight_table(config, norms=NORMS)


def extra(shape: ShapeConfig) -> dict[str, Any]:
    raw: dict[str, Any] = {"query_pre_attn_scalar": shape.score_channels or shape.head_channels or 256}
    if not shape.score_channels and not shape.head_channels:
        raw["query_pre_attn_scalar"] = shape.width // shape.heads
    if shape.window:
        raw["sliding_window"] = shape.window
    every = shape.window_every
    if every:
        raw["layer_types"] = [SLIDING if (index + 1) % every else FULL for index in range(min(shape.layers, 1 << 16))]
    return raw


TAKES = ("rope_theta", "rope_scaling", "window", "window_every", "score_channels")


def preset(
    width: int, hidden: int, layers: int, heads: int, kv_heads: int, channels: int, score_channels: int
) -> ShapeConfig:
    return ShapeConfig(
        "gemma2", width=width, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, head_channels=channels,
        context_tokens=8192, vocab_size=256000, norm_eps=1e-6, window=4096, score_channels=score_channels,
    )  # fmt: skip


FAMILY = Family(
    name="gemma2",
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    tasks=decoder_tasks("Gemma2ForCausalLM", ("sequence", "token")),
    build=from_shape(
        "gemma2", read, TAKES, ("attention_bias",), extra=extra, eps=1e-6, activation_key="hidden_activation"
    ),
    read=read,
    write=faithful("gemma2", read, write),
    weights=weights,
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    presets={
        "gemma-2-2b": preset(2304, 9216, 26, 8, 4, 256, 256),
        "gemma-2-9b": preset(3584, 14336, 42, 16, 8, 256, 256),
        "gemma-2-27b": preset(4608, 36864, 46, 32, 16, 128, 144),
    },
)
