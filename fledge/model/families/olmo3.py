"""OLMo 3 (2025): OLMo 2 with a window in three of four layers, whose rotary frequencies are never scaled."""

from __future__ import annotations

from typing import Any

from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families import olmo2
from fledge.model.families.decoder import (
    FULL,
    SLIDING,
    decoder_config,
    faithful,
    from_shape,
    read_sizes,
    read_window,
    read_windows,
    rope_of,
    sizes_json,
    types_json,
    window_json,
)
from fledge.model.families.family import Family, flag, number, refuse
from fledge.model.families.gemma3 import ropes, ropes_json
from fledge.model.families.rotary import longest
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, Heads, LayerConfig, Norm, StackConfig

THETA = 500000.0
WINDOW = 4096
EVERY = 4


def read(raw: dict[str, Any]) -> ModelConfig:
    sizes = read_sizes(raw, olmo2.DEFAULT)
    bias, window = flag(raw, "attention_bias", False), read_window(raw, WINDOW)
    windowed = read_windows(raw, sizes.layers, window, lambda index: (index + 1) % EVERY != 0)
    if raw.get("rope_parameters") is None:
        why = "transformers 4 turns all layers by it, 5 those without a window alone; state rope_parameters"
        refuse(raw, "rope_theta", (None, THETA), why)
    whole, local = ropes(raw, sizes.channels, sizes.context, (THETA, THETA), "rope_theta")
    heads = Heads(sizes.heads, sizes.kv_heads, sizes.channels, bias, bias, qk_norm="whole")
    dense = Dense(sizes.hidden, sizes.activation, True)
    pair = {True: LayerConfig(heads, dense, local, window), False: LayerConfig(heads, dense, whole)}
    norm = Norm("rms", number(raw, "rms_norm_eps", 1e-5))
    layers = tuple(pair[slides] for slides in windowed)
    stack = StackConfig(sizes.width, layers, norm, ("after",), final_norm=True)
    return decoder_config(raw, "olmo3", sizes, stack, longest(whole, sizes.context))


def write(config: ModelConfig) -> dict[str, Any]:
    """Two bases stand in rope_parameters alone: transformers 4 has one for all layers."""
    theta = rope_of(config, "olmo3").theta
    ropes = ropes_json(config, (theta, theta))
    if len({group["rope_theta"] for group in ropes["rope_parameters"].values()}) > 1:
        del ropes["rope_theta"]
    return {
        **sizes_json(config),
        "rms_norm_eps": config.stack.norm.eps,
        "attention_bias": config.stack.layers[0].mixer.qkv_bias,
        "sliding_window": window_json(config, WINDOW),
        "layer_types": types_json(config),
        **ropes,
    }


def extra(shape: ShapeConfig) -> dict[str, Any]:
    raw: dict[str, Any] = {"sliding_window": shape.window} if shape.window else {}
    if shape.window_every:
        every = range(min(shape.layers, 1 << 16))
        raw["layer_types"] = [SLIDING if (index + 1) % shape.window_every else FULL for index in every]
    if shape.rope_theta:
        raw["rope_parameters"] = {kind: {"rope_theta": shape.rope_theta} for kind in (FULL, SLIDING)}
    return raw


def preset(width: int, hidden: int, layers: int, heads: int, kv_heads: int) -> ShapeConfig:
    return ShapeConfig(
        "olmo3", width=width, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, context_tokens=8192,
        vocab_size=100278, norm_eps=1e-6,
    )  # fmt: skip


FAMILY = Family(
    name="olmo3",
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    tasks=decoder_tasks("Olmo3ForCausalLM", ("sequence",)),
    build=from_shape(
        "olmo3", read, ("rope_theta", "rope_scaling", "window", "window_every"), ("attention_bias",), extra=extra,
        eps=1e-6, stretches=False,
    ),
    read=read,
    write=faithful("olmo3", read, write),
    weights=olmo2.weights,
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    presets={"olmo-3-7b": preset(4096, 11008, 32, 32, 32), "olmo-3-32b": preset(5120, 27648, 64, 40, 8)},
)  # fmt: skip
