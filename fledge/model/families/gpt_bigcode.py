"""GPT-BigCode: SantaCoder and StarCoder (Li et al. 2023, arXiv 2305.06161): GPT-2 with one key/value head for all."""

from __future__ import annotations

from typing import Any

from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import decoder_config, faithful, from_shape, read_sizes, weight_table
from fledge.model.families.family import Family, Weight, activation_name, aliased, flag, integer, number, refuse
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, Heads, Inputs, LayerConfig, Norm, StackConfig

NAMES = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
         "max_position_embeddings": "n_positions"}  # fmt: skip
DEFAULT: dict[str, Any] = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 1024,
    "vocab_size": 50257, "activation_function": "gelu_pytorch_tanh", "intermediate_size": 1,
}  # fmt: skip
LINEARS = {
    "attn.c_attn": ("attention.qkv.q", "attention.qkv.k", "attention.qkv.v"),
    "attn.c_proj": ("attention.out",),
    "mlp.c_fc": ("ffn.inward.up",),
    "mlp.c_proj": ("ffn.down",),
}
NORMS = {"ln_1": "attention_norms.before", "ln_2": "ffn_norms.before"}


def read(raw: dict[str, Any]) -> ModelConfig:
    refuse(raw, "add_cross_attention", (False, None), "a decoder alone")
    refuse(raw, "scale_attn_weights", (True, None), "scores are divided by the root of a head's channels")
    raw = aliased(raw, NAMES)
    sizes = read_sizes({**raw, "head_dim": None, "num_key_value_heads": None}, DEFAULT, "activation_function")
    n_kv_heads = 1 if flag(raw, "multi_query", True) else sizes.heads
    refuse(raw, "num_key_value_heads", (n_kv_heads, None), "multi_query says how many there are")
    hidden = 4 * sizes.width if raw.get("n_inner") is None else integer(raw, "n_inner")
    heads = Heads(sizes.heads, n_kv_heads, sizes.channels, True, True)
    layer = LayerConfig(heads, Dense(hidden, sizes.activation, bias=True))
    norm = Norm("layer", number(raw, "layer_norm_epsilon", 1e-5), bias=True)
    inputs = Inputs("learned", sizes.context)
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, norm, inputs=inputs)
    return decoder_config(raw, "gpt_bigcode", sizes, stack, sizes.context, tie=True)


def write(config: ModelConfig) -> dict[str, Any]:
    stack, layer = config.stack, config.stack.layers[0]
    return {
        "n_embd": stack.width,
        "n_layer": len(stack.layers),
        "n_head": layer.mixer.n_heads,
        "multi_query": layer.mixer.n_kv_heads == 1,
        "n_positions": stack.inputs.rows,
        "n_inner": layer.dense.hidden,
        "activation_function": activation_name(layer.dense.activation),
        "layer_norm_epsilon": stack.norm.eps,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def weights(config: ModelConfig) -> list[Weight]:
    """Queries, keys and values stand together by key/value heads: all queries, or one's, before each."""
    table = weight_table(
        config, LINEARS, NORMS, "transformer.h.{i}.", "transformer.wte", "transformer.ln_f", by_head=True
    )
    return [*table, Weight("transformer.wpe.weight", ("decoder.inputs.positions.weight",))]


def extra(shape: ShapeConfig) -> dict[str, Any]:
    one = shape.kv_heads in (0, 1)
    return {"n_inner": shape.hidden or None, "multi_query": one, "num_key_value_heads": 1 if one else shape.kv_heads}


def preset(width: int, layers: int, heads: int, context: int = 8192, vocab_size: int = 49152) -> ShapeConfig:
    return ShapeConfig(
        "gpt_bigcode", width=width, layers=layers, heads=heads, kv_heads=1, context_tokens=context,
        vocab_size=vocab_size,
    )  # fmt: skip


FAMILY = Family(
    name="gpt_bigcode",
    model_type="gpt_bigcode",
    architecture="GPTBigCodeForCausalLM",
    tasks=decoder_tasks("GPTBigCodeForCausalLM", ("sequence", "token"), token="classifier"),
    build=from_shape(
        "gpt_bigcode", read, (), gated=False, extra=extra, eps_key="layer_norm_epsilon",
        activation_key="activation_function",
    ),
    read=read,
    write=faithful("gpt_bigcode", read, write),
    weights=weights,
    prefix="transformer.",
    ignored=(".attn.bias", ".attn.masked_bias"),
    presets={
        "santacoder": preset(2048, 24, 16, 2048, 49280),
        "starcoderbase-1b": preset(2048, 24, 16),
        "starcoderbase-3b": preset(2816, 36, 22),
        "starcoderbase-7b": preset(4096, 42, 32),
        "starcoder": preset(6144, 40, 48),
    },
)  # fmt: skip
