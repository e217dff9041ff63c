"""BLOOM (Scao et al. 2022, arXiv 2211.05100): ALiBi, a LayerNorm on the embedding, biases, GELU (tanh), tied output."""

from __future__ import annotations

from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import (
    decoder_config,
    faithful,
    from_shape,
    norm_rows,
    read_sizes,
    weight_table,
)
from fledge.model.families.family import Family, Weight, aliased, number, refuse
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Alibi, Dense, Heads, Inputs, LayerConfig, Norm, StackConfig

NAMES = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "hidden_size": "n_embed"}
CONTEXT = 2048  # of pre-training; ALiBi itself has no longest document
DEFAULT = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "max_position_embeddings": CONTEXT,
    "vocab_size": 250880, "hidden_act": "gelu_new", "intermediate_size": 1,
}  # fmt: skip
LINEARS = {
    "self_attention.query_key_value": ("attention.qkv.q", "attention.qkv.k", "attention.qkv.v"),
    "self_attention.dense": ("attention.out",),
    "mlp.dense_h_to_4h": ("ffn.inward.up",),
    "mlp.dense_4h_to_h": ("ffn.down",),
}


def read(raw: dict[str, Any]) -> ModelConfig:
    refuse(raw, "apply_residual_connection_post_layernorm", (False, None), "the residual is what comes before the norm")
    raw = aliased(raw, NAMES)
    sizes = read_sizes({**raw, "head_dim": None, "max_position_embeddings": raw.get("seq_length")}, DEFAULT)
    for key, value in (
        ("num_key_value_heads", sizes.heads), ("head_dim", sizes.channels), ("intermediate_size", 4 * sizes.width),
        ("n_inner", 4 * sizes.width), ("hidden_act", "gelu_new"),
    ):  # fmt: skip
        refuse(raw, key, (value, None), "BLOOM's heads, feed-forward and activation have no choice")
    heads = Heads(sizes.heads, sizes.heads, sizes.channels, True, True)
    layer = LayerConfig(heads, Dense(4 * sizes.width, "gelu_tanh", bias=True), Alibi())
    norm = Norm("layer", number(raw, "layer_norm_epsilon", 1e-5), bias=True)
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, norm, inputs=Inputs(norm=True))
    return decoder_config(raw, "bloom", sizes, stack, sizes.context, tie=True)


def write(config: ModelConfig) -> dict[str, Any]:
    stack = config.stack
    if not isinstance(stack.layers[0].position, Alibi):
        raise ConfigError("model: bloom's folder format needs ALiBi")
    return {
        "hidden_size": stack.width,
        "n_layer": len(stack.layers),
        "n_head": stack.layers[0].mixer.n_heads,
        "seq_length": config.context_tokens,
        "layer_norm_epsilon": stack.norm.eps,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }


def weights(config: ModelConfig) -> list[Weight]:
    table = weight_table(
        config,
        LINEARS,
        block="transformer.h.{i}.",
        embedding="transformer.word_embeddings",
        final="transformer.ln_f",
        by_head=True,
    )
    return table + norm_rows("transformer.word_embeddings_layernorm", "decoder.inputs.norm", config.stack.norm)


def extra(shape: ShapeConfig) -> dict[str, Any]:
    if shape.activation not in ("", "gelu_tanh"):
        raise ConfigError(f"model.activation: expected gelu_tanh in BLOOM, got {shape.activation!r}")
    return {"seq_length": shape.context_tokens}


def preset(width: int, layers: int, heads: int) -> ShapeConfig:
    return ShapeConfig("bloom", width=width, layers=layers, heads=heads, context_tokens=CONTEXT, vocab_size=250880)


FAMILY = Family(
    name="bloom",
    model_type="bloom",
    architecture="BloomForCausalLM",
    tasks=decoder_tasks("BloomForCausalLM", token="classifier"),
    build=from_shape("bloom", read, (), gated=False, extra=extra, eps_key="layer_norm_epsilon", activation_key="_"),
    read=read,
    write=faithful("bloom", read, write),
    weights=weights,
    prefix="transformer.",
    presets={
        "bloom-560m": preset(1024, 24, 16),
        "bloom-1b1": preset(1536, 24, 16),
        "bloom-1b7": preset(2048, 24, 16),
        "bloom-3b": preset(2560, 30, 32),
        "bloom-7b1": preset(4096, 30, 32),
        "bloom-176b": preset(14336, 70, 112),
    },
)
