"""OLMo 2 (2025, arXiv 2501.00656): LLaMA that normalises what sublayers give, and whole queries and keys."""

from __future__ import annotations

from typing import Any

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
from fledge.model.families.family import Family, Weight, flag, number
from fledge.model.families.rotary import longest, read_rope, rope_json
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, Heads, LayerConfig, Norm, StackConfig

DEFAULT = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008,
    "max_position_embeddings": 2048, "vocab_size": 50304,
}  # fmt: skip
NORMS = {"post_attention_layernorm": "attention_norms.after", "post_feedforward_layernorm": "ffn_norms.after"}


def read(raw: dict[str, Any]) -> ModelConfig:
    sizes = read_sizes(raw, DEFAULT)
    bias = flag(raw, "attention_bias", False)
    rope = read_rope(raw, sizes.channels, sizes.context)
    heads = Heads(sizes.heads, sizes.kv_heads, sizes.channels, bias, bias, qk_norm="whole")
    layer = LayerConfig(heads, Dense(sizes.hidden, sizes.activation, True), rope)
    norm = Norm("rms", number(raw, "rms_norm_eps", 1e-5))
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, norm, ("after",), final_norm=True)
    return decoder_config(raw, "olmo2", sizes, stack, longest(rope, sizes.context))


def write(config: ModelConfig) -> dict[str, Any]:
    layer, rope = config.stack.layers[0], rope_of(config, "olmo2")
    return {
        **sizes_json(config),
        "rms_norm_eps": config.stack.norm.eps,
        "attention_bias": layer.mixer.qkv_bias,
        **rope_json(rope, layer.mixer.head_channels),
    }


def weights(config: ModelConfig) -> list[Weight]:
    return weight_table(config, norms=NORMS)


def preset(width: int, hidden: int, layers: int, heads: int, kv_heads: int) -> ShapeConfig:
    return ShapeConfig(
        "olmo2", width=width, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, context_tokens=4096,
        vocab_size=100352, rope_theta=500000.0, norm_eps=1e-6,
    )  # fmt: skip


FAMILY = Family(
    name="olmo2",
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    tasks=decoder_tasks("Olmo2ForCausalLM", ("sequence",)),
    build=from_shape("olmo2", read, bias_keys=("attention_bias",), eps=1e-6),
    read=read,
    write=faithful("olmo2", read, write),
    weights=weights,
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    presets={
        "olmo-2-1b": preset(2048, 8192, 16, 16, 16),
        "olmo-2-7b": preset(4096, 11008, 32, 32, 32),
        "olmo-2-13b": preset(5120, 13824, 40, 40, 40),
        "olmo-2-32b": preset(5120, 27648, 64, 40, 8),
    },
)
