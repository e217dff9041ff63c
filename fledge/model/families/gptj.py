"""GPT-J (Wang & Komatsuzaki 2021): attention and feed-forward side by side behind one LayerNorm; the first channels of
a head turn in neighbouring pairs."""

from __future__ import annotations

from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import (
    decoder_config,
    faithful,
    from_shape,
    in_pairs,
    read_sizes,
    rope_of,
    weight_table,
)
from fledge.model.families.family import (
    ACTIVATIONS,
    Family,
    Weight,
    activation_name,
    aliased,
    choice,
    integer,
    number,
    refuse,
)
from fledge.model.families.openai_gpt import NAMES
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, Heads, LayerConfig, Norm, Rope, StackConfig

DEFAULT = {
    "hidden_size": 4096, "num_hidden_layers": 28, "num_attention_heads": 16, "max_position_embeddings": 2048,
    "vocab_size": 50400, "intermediate_size": 1,
}  # fmt: skip
LINEARS: dict[str, tuple[str, ...]] = {
    "attn.q_proj": ("attention.qkv.q",),
    "attn.k_proj": ("attention.qkv.k",),
    "attn.v_proj": ("attention.qkv.v",),
    "attn.out_proj": ("attention.out",),
    "mlp.fc_in": ("ffn.inward.up",),
    "mlp.fc_out": ("ffn.down",),
}


def read(raw: dict[str, Any]) -> ModelConfig:
    raw = aliased(raw, NAMES)
    sizes = read_sizes({**raw, "head_dim": None, "hidden_act": "gelu_new"}, DEFAULT)
    for key, value in (("num_key_value_heads", sizes.heads), ("head_dim", sizes.channels)):
        refuse(raw, key, (value, None), "GPT-J has one key/value head a head, and width = heads x channels")
    turned = integer(raw, "rotary_dim", 64)
    if not 0 < turned <= sizes.channels:
        raise ConfigError(f"config.json: rotary_dim: expected 1..{sizes.channels} channels of a head, got {turned}")
    hidden = 4 * sizes.width if raw.get("n_inner") is None else integer(raw, "n_inner")
    dense = Dense(hidden, choice(raw, "activation_function", ACTIVATIONS, "gelu_new"), bias=True)
    heads = Heads(sizes.heads, sizes.heads, sizes.channels)
    layer = LayerConfig(heads, dense, Rope(10000.0, 0 if turned == sizes.channels else turned))
    norm = Norm("layer", number(raw, "layer_norm_epsilon", 1e-5), bias=True)
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, norm, parallel="one_norm")
    return decoder_config(raw, "gptj", sizes, stack, sizes.context, output_bias=True)


def write(config: ModelConfig) -> dict[str, Any]:
    stack = config.stack
    layer, rope = stack.layers[0], rope_of(config, "gptj")
    return {
        "n_embd": stack.width,
        "n_layer": len(stack.layers),
        "n_head": layer.mixer.n_heads,
        "n_positions": config.context_tokens,
        "n_inner": layer.dense.hidden,
        "rotary_dim": rope.channels or layer.mixer.head_channels,
        "activation_function": activation_name(layer.dense.activation, ("gelu_new",)),
        "layer_norm_epsilon": stack.norm.eps,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def weights(config: ModelConfig) -> list[Weight]:
    norms = {"ln_1": "attention_norms.before"}
    table = weight_table(config, LINEARS, norms, "transformer.h.{i}.", "transformer.wte", "transformer.ln_f")
    table = in_pairs(table, config)
    return [*table, Weight("lm_head.bias", ("output_bias",))] if config.output_bias else table


def extra(shape: ShapeConfig) -> dict[str, Any]:
    raw: dict[str, Any] = {"n_inner": shape.hidden or None}
    if shape.activation:
        raw["activation_function"] = activation_name(shape.activation)
    channels = shape.head_channels or shape.width // shape.heads
    return {**raw, "rotary_dim": int(shape.rope_share * channels) if shape.rope_share else min(64, channels)}


FAMILY = Family(
    name="gptj",
    model_type="gptj",
    architecture="GPTJForCausalLM",
    tasks=decoder_tasks("GPTJForCausalLM", ("sequence", "span"), span_prefix="transformer."),
    build=from_shape(
        "gptj", read, ("rope_share",), gated=False, extra=extra, eps_key="layer_norm_epsilon", activation_key="_"
    ),
    read=read,
    write=faithful("gptj", read, write),
    weights=weights,
    prefix="transformer.",
    ignored=(".attn.bias", ".attn.masked_bias", ".attn.embed_positions"),
    presets={
        "gpt-j-6b": ShapeConfig("gptj", width=4096, layers=28, heads=16, context_tokens=2048, vocab_size=50400),
    },
)
