"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): Mistral with a mixture of experts for its feed-forward."""

from __future__ import annotations

from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import (
    BLOCK,
    LINEARS,
    decoder_config,
    faithful,
    from_shape,
    read_sizes,
    read_window,
    rope_of,
    sizes_json,
    weight_table,
    window_json,
)
from fledge.model.families.family import Family, Weight, integer, number, refuse
from fledge.model.families.rotary import longest, read_rope, rope_json
from fledge.nn.config import MAX_EXPERTS, Dense, Heads, LayerConfig, Moe, Norm, StackConfig

DEFAULT = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "vocab_size": 32000,
}  # fmt: skip
ATTENTION = {theirs: ours for theirs, ours in LINEARS.items() if theirs.startswith("self_attn")}
OLD, NEW = "model.layers.{i}.block_sparse_moe.", "model.layers.{i}.mlp."


def read(raw: dict[str, Any]) -> ModelConfig:
    refuse(raw, "router_jitter_noise", (0, 0.0, None), "a router without noise")
    sizes = read_sizes(raw, DEFAULT)
    rope = read_rope(raw, sizes.channels, sizes.context, 1000000.0)
    n_experts, top_k = integer(raw, "num_local_experts", 8), integer(raw, "num_experts_per_tok", 2)
    if not 0 < n_experts <= MAX_EXPERTS:
        raise ConfigError(f"config.json: num_local_experts: expected a number in 1..{MAX_EXPERTS}, got {n_experts}")
    balance = number(raw, "router_aux_loss_coef", 0.001)
    ffn = Moe(Dense(sizes.hidden, sizes.activation, True), n_experts, top_k, balance=balance)
    heads = Heads(sizes.heads, sizes.kv_heads, sizes.channels)
    layer = LayerConfig(heads, ffn, rope, read_window(raw, None))
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, Norm("rms", number(raw, "rms_norm_eps", 1e-5)))
    return decoder_config(raw, "mixtral", sizes, stack, longest(rope, sizes.context))


def write(config: ModelConfig) -> dict[str, Any]:
    layer, rope = config.stack.layers[0], rope_of(config, "mixtral")
    if not isinstance(layer.ffn, Moe):
        raise ConfigError("model: mixtral's folder format needs a mixture of experts")
    return {
        **sizes_json(config),
        "rms_norm_eps": config.stack.norm.eps,
        "sliding_window": window_json(config),
        "num_local_experts": layer.ffn.n_experts,
        "num_experts_per_tok": layer.ffn.top_k,
        "router_aux_loss_coef": layer.ffn.balance,
        **rope_json(rope, layer.mixer.head_channels),
    }


def experts_of(config: ModelConfig) -> int:
    ffn = config.stack.layers[0].ffn
    assert isinstance(ffn, Moe)
    return ffn.n_experts


def weights(config: ModelConfig) -> list[Weight]:
    """The published spelling: each expert's three matrices by themselves."""
    table = weight_table(config, ATTENTION)
    table.append(Weight(f"{OLD}gate.weight", (f"{BLOCK}ffn.router.weight",)))
    for theirs, ours in (("w1", "inward.gate"), ("w3", "inward.up"), ("w2", "down")):
        name = f"{BLOCK}ffn.experts.{{e}}.{ours}.weight"
        table.append(Weight(f"{OLD}experts.{{e}}.{theirs}.weight", (name,), experts=experts_of(config)))
    return table


def stacked_weights(config: ModelConfig) -> list[Weight]:
    """transformers 5's own: the matrices of all experts in one tensor, gate and up side by side."""
    table = weight_table(config, ATTENTION)
    table.append(Weight(f"{NEW}gate.weight", (f"{BLOCK}ffn.router.weight",)))
    n = experts_of(config)
    for theirs, parts in (("gate_up_proj", ("inward.gate", "inward.up")), ("down_proj", ("down",))):
        names = tuple(f"{BLOCK}ffn.experts.{e}.{part}.weight" for e in range(n) for part in parts)
        table.append(Weight(f"{NEW}experts.{theirs}", names, "stacked", size=n))
    return table


def extra(shape: ShapeConfig) -> dict[str, Any]:
    counts = {"num_local_experts": shape.experts, "num_experts_per_tok": shape.experts_per_token}
    return {"sliding_window": shape.window or None, **{key: n for key, n in counts.items() if n}}


def preset(width: int, hidden: int, layers: int, heads: int, context: int, vocab_size: int) -> ShapeConfig:
    return ShapeConfig(
        "mixtral", width=width, hidden=hidden, layers=layers, heads=heads, kv_heads=8, context_tokens=context,
        vocab_size=vocab_size, rope_theta=1000000.0, experts=8, experts_per_token=2,
    )  # fmt: skip


FAMILY = Family(
    name="mixtral",
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    build=from_shape(
        "mixtral", read, ("rope_theta", "rope_scaling", "window", "experts", "experts_per_token"), extra=extra
    ),
    read=read,
    write=faithful("mixtral", read, write),
    weights=weights,
    spellings=(stacked_weights,),
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    presets={
        "mixtral-8x7b": preset(4096, 14336, 32, 32, 32768, 32000),
        "mixtral-8x22b": preset(6144, 16384, 56, 48, 65536, 32768),
    },
)
