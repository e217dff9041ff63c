"""Phi-1, Phi-1.5 and Phi-2 (Gunasekar et al. 2023, arXiv 2306.11644): attention and feed-forward side by side behind
one LayerNorm, biases everywhere, a part of each head's channels turned."""

from __future__ import annotations

from typing import Any

from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import (
    decoder_config,
    faithful,
    from_shape,
    read_sizes,
    rope_of,
    sizes_json,
    weight_table,
)
from fledge.model.families.family import Family, Weight, number, switched_on
from fledge.model.families.rotary import longest, read_rope, rope_json
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, Heads, LayerConfig, Norm, StackConfig

DEFAULT = {
    "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "intermediate_size": 8192,
    "max_position_embeddings": 2048, "vocab_size": 51200, "hidden_act": "gelu_new",
}  # fmt: skip
LINEARS: dict[str, tuple[str, ...]] = {
    "self_attn.q_proj": ("attention.qkv.q",),
    "self_attn.k_proj": ("attention.qkv.k",),
    "self_attn.v_proj": ("attention.qkv.v",),
    "self_attn.dense": ("attention.out",),
    "mlp.fc1": ("ffn.inward.up",),
    "mlp.fc2": ("ffn.down",),
}
QK_NORMS = {"self_attn.q_layernorm": "attention.q_norm", "self_attn.k_layernorm": "attention.k_norm"}


def read(raw: dict[str, Any]) -> ModelConfig:
    sizes = read_sizes(raw, DEFAULT)
    rope = read_rope(raw, sizes.channels, sizes.context, share=0.5)
    qk_norm: Any = "head" if switched_on(raw, "qk_layernorm") else ""
    heads = Heads(sizes.heads, sizes.kv_heads, sizes.channels, True, True, qk_norm=qk_norm)
    layer = LayerConfig(heads, Dense(sizes.hidden, sizes.activation, bias=True), rope)
    norm = Norm("layer", number(raw, "layer_norm_eps", 1e-5), bias=True)
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, norm, parallel="one_norm")
    return decoder_config(raw, "phi", sizes, stack, longest(rope, sizes.context), output_bias=True)


def write(config: ModelConfig) -> dict[str, Any]:
    layer, rope = config.stack.layers[0], rope_of(config, "phi")
    return {
        **sizes_json(config),
        "layer_norm_eps": config.stack.norm.eps,
        "qk_layernorm": layer.mixer.qk_norm == "head",
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        **rope_json(rope, layer.mixer.head_channels, share=True),
    }


def weights(config: ModelConfig) -> list[Weight]:
    norms = {"input_layernorm": "attention_norms.before"}
    table = weight_table(config, LINEARS, norms, final="model.final_layernorm", qk_norms=QK_NORMS)
    return [*table, Weight("lm_head.bias", ("output_bias",))] if config.output_bias else table


def preset(width: int, layers: int, share: float) -> ShapeConfig:
    return ShapeConfig(
        "phi", width=width, layers=layers, heads=32, context_tokens=2048, vocab_size=51200, rope_share=share
    )


FAMILY = Family(
    name="phi",
    model_type="phi",
    architecture="PhiForCausalLM",
    tasks=decoder_tasks("PhiForCausalLM", ("sequence", "token")),
    build=from_shape("phi", read, ("rope_theta", "rope_scaling", "rope_share"), gated=False, eps_key="layer_norm_eps"),
    read=read,
    write=faithful("phi", read, write),
    weights=weights,
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    presets={
        "phi-1": preset(2048, 24, 0.5),
        "phi-1.5": preset(2048, 24, 0.5),
        "phi-2": preset(2560, 32, 0.4),
    },
)
