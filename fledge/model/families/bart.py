"""BART (Lewis et al. 2019): encoder and decoder, learned positions from row 2, post-norm LayerNorm, GELU, biases."""

from __future__ import annotations

import math
from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.family import (
    ACTIVATIONS,
    Family,
    Weight,
    activation_name,
    choice,
    flag,
    head_channels,
    integer,
    needed,
    refuse,
    special_ids,
)
from fledge.model.families.t5 import CLASSIFIER, started
from fledge.model.families.task import Head, Task
from fledge.nn.config import MAX_LAYERS, Dense, Heads, Inputs, LayerConfig, Norm, StackConfig

OFFSET = 2  # the table's first two rows were once kept for padding
EPS = 1e-5  # not in config.json

OLD_KNOBS = {
    "normalize_before": False,
    "normalize_embedding": True,
    "add_final_layer_norm": False,
    "add_bias_logits": False,
    "static_position_embeddings": False,
    "do_blenderbot_90_layernorm": False,
    "extra_pos_embeddings": OFFSET,
}


def build(shape: ShapeConfig) -> ModelConfig:
    needed(shape, "width", "layers", "heads", "context_tokens", "vocab_size")
    bias = True if shape.bias is None else shape.bias
    heads = Heads(shape.heads, shape.kv_heads or shape.heads, head_channels(shape), bias, bias)
    layer = LayerConfig(
        heads, Dense(shape.hidden or 4 * shape.width, shape.activation or "gelu", bool(shape.gated), bias)
    )
    n_layers = (shape.encoder_layers or shape.layers, shape.layers)
    norm = Norm("layer", shape.norm_eps or EPS, bias=bias)
    encoder, decoder = (
        stack(layer, n, shape.width, shape.context_tokens, norm, dropout=shape.dropout, causal=causal)
        for n, causal in zip(n_layers, (False, True), strict=True)
    )
    return ModelConfig(
        family="bart",
        vocab_size=shape.vocab_size,
        context_tokens=shape.context_tokens,
        decoder=decoder,
        encoder=encoder,
        tie=True if shape.tie is None else shape.tie,
        init=shape.init,
    )


def stack(
    layer: LayerConfig, n_layers: int, width: int, context: int, norm: Norm, causal: bool, **more: Any
) -> StackConfig:
    scale = more.pop("scale", 1.0)
    inputs = Inputs("learned", context + OFFSET, OFFSET, scale=scale, norm=True)
    cross = layer.mixer if causal else None
    return StackConfig(
        width, (layer,) * n_layers, norm, ("residual",), causal=causal, inputs=inputs, cross=cross, **more
    )


def read(raw: dict[str, Any]) -> ModelConfig:
    refuse(raw, "is_decoder", (False, None), "BART is an encoder with a decoder")
    refuse(raw, "is_encoder_decoder", (True, None), "BART is an encoder with a decoder")
    for key, value in OLD_KNOBS.items():
        refuse(raw, key, (value, None), "BART normalises after each sublayer and after its embeddings")
    width, context = integer(raw, "d_model", 1024), integer(raw, "max_position_embeddings", 1024)
    activation = choice(raw, "activation_function", ACTIVATIONS, "gelu")
    vocab_size = integer(raw, "vocab_size", 50265)
    scale = math.sqrt(width) if flag(raw, "scale_embedding", False) else 1.0
    stacks = {}
    for name in ("encoder", "decoder"):
        n_heads, n_layers = integer(raw, f"{name}_attention_heads", 16), integer(raw, f"{name}_layers", 12)
        if n_heads < 1 or width % n_heads:
            raise ConfigError(f"config.json: d_model {width} is not a multiple of {name}_attention_heads {n_heads}")
        if n_layers > MAX_LAYERS:
            raise ConfigError(f"config.json: {name}_layers: expected at most {MAX_LAYERS}, got {n_layers}")
        heads = Heads(n_heads, n_heads, width // n_heads, True, True)
        layer = LayerConfig(heads, Dense(integer(raw, f"{name}_ffn_dim", 4096), activation, bias=True))
        norm = Norm("layer", EPS, bias=True)
        stacks[name] = stack(layer, n_layers, width, context, norm, causal=name == "decoder", scale=scale)
    ids = special_ids({"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, **raw}, vocab_size)
    return ModelConfig(
        family="bart",
        vocab_size=vocab_size,
        context_tokens=context,
        decoder=stacks["decoder"],
        encoder=stacks["encoder"],
        tie=flag(raw, "tie_word_embeddings", True),
        special_ids=ids | started({"decoder_start_token_id": 2, **raw}, vocab_size),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    encoder, decoder = config.encoder, config.decoder
    assert encoder is not None and decoder is not None
    if decoder.norm.eps != EPS or not decoder.norm.bias:
        raise ConfigError(
            f"model: BART's folder format has norms with biases and an epsilon of {EPS}; leave model.norm_eps unset"
        )
    result: dict[str, Any] = {
        "is_encoder_decoder": True,
        "d_model": decoder.width,
        "max_position_embeddings": decoder.inputs.rows - OFFSET,
        "activation_function": activation_name(decoder.layers[0].dense.activation),
        "scale_embedding": decoder.inputs.scale != 1.0,
        "dropout": 0.0,
        "decoder_start_token_id": config.special_ids.get("start", config.special_ids.get("eos")),
        "forced_eos_token_id": config.special_ids.get("eos"),
    }
    for name, one in (("encoder", encoder), ("decoder", decoder)):
        heads, dense = one.layers[0].mixer, one.layers[0].dense
        if heads.n_kv_heads != heads.n_heads or heads.head_channels * heads.n_heads != one.width or dense.gated:
            raise ConfigError(
                "model: BART's folder format has one key/value head per head, width = heads x channels and no gate"
            )
        result |= {f"{name}_layers": len(one.layers), f"{name}_attention_heads": heads.n_heads}
        result[f"{name}_ffn_dim"] = dense.hidden
    return result


def weights(config: ModelConfig) -> list[Weight]:
    table = [Weight("model.shared.weight", ("embedding.weight",))]
    if config.lm:  # added to the logits by transformers, zeros in every model that it trained: no parameter there
        table.append(Weight("final_logits_bias", (), "zeros", config.vocab_size, row=True, optional=True))
    for stack_name in ("encoder", "decoder"):
        theirs = f"model.{stack_name}."
        positions = f"{stack_name}.inputs.positions.weight"
        table.append(Weight(f"{theirs}embed_positions.weight", (positions,)))
        for end in ("weight", "bias"):
            table.append(Weight(f"{theirs}layernorm_embedding.{end}", (f"{stack_name}.inputs.norm.{end}",)))
        table += block_weights(stack_name)
    if not config.tie:
        table.append(Weight("lm_head.weight", ("output.weight",)))
        # transformers ties either all or nothing
        table += [Weight(copy, ("embedding.weight",), optional=True) for copy in FAMILY.copies]
    return table


def block_weights(stack_name: Any) -> list[Weight]:
    names = {f"self_attn.{x}_proj": f"attention.qkv.{x}" for x in "qkv"}
    names |= {"self_attn.out_proj": "attention.out", "self_attn_layer_norm": "attention_norms.residual"}
    if stack_name == "decoder":
        names |= {"encoder_attn.q_proj": "cross.q", "encoder_attn.out_proj": "cross.out"}
        names |= {f"encoder_attn.{x}_proj": f"cross.kv.{x}" for x in "kv"}
        names["encoder_attn_layer_norm"] = "cross_norms.residual"
    names |= {"fc1": "ffn.inward.up", "fc2": "ffn.down", "final_layer_norm": "ffn_norms.residual"}
    ours, theirs = f"{stack_name}.layers.{{i}}.", f"model.{stack_name}.layers.{{i}}."
    return [
        Weight(f"{theirs}{x}.{end}", (f"{ours}{y}.{end}",), stack=stack_name)
        for x, y in names.items()
        for end in ("weight", "bias")
    ]


def preset(width: int, layers: int, heads: int) -> ShapeConfig:
    return ShapeConfig("bart", width=width, layers=layers, heads=heads, context_tokens=1024, vocab_size=50265)


ALIASES = {
    "d_model": "hidden_size", "encoder_layers": "num_hidden_layers", "encoder_attention_heads": "num_attention_heads",
}  # fmt: skip

FAMILY = Family(
    name="bart",
    model_type="bart",
    architecture="BartForConditionalGeneration",
    build=build,
    read=read,
    write=write,
    weights=weights,
    aliases=ALIASES,
    tasks=(
        Task("lm", "BartForConditionalGeneration", lm=True),
        Task("base", "BartModel", base=True),
        Task("sequence", "BartForSequenceClassification", heads=(CLASSIFIER,)),
        Task("span", "BartForQuestionAnswering", heads=(Head("span", "each", 2, "qa_outputs"),)),
    ),
    prefix="model.",
    ignored=("encoder.version", "decoder.version"),
    copies={
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
    },
    presets={"bart-base": preset(768, 6, 12), "bart-large": preset(1024, 12, 16)},
)
