"""GLM-4 (2025 release of arXiv 2406.12793): LLaMA with norms on both sides of each sublayer, half of each head's
channels turned in pairs, gate and up in one product."""

from __future__ import annotations

from typing import Any

from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import (
    decoder_config,
    faithful,
    from_shape,
    in_pairs,
    read_sizes,
    rope_of,
    sizes_json,
    weight_table,
)
from fledge.model.families.experts import ATTENTION
from fledge.model.families.family import Family, Weight, flag, number
from fledge.model.families.rotary import longest, read_rope, rope_json
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, Heads, LayerConfig, Norm, StackConfig

DEFAULT = {
    "hidden_size": 4096, "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128,
    "intermediate_size": 13696, "max_position_embeddings": 131072, "vocab_size": 151552,
}  # fmt: skip
LINEARS = {
    **ATTENTION,
    "mlp.gate_up_proj": ("ffn.inward.gate", "ffn.inward.up"),
    "mlp.down_proj": ("ffn.down",),
}
NORMS = {
    "input_layernorm": "attention_norms.before",
    "post_self_attn_layernorm": "attention_norms.after",
    "post_attention_layernorm": "ffn_norms.before",
    "post_mlp_layernorm": "ffn_norms.after",
}


def read(raw: dict[str, Any]) -> ModelConfig:
    sizes = read_sizes(raw, DEFAULT)
    rope = read_rope(raw, sizes.channels, sizes.context, share=0.5)
    heads = Heads(sizes.heads, sizes.kv_heads, sizes.channels, flag(raw, "attention_bias", True))
    layer = LayerConfig(heads, Dense(sizes.hidden, sizes.activation, True), rope)
    norm = Norm("rms", number(raw, "rms_norm_eps", 1.5625e-7))
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, norm, ("before", "after"))
    return decoder_config(raw, "glm4", sizes, stack, longest(rope, sizes.context))


def write(config: ModelConfig) -> dict[str, Any]:
    mixer, rope = config.stack.layers[0].mixer, rope_of(config, "glm4")
    return {
        **sizes_json(config),
        "rms_norm_eps": config.stack.norm.eps,
        "attention_bias": mixer.qkv_bias,
        **rope_json(rope, mixer.head_channels, share=True),
    }


def weights(config: ModelConfig) -> list[Weight]:
    return in_pairs(weight_table(config, LINEARS, NORMS), config)


def preset(width: int, hidden: int, layers: int, heads: int, kv_heads: int, bias: bool | None = None) -> ShapeConfig:
    return ShapeConfig(
        "glm4", width=width, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, head_channels=128,
        context_tokens=32768, vocab_size=151552, norm_eps=1e-5, bias=bias,
    )  # fmt: skip


FAMILY = Family(
    name="glm4",
    model_type="glm4",
    architecture="Glm4ForCausalLM",
    tasks=decoder_tasks("Glm4ForCausalLM", ("sequence", "token")),
    build=from_shape("glm4", read, ("rope_theta", "rope_scaling", "rope_share"), ("attention_bias",)),
    read=read,
    write=faithful("glm4", read, write),
    weights=weights,
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    presets={"glm-4-9b-0414": preset(4096, 13696, 40, 32, 2), "glm-4-32b-0414": preset(6144, 23040, 61, 48, 8, False)},
)
