"""GPT-1 (Radford et al. 2018): learned positions, LayerNorm on each residual sum, GELU (tanh), biases, tied output."""

from __future__ import annotations

from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import decoder_config, faithful, from_shape, read_sizes, weight_table
from fledge.model.families.family import Family, Weight, aliased, choice, number, refuse
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Activation, Dense, Heads, Inputs, LayerConfig, Norm, StackConfig

NAMES = {
    "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}  # fmt: skip
DEFAULT = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 512,
    "vocab_size": 40478,
}  # fmt: skip
ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}
LINEARS = {
    "attn.c_attn": ("attention.qkv.q", "attention.qkv.k", "attention.qkv.v"),
    "attn.c_proj": ("attention.out",),
    "mlp.c_fc": ("ffn.inward.up",),
    "mlp.c_proj": ("ffn.down",),
}
NORMS = {"ln_1": "attention_norms.residual", "ln_2": "ffn_norms.residual"}


def read(raw: dict[str, Any]) -> ModelConfig:
    raw = aliased(raw, NAMES)
    sizes = read_sizes(raw, {**DEFAULT, "intermediate_size": 1})
    for key, value in (("num_key_value_heads", sizes.heads), ("intermediate_size", 4 * sizes.width)):
        refuse(raw, key, (value, None), "GPT-1 has one key/value head a head and 4 x width channels inside")
    heads = Heads(sizes.heads, sizes.heads, sizes.channels, True, True)
    layer = LayerConfig(heads, Dense(4 * sizes.width, choice(raw, "afn", ACTIVATIONS, "gelu"), bias=True))
    norm = Norm("layer", number(raw, "layer_norm_epsilon", 1e-5), bias=True)
    inputs = Inputs("learned", sizes.context)
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, norm, ("residual",), inputs=inputs)
    return decoder_config(raw, "openai_gpt", sizes, stack, sizes.context, tie=True)


def write(config: ModelConfig) -> dict[str, Any]:
    stack = config.stack
    layer = stack.layers[0]
    return {
        "n_embd": stack.width,
        "n_layer": len(stack.layers),
        "n_head": layer.mixer.n_heads,
        "n_positions": stack.inputs.rows,
        "afn": own_name(layer.dense.activation),
        "layer_norm_epsilon": stack.norm.eps,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def own_name(activation: Activation) -> str:
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    if activation not in names:
        raise ConfigError(f"model.activation: expected one of {', '.join(names)} in GPT-1, got {activation!r}")
    return names[activation]


def weights(config: ModelConfig) -> list[Weight]:
    table = weight_table(config, LINEARS, NORMS, "transformer.h.{i}.", "transformer.tokens_embed", transposed=True)
    return [*table, Weight("transformer.positions_embed.weight", ("decoder.inputs.positions.weight",))]


def extra(shape: ShapeConfig) -> dict[str, Any]:
    """GELU's tanh form is "gelu" here; the exact one has no name."""
    if not shape.activation:
        return {}
    return {"afn": own_name(shape.activation)}


FAMILY = Family(
    name="openai_gpt",
    model_type="openai-gpt",
    architecture="OpenAIGPTLMHeadModel",
    tasks=decoder_tasks("OpenAIGPTLMHeadModel", ("sequence",)),
    build=from_shape("openai_gpt", read, (), gated=False, extra=extra, eps_key="layer_norm_epsilon"),
    read=read,
    write=faithful("openai_gpt", read, write),
    weights=weights,
    prefix="transformer.",
    ignored=(".attn.bias", "position_ids"),
    presets={
        "gpt-1": ShapeConfig("openai_gpt", width=768, layers=12, heads=12, context_tokens=512, vocab_size=40478),
    },
)
