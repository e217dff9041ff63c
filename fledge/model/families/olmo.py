"""OLMo 1 (Groeneveld et al. 2024, arXiv 2402.00838): LLaMA with LayerNorms that have neither weight nor bias; in OLMo
1.7 queries, keys and values are cut off."""

from __future__ import annotations

from typing import Any

from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families import olmo2
from fledge.model.families.decoder import (
    decoder_config,
    faithful,
    from_shape,
    read_clip,
    read_sizes,
    rope_of,
    sizes_json,
    weight_table,
)
from fledge.model.families.family import Family, flag
from fledge.model.families.rotary import longest, read_rope, rope_json
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, Heads, LayerConfig, Norm, StackConfig

NORM = Norm("layer", 1e-5, weight=False)


def read(raw: dict[str, Any]) -> ModelConfig:
    sizes = read_sizes(raw, olmo2.DEFAULT)
    bias = flag(raw, "attention_bias", False)
    rope = read_rope(raw, sizes.channels, sizes.context)
    heads = Heads(sizes.heads, sizes.kv_heads, sizes.channels, bias, bias, clip=read_clip(raw))
    layer = LayerConfig(heads, Dense(sizes.hidden, sizes.activation, True), rope)
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, NORM)
    return decoder_config(raw, "olmo", sizes, stack, longest(rope, sizes.context))


def write(config: ModelConfig) -> dict[str, Any]:
    layer, rope = config.stack.layers[0], rope_of(config, "olmo")
    return {
        **sizes_json(config),
        "attention_bias": layer.mixer.qkv_bias,
        "clip_qkv": layer.mixer.clip,
        **rope_json(rope, layer.mixer.head_channels),
    }


def preset(width: int, hidden: int, layers: int, heads: int, tie: bool) -> ShapeConfig:
    return ShapeConfig(
        "olmo", width=width, hidden=hidden, layers=layers, heads=heads, context_tokens=2048, vocab_size=50304, tie=tie
    )


FAMILY = Family(
    name="olmo",
    model_type="olmo",
    architecture="OlmoForCausalLM",
    tasks=decoder_tasks("OlmoForCausalLM", ("sequence",)),
    build=from_shape("olmo", read, bias_keys=("attention_bias",), eps_key="layer_norm_eps"),
    read=read,
    write=faithful("olmo", read, write),
    weights=weight_table,
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    presets={
        "olmo-1b": preset(2048, 8192, 16, 16, True),
        "olmo-7b": preset(4096, 11008, 32, 32, False),
    },
)
