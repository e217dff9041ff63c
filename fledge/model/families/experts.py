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
    """The mixture of the first layer. Raises ConfigError for a model without."""
    ffn = config.stack.layers[0].ffn
    if not isinstance(ffn, Moe):
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


def weights_apart(config: ModelConfig, mlp: str = MLP, parts: dict[str, str] = PARTS) -> list[Weight]:
    """The published spelling: each expert's three matrices by themselves."""
    table = weight_table(config, ATTENTION)
    table.append(Weight(f"{mlp}gate.weight", (f"{BLOCK}ffn.router.weight",)))
    n = experts_of(config).n_experts
    for theirs, ours in parts.items():
        name = f"{BLOCK}ffn.experts.{{e}}.{ours}.weight"
        table.append(Weight(f"{mlp}experts.{{e}}.{theirs}.weight", (name,), experts=n))
    return table


def weights_stacked(config: ModelConfig) -> list[Weight]:
    """transformers 5's own: the matrices of all experts in one tensor, gate and up side by side."""
    table = weight_table(config, ATTENTION)
    table.append(Weight(f"{MLP}gate.weight", (f"{BLOCK}ffn.router.weight",)))
    n = experts_of(config).n_experts
    for theirs, ours in (("gate_up_proj", ("inward.gate", "inward.up")), ("down_proj", ("down",))):
        names = tuple(f"{BLOCK}ffn.experts.{e}.{part}.weight" for e in range(n) for part in ours)
        table.append(Weight(f"{MLP}experts.{theirs}", names, "stacked", size=n))
    return table
