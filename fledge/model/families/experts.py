"""What families with a mixture of experts share: its numbers in config.json and its rows of the name table."""

from __future__ import annotations

from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import BLOCK, LINEARS, weight_table
from fledge.model.families.family import Weight, integer, number
from fledge.nn.config import MAX_EXPERTS, Dense, Moe

ATTENTION = {theirs: ours for theirs, ours in LINEARS.items() if theirs.startswith("self_attn")}
PARTS = {"gate_proj": "inward.gate", "up_proj": "inward.up", "down_proj": "down"}
MLP = "model.layers.{i}.mlp."


def read_experts(
    raw: dict[str, Any], key: str, default: dict[str, Any], dense: Dense, renormalise: bool, balance: float
) -> Moe:
    """The mixture that config.json describes, its number of experts under `key`. Raises ConfigError."""
    n_experts = integer(raw, key, default[key])
    top_k = integer(raw, "num_experts_per_tok", default["num_experts_per_tok"])
    if not 0 < n_experts <= MAX_EXPERTS:
        raise ConfigError(f"config.json: {key}: expected a number in 1..{MAX_EXPERTS}, got {n_experts}")
    balance = number(raw, "router_aux_loss_coef", balance)
    return Moe(dense, n_experts, top_k, renormalise, balance)


def experts_of(config: ModelConfig) -> Moe:
    """The mixture of the first layer that has one. Raises ConfigError for a model without."""
    ffn = next((layer.ffn for layer in config.stack.layers if isinstance(layer.ffn, Moe)), None)
    if ffn is None:
        raise ConfigError(f"model: {config.family}'s folder format needs a mixture of experts; set model.experts=…")
    return ffn


def experts_json(config: ModelConfig, key: str) -> dict[str, Any]:
    """config.json's entries for the mixture."""
    ffn = experts_of(config)
    return {key: ffn.n_experts, "num_experts_per_tok": ffn.top_k, "router_aux_loss_coef": ffn.balance}


def experts_in_shape(shape: ShapeConfig, key: str) -> dict[str, Any]:
    """config.json's entries for what a shape says of the mixture."""
    counts = {key: shape.experts, "num_experts_per_tok": shape.experts_per_token}
    return {name: n for name, n in counts.items() if n}


def dense_layers(config: ModelConfig) -> list[int]:
    """The layers that have one feed-forward instead of a mixture."""
    return [index for index, layer in enumerate(config.stack.layers) if not isinstance(layer.ffn, Moe)]


def around_experts(config: ModelConfig, mlp: str = MLP) -> tuple[list[Weight], tuple[int, ...] | None]:
    """The name table without the experts themselves, and which layers have them (None: all)."""
    table, dense = weight_table(config, ATTENTION), dense_layers(config)
    sparse = tuple(index for index in range(len(config.stack.layers)) if index not in dense) if dense else None
    table.append(Weight(f"{mlp}gate.weight", (f"{BLOCK}ffn.router.weight",), blocks=sparse))
    for theirs, ours in PARTS.items() if dense else ():
        table.append(Weight(f"{mlp}{theirs}.weight", (f"{BLOCK}ffn.{ours}.weight",), blocks=tuple(dense)))
    return table, sparse


def weights_apart(config: ModelConfig, mlp: str = MLP, parts: dict[str, str] = PARTS) -> list[Weight]:
    """The published spelling: each expert's three matrices by themselves."""
    table, sparse = around_experts(config, mlp)
    n = experts_of(config).n_experts
    for theirs, ours in parts.items():
        name = f"{BLOCK}ffn.experts.{{e}}.{ours}.weight"
        table.append(Weight(f"{mlp}experts.{{e}}.{theirs}.weight", (name,), experts=n, blocks=sparse))
    return table


def weights_stacked(config: ModelConfig) -> list[Weight]:
    """transformers 5's own: the matrices of all experts in one tensor, gate and up side by side."""
    table, sparse = around_experts(config)
    n = experts_of(config).n_experts
    for theirs, ours in (("gate_up_proj", ("inward.gate", "inward.up")), ("down_proj", ("down",))):
        names = tuple(f"{BLOCK}ffn.experts.{e}.{part}.weight" for e in range(n) for part in ours)
        table.append(Weight(f"{MLP}experts.{theirs}", names, "stacked", size=n, blocks=sparse))
    return table
