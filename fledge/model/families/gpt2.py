"""GPT-2 (Radford et al. 2019): learned positions, pre-norm LayerNorm, GELU (tanh), biases, tied output."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import only_fields
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
    number,
    refuse,
    special_ids,
)
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, Heads, Inputs, LayerConfig, Norm, StackConfig

INVERSE = "scale_attn_by_inverse_layer_idx"
BIAS_KEY = "fledge_bias"  # transformers' GPT-2 always has biases; without ours it gets zeros


def build(shape: ShapeConfig) -> ModelConfig:
    needed(shape, "width", "layers", "heads", "context_tokens", "vocab_size")
    only_fields(shape, "gpt2", ())
    bias = True if shape.bias is None else shape.bias
    heads = Heads(shape.heads, shape.kv_heads or shape.heads, head_channels(shape), bias, bias)
    layer = LayerConfig(heads, Dense(shape.hidden or 4 * shape.width, shape.activation or "gelu_tanh", bias=bias))
    norm = Norm("layer", shape.norm_eps or 1e-5, bias=bias)
    inputs = Inputs("learned", shape.context_tokens)
    stack = StackConfig(shape.width, (layer,) * shape.layers, norm, dropout=shape.dropout, inputs=inputs)
    return ModelConfig(
        family="gpt2",
        vocab_size=shape.vocab_size,
        context_tokens=shape.context_tokens,
        decoder=stack,
        tie=True if shape.tie is None else shape.tie,
        init=shape.init,
    )


def read(raw: dict[str, Any]) -> ModelConfig:
    refuse(raw, "add_cross_attention", (False, None), "encoder-decoder GPT-2 is not a decoder")
    refuse(raw, "is_encoder_decoder", (False, None), "a decoder alone")
    refuse(raw, "scale_attn_weights", (True, None), "scores are divided by sqrt(d_k)")
    width, n_heads = integer(raw, "n_embd", 768), integer(raw, "n_head", 12)
    if n_heads < 1 or width % n_heads:
        raise ConfigError(f"config.json: n_embd {width} is not a multiple of n_head {n_heads}")
    context, n_layers = integer(raw, "n_positions", 1024), integer(raw, "n_layer", 12)
    if n_layers > 4096:
        raise ConfigError(f"config.json: n_layer: expected at most 4096, got {n_layers}")
    activation = choice(raw, "activation_function", ACTIVATIONS, "gelu_new")
    vocab_size = integer(raw, "vocab_size", 50257)
    bias = flag(raw, BIAS_KEY, True)
    layer = LayerConfig(
        Heads(n_heads, n_heads, width // n_heads, bias, bias),
        Dense(integer(raw, "n_inner", 4 * width), activation, bias=bias),
    )
    layers = (layer,) * n_layers
    if flag(raw, INVERSE, False):
        layers = tuple(inverse(layer, index) for index in range(n_layers))
    norm = Norm("layer", number(raw, "layer_norm_epsilon", 1e-5), bias=bias)
    return ModelConfig(
        family="gpt2",
        vocab_size=vocab_size,
        context_tokens=context,
        decoder=StackConfig(width, layers, norm, inputs=Inputs("learned", context)),
        tie=flag(raw, "tie_word_embeddings", True),
        special_ids=special_ids(raw, vocab_size),
    )


def inverse(layer: LayerConfig, index: int) -> LayerConfig:
    """The block at `index` with scores divided by its number too, as the GPT-2s of Karamcheti et al. 2021 have them."""
    channels = layer.mixer.head_channels
    return replace(layer, mixer=replace(layer.mixer, scale=max(1, channels) ** -0.5 / (index + 1))) if index else layer


def scaled_by_layer(config: ModelConfig) -> bool:
    """Whether scores are divided by the number of the block. Raises ConfigError for other scales."""
    layers = config.stack.layers
    if all(layer.mixer.scale is None for layer in layers):
        return False
    if tuple(inverse(layers[0], index) for index in range(len(layers))) != layers:
        raise ConfigError(
            "model: GPT-2's folder format divides scores by the root of a head's channels, and by the block's number "
            "at most; leave model.score_channels unset"
        )
    return True


def write(config: ModelConfig) -> dict[str, Any]:
    stack = config.stack
    layer = stack.layers[0]
    heads = layer.mixer
    if heads.n_kv_heads != heads.n_heads or heads.head_channels * heads.n_heads != stack.width:
        raise ConfigError("model: GPT-2's folder format has one key/value head per head and width = heads x channels")
    return {
        "n_embd": stack.width,
        "n_head": heads.n_heads,
        "n_layer": len(stack.layers),
        "n_positions": stack.inputs.rows,
        "n_inner": layer.dense.hidden,
        "activation_function": activation_name(layer.dense.activation, ("gelu_new",)),
        "layer_norm_epsilon": stack.norm.eps,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        INVERSE: scaled_by_layer(config),
        BIAS_KEY: heads.qkv_bias,
    }


def weights(config: ModelConfig) -> list[Weight]:
    block, theirs = "decoder.layers.{i}.", "transformer.h.{i}."
    table = [
        Weight("transformer.wte.weight", ("embedding.weight",)),
        Weight("transformer.wpe.weight", ("decoder.inputs.positions.weight",)),
    ]
    qkv = tuple(f"{block}attention.qkv.{name}." for name in "qkv")
    width = config.stack.width
    biased = config.stack.norm.bias
    if not biased:
        hidden = config.stack.layers[0].dense.hidden
        ends = {"ln_1": width, "ln_2": width, "attn.c_attn": 3 * width, "attn.c_proj": width}
        ends |= {"mlp.c_fc": hidden, "mlp.c_proj": width}
        table += [Weight(f"{theirs}{name}.bias", (), "zeros", size) for name, size in ends.items()]
        table.append(Weight("transformer.ln_f.bias", (), "zeros", width))
    for end in ("weight", "bias") if biased else ("weight",):
        table += [
            Weight(f"{theirs}ln_1.{end}", (f"{block}attention_norms.before.{end}",)),
            Weight(f"{theirs}ln_2.{end}", (f"{block}ffn_norms.before.{end}",)),
            Weight(f"{theirs}attn.c_attn.{end}", tuple(name + end for name in qkv), "fused_transposed"),
            Weight(f"{theirs}attn.c_proj.{end}", (f"{block}attention.out.{end}",), "transposed"),
            Weight(f"{theirs}mlp.c_fc.{end}", (f"{block}ffn.inward.up.{end}",), "transposed"),
            Weight(f"{theirs}mlp.c_proj.{end}", (f"{block}ffn.down.{end}",), "transposed"),
            Weight(f"transformer.ln_f.{end}", (f"decoder.norm.{end}",)),
        ]
    if not config.tie:
        table.append(Weight("lm_head.weight", ("output.weight",)))
    return table


def preset(width: int, layers: int, heads: int, context_tokens: int = 1024) -> ShapeConfig:
    return ShapeConfig("gpt2", width=width, layers=layers, heads=heads, context_tokens=context_tokens, vocab_size=50257)


ALIASES = {
    "n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
}  # fmt: skip

FAMILY = Family(
    name="gpt2",
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    tasks=decoder_tasks("GPT2LMHeadModel", token="classifier"),
    build=build,
    read=read,
    write=write,
    weights=weights,
    aliases=ALIASES,
    prefix="transformer.",
    ignored=(".attn.bias", ".attn.masked_bias"),
    presets={
        "gpt2": preset(768, 12, 12),
        "gpt2-medium": preset(1024, 24, 16),
        "gpt2-large": preset(1280, 36, 20),
        "gpt2-xl": preset(1600, 48, 25),
        # Brown et al. 2020 (arXiv 2005.14165), table 2.1, all layers dense; widths and heads of 1.3B and 13B are those
        # that multiply out (the table has 24 heads of 128 for a width of 2048, and 5140)
        "gpt-3-125m": preset(768, 12, 12, 2048),
        "gpt-3-350m": preset(1024, 24, 16, 2048),
        "gpt-3-760m": preset(1536, 24, 16, 2048),
        "gpt-3-1.3b": preset(2048, 24, 16, 2048),
        "gpt-3-2.7b": preset(2560, 32, 32, 2048),
        "gpt-3-6.7b": preset(4096, 32, 32, 2048),
        "gpt-3-13b": preset(5120, 40, 40, 2048),
        "gpt-3-175b": preset(12288, 96, 96, 2048),
    },
)
