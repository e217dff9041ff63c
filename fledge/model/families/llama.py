"""LLaMA 1-3 (Touvron et al. 2023): rotary positions, pre-norm RMSNorm, SwiGLU, no biases, grouped-query heads."""

from __future__ import annotations

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
    number,
    refuse,
    rounded_up,
    special_ids,
)
from fledge.nn.config import Dense, Heads, LayerConfig, Norm, Rope, StackConfig


def build(shape: ShapeConfig) -> ModelConfig:
    needed(shape, "width", "layers", "heads", "context_tokens", "vocab_size")
    bias = bool(shape.bias)
    heads = Heads(shape.heads, shape.kv_heads or shape.heads, head_channels(shape), bias, bias)
    hidden = shape.hidden or rounded_up(8 * shape.width / 3, 32)
    layer = LayerConfig(heads, Dense(hidden, shape.activation or "silu", True, bias), Rope(shape.rope_theta or 10000.0))
    norm = Norm("rms", shape.norm_eps or 1e-5)
    stack = StackConfig(shape.width, (layer,) * shape.layers, norm, dropout=shape.dropout)
    return ModelConfig(
        family="llama",
        vocab_size=shape.vocab_size,
        context_tokens=shape.context_tokens,
        decoder=stack,
        tie=bool(shape.tie),
        init=shape.init,
    )


def rope(raw: dict[str, Any]) -> Rope:
    """Rotary base in either spelling: `rope_parameters` (transformers 5), `rope_theta`+`rope_scaling` (4)."""
    parameters = raw.get("rope_parameters") or {}
    scaling = raw.get("rope_scaling") or {}
    for name, group in (("rope_parameters", parameters), ("rope_scaling", scaling)):
        if not isinstance(group, dict):
            raise ConfigError(f"config.json: {name}: expected a mapping, got {str(group)[:40]!r}")
        kind = group.get("rope_type", group.get("type", "default"))
        if kind not in ("default", None):
            raise ConfigError(f"config.json: {name}: rope_type {str(kind)[:40]!r} is not supported; expected default")
    theta = number(parameters if "rope_theta" in parameters else raw, "rope_theta", 10000.0)
    if theta <= 0:
        raise ConfigError(f"config.json: rope_theta: expected a number above 0, got {theta}")
    return Rope(theta)


def read(raw: dict[str, Any]) -> ModelConfig:
    refuse(raw, "pretraining_tp", (1, None), "weights are not split")
    width, n_heads = integer(raw, "hidden_size", 4096), integer(raw, "num_attention_heads", 32)
    channels = integer(raw, "head_dim", width // n_heads if n_heads else 0)
    n_layers = integer(raw, "num_hidden_layers", 32)
    if n_layers > 4096:
        raise ConfigError(f"config.json: num_hidden_layers: expected at most 4096, got {n_layers}")
    bias = flag(raw, "attention_bias", False)
    layer = LayerConfig(
        Heads(n_heads, integer(raw, "num_key_value_heads", n_heads), channels, bias, bias),
        Dense(
            integer(raw, "intermediate_size", 11008),
            choice(raw, "hidden_act", ACTIVATIONS, "silu"),
            True,
            flag(raw, "mlp_bias", False),
        ),
        rope(raw),
    )
    vocab_size = integer(raw, "vocab_size", 32000)
    return ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        context_tokens=integer(raw, "max_position_embeddings", 2048),
        decoder=StackConfig(width, (layer,) * n_layers, Norm("rms", number(raw, "rms_norm_eps", 1e-6))),
        tie=flag(raw, "tie_word_embeddings", False),
        special_ids=special_ids(raw, vocab_size),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    stack = config.stack
    layer = stack.layers[0]
    heads, position = layer.mixer, layer.position
    if not isinstance(position, Rope):
        raise ConfigError("model: LLaMA's folder format needs rotary positions")
    return {
        "hidden_size": stack.width,
        "intermediate_size": layer.dense.hidden,
        "num_hidden_layers": len(stack.layers),
        "num_attention_heads": heads.n_heads,
        "num_key_value_heads": heads.n_kv_heads,
        "head_dim": heads.head_channels,
        "hidden_act": activation_name(layer.dense.activation),
        "max_position_embeddings": config.context_tokens,
        "rms_norm_eps": stack.norm.eps,
        "attention_bias": heads.qkv_bias,
        "mlp_bias": layer.dense.bias,
        "attention_dropout": 0.0,
        # both spellings: transformers 5 reads rope_parameters, 4 (and llama.cpp's converter) rope_theta
        "rope_parameters": {"rope_theta": position.theta, "rope_type": "default"},
        "rope_theta": position.theta,
    }


def weights(config: ModelConfig) -> list[Weight]:
    block, theirs = "decoder.layers.{i}.", "model.layers.{i}."
    layer = config.stack.layers[0]
    table = [
        Weight("model.embed_tokens.weight", ("embedding.weight",)),
        Weight("model.norm.weight", ("decoder.norm.weight",)),
        Weight(f"{theirs}input_layernorm.weight", (f"{block}attention_norms.before.weight",)),
        Weight(f"{theirs}post_attention_layernorm.weight", (f"{block}ffn_norms.before.weight",)),
    ]
    linears = {
        "self_attn.q_proj": "attention.qkv.q",
        "self_attn.k_proj": "attention.qkv.k",
        "self_attn.v_proj": "attention.qkv.v",
        "self_attn.o_proj": "attention.out",
        "mlp.gate_proj": "ffn.inward.gate",
        "mlp.up_proj": "ffn.inward.up",
        "mlp.down_proj": "ffn.down",
    }
    for name, ours in linears.items():
        table.append(Weight(f"{theirs}{name}.weight", (f"{block}{ours}.weight",)))
        biased = layer.mixer.qkv_bias if name.startswith("self_attn") else layer.dense.bias
        if biased:
            table.append(Weight(f"{theirs}{name}.bias", (f"{block}{ours}.bias",)))
    if not config.tie:
        table.append(Weight("lm_head.weight", ("output.weight",)))
    return table


def preset(
    width: int, hidden: int, layers: int, heads: int, kv_heads: int, context_tokens: int, **more: Any
) -> ShapeConfig:
    more = {"vocab_size": 32000, **more}
    return ShapeConfig(
        "llama", width=width, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads,
        context_tokens=context_tokens, **more,
    )  # fmt: skip


FAMILY = Family(
    name="llama",
    model_type="llama",
    architecture="LlamaForCausalLM",
    build=build,
    read=read,
    write=write,
    weights=weights,
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    presets={
        "llama-7b": preset(4096, 11008, 32, 32, 32, 2048, norm_eps=1e-6),
        "llama-13b": preset(5120, 13824, 40, 40, 40, 2048, norm_eps=1e-6),
        "llama-33b": preset(6656, 17920, 60, 52, 52, 2048, norm_eps=1e-6),
        "llama-65b": preset(8192, 22016, 80, 64, 64, 2048),
        "llama-2-7b": preset(4096, 11008, 32, 32, 32, 4096),
        "llama-2-13b": preset(5120, 13824, 40, 40, 40, 4096),
        "llama-2-70b": preset(8192, 28672, 80, 64, 8, 4096),
        "tinyllama-1.1b": preset(2048, 5632, 22, 32, 4, 2048),
        "llama-3-8b": preset(4096, 14336, 32, 32, 8, 8192, vocab_size=128256, rope_theta=500000.0),
        "llama-3-70b": preset(8192, 28672, 80, 64, 8, 8192, vocab_size=128256, rope_theta=500000.0),
        "llama-15m": preset(288, 768, 6, 6, 6, 256),
    },
)
