"""Cohere's Command R and Aya 23 (2024): attention and a gated feed-forward side by side behind one LayerNorm without
bias, rotary positions in pairs, scaled logits, tied output; in Command R+ a norm of its own for each head."""

from __future__ import annotations

from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import (
    decoder_config,
    faithful,
    from_shape,
    in_pairs,
    own_norms,
    read_sizes,
    rope_of,
    sizes_json,
    weight_table,
)
from fledge.model.families.family import Family, Weight, flag, number, switched_on
from fledge.model.families.rotary import longest, read_rope, rope_json
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, Heads, LayerConfig, Norm, StackConfig

DEFAULT = {
    "hidden_size": 8192, "num_hidden_layers": 40, "num_attention_heads": 64, "intermediate_size": 22528,
    "max_position_embeddings": 8192, "vocab_size": 256000,
}  # fmt: skip


def read(raw: dict[str, Any]) -> ModelConfig:
    sizes = read_sizes(raw, DEFAULT)
    qk_norm: Any = "own" if switched_on(raw, "use_qk_norm") else ""
    bias, scale = flag(raw, "attention_bias", False), number(raw, "logit_scale", 0.0625)
    if scale <= 0:
        raise ConfigError(f"config.json: logit_scale: expected a number above 0, got {scale}")
    rope = read_rope(raw, sizes.channels, sizes.context, 500000.0)
    heads = Heads(sizes.heads, sizes.kv_heads, sizes.channels, bias, bias, qk_norm=qk_norm)
    layer = LayerConfig(heads, Dense(sizes.hidden, sizes.activation, True), rope)
    norm = Norm("layer", number(raw, "layer_norm_eps", 1e-5))
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, norm, parallel="one_norm")
    context = longest(rope, sizes.context)
    return decoder_config(raw, "cohere", sizes, stack, context, tie=True, logit_scale=scale)


def write(config: ModelConfig) -> dict[str, Any]:
    mixer, rope = config.stack.layers[0].mixer, rope_of(config, "cohere")
    return {
        **sizes_json(config),
        "layer_norm_eps": config.stack.norm.eps,
        "attention_bias": mixer.qkv_bias,
        "use_qk_norm": mixer.qk_norm == "own",
        "logit_scale": config.logit_scale,
        **rope_json(rope, mixer.head_channels),
    }


def weights(config: ModelConfig) -> list[Weight]:
    table = weight_table(config, norms={"input_layernorm": "attention_norms.before"})
    for which, (n_heads, ours) in own_norms(config).items():
        names = tuple(ours.replace("{e}", str(head)) for head in range(n_heads))
        table.append(Weight(f"model.layers.{{i}}.self_attn.{which}_norm.weight", names, "stacked", size=n_heads))
    return in_pairs(table, config)


def preset(width: int, hidden: int, layers: int, heads: int, kv_heads: int, context: int, theta: float) -> ShapeConfig:
    return ShapeConfig(
        "cohere", width=width, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, context_tokens=context,
        vocab_size=256000, rope_theta=theta,
    )  # fmt: skip


FAMILY = Family(
    name="cohere",
    model_type="cohere",
    architecture="CohereForCausalLM",
    tasks=decoder_tasks("CohereForCausalLM", ()),
    build=from_shape("cohere", read, bias_keys=("attention_bias",), eps_key="layer_norm_eps"),
    read=read,
    write=faithful("cohere", read, write),
    weights=weights,
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    presets={
        "command-r-v01": preset(8192, 22528, 40, 64, 64, 131072, 8000000.0),
        "command-r-08-2024": preset(8192, 24576, 40, 64, 8, 131072, 4000000.0),
        "aya-23-8b": preset(4096, 14336, 32, 32, 8, 8192, 10000.0),
        "aya-23-35b": preset(8192, 22528, 40, 64, 64, 8192, 8000000.0),
    },
)
