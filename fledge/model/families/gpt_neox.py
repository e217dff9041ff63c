"""GPT-NeoX (Black et al. 2022) and Pythia (Biderman et al. 2023): attention and feed-forward side by side with a
LayerNorm each, biases, a quarter of each head's channels turned."""

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
from fledge.model.families.family import Family, Weight, aliased, flag, number, refuse
from fledge.model.families.rotary import longest, read_rope, rope_json
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, Heads, LayerConfig, Norm, StackConfig

DEFAULT = {
    "hidden_size": 6144, "num_hidden_layers": 44, "num_attention_heads": 64, "intermediate_size": 24576,
    "max_position_embeddings": 2048, "vocab_size": 50432, "hidden_act": "gelu",
}  # fmt: skip
LINEARS = {
    "attention.query_key_value": ("attention.qkv.q", "attention.qkv.k", "attention.qkv.v"),
    "attention.dense": ("attention.out",),
    "mlp.dense_h_to_4h": ("ffn.inward.up",),
    "mlp.dense_4h_to_h": ("ffn.down",),
}


def read(raw: dict[str, Any]) -> ModelConfig:
    refuse(raw, "is_decoder", (False, True, None), "expected true or false")
    sizes = read_sizes({**raw, "num_key_value_heads": None, "head_dim": None}, DEFAULT)
    for key, value in (("num_key_value_heads", sizes.heads), ("head_dim", sizes.channels)):
        refuse(raw, key, (value, None), "GPT-NeoX has one key/value head a head, and width = heads x channels")
    bias = flag(raw, "attention_bias", True)
    old = aliased(raw, {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"})
    rope = read_rope(old, sizes.channels, sizes.context, 1e4, 0.25)
    heads = Heads(sizes.heads, sizes.heads, sizes.channels, bias, bias)
    layer = LayerConfig(heads, Dense(sizes.hidden, sizes.activation, bias=True), rope)
    parallel = "two_norms" if flag(raw, "use_parallel_residual", True) else ""
    norm = Norm("layer", number(raw, "layer_norm_eps", 1e-5), bias=True)
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, norm, parallel=parallel)  # type: ignore[arg-type]
    return decoder_config(raw, "gpt_neox", sizes, stack, longest(rope, sizes.context))


def write(config: ModelConfig) -> dict[str, Any]:
    layer, rope = config.stack.layers[0], rope_of(config, "gpt_neox")
    entries = rope_json(rope, layer.mixer.head_channels, share=True)
    return {
        **sizes_json(config),
        "layer_norm_eps": config.stack.norm.eps,
        "attention_bias": layer.mixer.qkv_bias,
        "use_parallel_residual": config.stack.parallel == "two_norms",
        "rotary_emb_base": entries["rope_theta"],
        "rotary_pct": entries["partial_rotary_factor"],
        **entries,
    }


def weights(config: ModelConfig) -> list[Weight]:
    return weight_table(
        config,
        LINEARS,
        block="gpt_neox.layers.{i}.",
        embedding="gpt_neox.embed_in",
        final="gpt_neox.final_layer_norm",
        output="embed_out",
        by_head=True,
    )


def extra(shape: ShapeConfig) -> dict[str, Any]:
    return {"rotary_emb_base": shape.rope_theta or None, "rotary_pct": shape.rope_share or None}


def preset(width: int, layers: int, heads: int, vocab_size: int = 50304, hidden: int = 0, **more: Any) -> ShapeConfig:
    return ShapeConfig(
        "gpt_neox", width=width, hidden=hidden or 4 * width, layers=layers, heads=heads, context_tokens=2048,
        vocab_size=vocab_size, **more,
    )  # fmt: skip


FAMILY = Family(
    name="gpt_neox",
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    tasks=decoder_tasks("GPTNeoXForCausalLM", token="classifier"),
    build=from_shape(
        "gpt_neox",
        read,
        ("rope_theta", "rope_scaling", "rope_share"),
        gated=False,
        extra=extra,
        eps_key="layer_norm_eps",
    ),
    read=read,
    write=faithful("gpt_neox", read, write),
    weights=weights,
    prefix="gpt_neox.",
    copies={"embed_out.weight": "gpt_neox.embed_in.weight"},
    modules={"embed_out": "lm_head"},
    ignored=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
    presets={
        "pythia-14m": preset(128, 6, 4),
        "pythia-31m": preset(256, 6, 8),
        "pythia-70m": preset(512, 6, 8),
        "pythia-160m": preset(768, 12, 12),
        "pythia-410m": preset(1024, 24, 16),
        "pythia-1b": preset(2048, 16, 8),
        "pythia-1.4b": preset(2048, 24, 16),
        "pythia-2.8b": preset(2560, 32, 32),
        "pythia-6.9b": preset(4096, 32, 32, 50432),
        "pythia-12b": preset(5120, 36, 40, 50688),
        "gpt-neox-20b": preset(6144, 44, 64, 50432, activation="gelu_tanh"),
    },
)
