"""StarCoder2 (Lozhkov et al. 2024, arXiv 2402.19173): rotary positions, LayerNorms, biases, GELU, grouped-query heads,
a window in all layers."""

from __future__ import annotations

from typing import Any

from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import (
    LINEARS,
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
from fledge.model.families.family import Family, Weight, flag, number, refuse
from fledge.model.families.rotary import longest, read_rope, rope_json
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, Heads, LayerConfig, Norm, StackConfig

DEFAULT = {
    "hidden_size": 3072, "num_hidden_layers": 30, "num_attention_heads": 24, "num_key_value_heads": 2,
    "intermediate_size": 12288, "max_position_embeddings": 4096, "vocab_size": 49152,
    "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip
OWN = {theirs: ours for theirs, ours in LINEARS.items() if theirs.startswith("self_attn")}
OWN |= {"mlp.c_fc": ("ffn.inward.up",), "mlp.c_proj": ("ffn.down",)}


def read(raw: dict[str, Any]) -> ModelConfig:
    refuse(raw, "layer_types", (None,), "every layer has the window")
    sizes = read_sizes(raw, DEFAULT)
    bias = flag(raw, "use_bias", True)
    rope = read_rope(raw, sizes.channels, sizes.context)
    heads = Heads(sizes.heads, sizes.kv_heads, sizes.channels, bias, bias)
    layer = LayerConfig(heads, Dense(sizes.hidden, sizes.activation, bias=bias), rope, read_window(raw, None))
    norm = Norm("layer", number(raw, "norm_epsilon", 1e-5), bias=True)
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, norm)
    return decoder_config(raw, "starcoder2", sizes, stack, longest(rope, sizes.context), tie=True)


def write(config: ModelConfig) -> dict[str, Any]:
    layer, rope = config.stack.layers[0], rope_of(config, "starcoder2")
    return {
        **sizes_json(config),
        "norm_epsilon": config.stack.norm.eps,
        "use_bias": layer.mixer.qkv_bias,
        "sliding_window": window_json(config),
        "embedding_dropout": 0.0,
        "residual_dropout": 0.0,
        **rope_json(rope, layer.mixer.head_channels),
    }


def weights(config: ModelConfig) -> list[Weight]:
    return weight_table(config, OWN)


def extra(shape: ShapeConfig) -> dict[str, Any]:
    return {"sliding_window": shape.window or None}


def preset(width: int, layers: int, heads: int, kv_heads: int, rope_theta: float, tie: bool = True) -> ShapeConfig:
    return ShapeConfig(
        "starcoder2", width=width, layers=layers, heads=heads, kv_heads=kv_heads, context_tokens=16384, window=4096,
        vocab_size=49152, rope_theta=rope_theta, tie=tie,
    )  # fmt: skip


FAMILY = Family(
    name="starcoder2",
    model_type="starcoder2",
    architecture="Starcoder2ForCausalLM",
    tasks=decoder_tasks("Starcoder2ForCausalLM", ("sequence", "token")),
    build=from_shape(
        "starcoder2",
        read,
        ("rope_theta", "rope_scaling", "window"),
        ("use_bias",),
        gated=False,
        extra=extra,
        eps_key="norm_epsilon",
    ),
    read=read,
    write=faithful("starcoder2", read, write),
    weights=weights,
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    presets={
        "starcoder2-3b": preset(3072, 30, 24, 2, 999999.4420358813),
        "starcoder2-7b": preset(4608, 32, 36, 4, 1000000.0),
        "starcoder2-15b": preset(6144, 40, 48, 4, 100000.0, False),
    },
)
