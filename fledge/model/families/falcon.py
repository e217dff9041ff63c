"""Falcon (Almazrouei et al. 2023, arXiv 2311.16867): attention and feed-forward side by side, multi-query (7B) or
grouped heads (40B, 180B), no biases, tied output; RefinedWeb's models one after the other, with ALiBi and biases."""

from __future__ import annotations

from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import decoder_config, faithful, from_shape, read_sizes, weight_table
from fledge.model.families.family import Family, Weight, activation_name, aliased, flag, integer, number
from fledge.model.families.rotary import longest, max_position_embeddings, read_rope, rope_json
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Alibi, Dense, Heads, LayerConfig, Norm, Position, Rope, StackConfig

DEFAULT: dict[str, Any] = {
    "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71, "max_position_embeddings": 2048,
    "vocab_size": 65024, "activation": "gelu", "intermediate_size": 0,
}  # fmt: skip
LINEARS = {
    "self_attention.query_key_value": ("attention.qkv.q", "attention.qkv.k", "attention.qkv.v"),
    "self_attention.dense": ("attention.out",),
    "mlp.dense_h_to_4h": ("ffn.inward.up",),
    "mlp.dense_4h_to_h": ("ffn.down",),
}
NORMS = {
    "one_norm": {"input_layernorm": "attention_norms.before"},
    "two_norms": {"ln_attn": "attention_norms.before", "ln_mlp": "ffn_norms.before"},
    "": {"input_layernorm": "attention_norms.before", "post_attention_layernorm": "ffn_norms.before"},
}


def read(raw: dict[str, Any]) -> ModelConfig:
    raw = aliased(raw, {"hidden_size": "n_embed"})
    own: dict[str, Any] = {"num_key_value_heads": None, "head_dim": None}
    own["intermediate_size"] = raw.get("ffn_hidden_size")
    if own["intermediate_size"] is None:
        own["intermediate_size"] = 4 * integer(raw, "hidden_size", DEFAULT["hidden_size"])
    sizes = read_sizes({**raw, **own}, DEFAULT, "activation")
    n_kv_heads, parallel = heads_and_norms(raw, sizes.heads)
    bias = flag(raw, "bias", False)
    rope = read_rope(raw, sizes.channels, sizes.context)
    position: Position = Alibi(coarse=True) if flag(raw, "alibi", False) else rope
    heads = Heads(sizes.heads, n_kv_heads, sizes.channels, bias, bias)
    layer = LayerConfig(heads, Dense(sizes.hidden, sizes.activation, bias=bias), position)
    norm = Norm("layer", number(raw, "layer_norm_epsilon", 1e-5), bias=True)
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, norm, parallel=parallel)
    context = longest(rope, sizes.context) if position == rope else sizes.context
    return decoder_config(raw, "falcon", sizes, stack, context, tie=True)


def heads_and_norms(raw: dict[str, Any], n_heads: int) -> tuple[int, Any]:
    """Key/value heads, and how attention and feed-forward stand to each other, which one switch decides together."""
    parallel = flag(raw, "parallel_attn", True)
    key = "num_ln_in_parallel_attn"
    n_norms = None if raw.get(key) is None else integer(raw, key)
    if flag(raw, "new_decoder_architecture", False):
        if not parallel or n_norms not in (None, 1, 2):
            raise ConfigError(
                "config.json: new_decoder_architecture: expected parallel_attn true and num_ln_in_parallel_attn "
                f"1 or 2, got {parallel} and {n_norms}"
            )
        return integer(raw, "num_kv_heads", n_heads), "one_norm" if n_norms == 1 else "two_norms"
    if n_norms not in (None, 1):
        raise ConfigError(
            f"config.json: num_ln_in_parallel_attn: expected 1 without new_decoder_architecture, got {n_norms}"
        )
    multi_query = flag(raw, "multi_query", True)
    if not multi_query and raw.get("num_kv_heads") not in (None, n_heads):
        raise ConfigError(
            f"config.json: num_kv_heads: expected {n_heads} or none without multi_query, "
            f"got {str(raw['num_kv_heads'])[:40]!r}"
        )
    return 1 if multi_query else n_heads, "one_norm" if parallel else ""


def write(config: ModelConfig) -> dict[str, Any]:
    stack, layer = config.stack, config.stack.layers[0]
    heads, position, context = layer.mixer, layer.position, config.context_tokens
    grouped = heads.n_kv_heads not in (1, heads.n_heads) or stack.parallel == "two_norms"
    rotary = isinstance(position, Rope)
    return {
        "hidden_size": stack.width,
        "num_hidden_layers": len(stack.layers),
        "num_attention_heads": heads.n_heads,
        "num_kv_heads": heads.n_kv_heads if grouped else heads.n_heads,
        "multi_query": heads.n_kv_heads == 1,
        "new_decoder_architecture": grouped,
        "num_ln_in_parallel_attn": {"one_norm": 1, "two_norms": 2}.get(stack.parallel) if grouped else None,
        "parallel_attn": bool(stack.parallel),
        "alibi": not rotary,
        "bias": heads.qkv_bias,
        "ffn_hidden_size": layer.dense.hidden,
        "activation": activation_name(layer.dense.activation, ("gelu",)),
        "max_position_embeddings": max_position_embeddings(position, context)
        if isinstance(position, Rope)
        else context,
        "layer_norm_epsilon": stack.norm.eps,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        **(rope_json(position, heads.head_channels) if isinstance(position, Rope) else {}),
    }


def weights(config: ModelConfig) -> list[Weight]:
    """Queries, keys and values stand together group by group, a group being a key/value head and its queries."""
    return weight_table(
        config,
        LINEARS,
        NORMS[config.stack.parallel],
        block="transformer.h.{i}.",
        embedding="transformer.word_embeddings",
        final="transformer.ln_f",
        by_head=True,
    )


def extra(shape: ShapeConfig) -> dict[str, Any]:
    """One key/value head is 7B's form, several are 40B's."""
    grouped = shape.kv_heads > 1
    own = {"new_decoder_architecture": grouped, "num_kv_heads": shape.kv_heads if grouped else None}
    return {**own, "ffn_hidden_size": shape.hidden or 4 * shape.width, "multi_query": shape.kv_heads == 1}


def preset(width: int, layers: int, heads: int, kv_heads: int) -> ShapeConfig:
    return ShapeConfig(
        "falcon", width=width, layers=layers, heads=heads, kv_heads=kv_heads, context_tokens=2048, vocab_size=65024
    )


FAMILY = Family(
    name="falcon",
    model_type="falcon",
    architecture="FalconForCausalLM",
    tasks=decoder_tasks("FalconForCausalLM", token="classifier"),
    build=from_shape(
        "falcon", read, bias_keys=("bias",), gated=False, extra=extra, eps_key="layer_norm_epsilon",
        activation_key="activation",
    ),
    read=read,
    write=faithful("falcon", read, write),
    weights=weights,
    prefix="transformer.",
    presets={
        # RefinedWeb's (falcon-rw) and 11B's forms can't be said by a shape: open their folders instead
        "falcon-7b": preset(4544, 32, 71, 1),
        "falcon-40b": preset(8192, 60, 128, 8),
        "falcon-180b": preset(14848, 80, 232, 8),
    },
)  # fmt: skip
