"""SmolLM3 (2025): LLaMA in which every fourth layer knows no positions (Yang et al. 2025, arXiv 2501.18795)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families import llama
from fledge.model.families.decoder import FULL, faithful, from_shape
from fledge.model.families.family import Family, integer, refuse
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Rope

THETA = 2000000.0
DEFAULT = {
    "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4,
    "intermediate_size": 11008, "max_position_embeddings": 32768, "vocab_size": 128256, "tie_word_embeddings": True,
}  # fmt: skip


def read(raw: dict[str, Any]) -> ModelConfig:
    refuse(raw, "use_sliding_window", (False, None), "every layer sees everything")
    group = raw.get("rope_parameters")
    if raw.get("rope_theta") is None and not (isinstance(group, dict) and "rope_theta" in group):
        raw = {**raw, "rope_theta": THETA}
    config = llama.read({**DEFAULT, **raw})
    layers = tuple(
        layer if turned else replace(layer, position=None)
        for layer, turned in zip(config.stack.layers, turned_layers(raw, len(config.stack.layers)), strict=True)
    )
    return replace(config, family="smollm3", decoder=replace(config.stack, layers=layers))


def turned_layers(raw: dict[str, Any], n_layers: int) -> list[bool]:
    """Which layers have rotary positions: `no_rope_layers` where 1 stands for one that has, or all but
    every so many."""
    kinds = raw.get("layer_types")
    if kinds is not None and kinds != [FULL] * n_layers:
        raise ConfigError(f"config.json: layer_types: expected {n_layers} of {FULL}, got {str(kinds)[:60]!r}")
    flags = raw.get("no_rope_layers")
    if flags is None:
        every = integer(raw, "no_rope_layer_interval", 4)
        if every < 1:
            raise ConfigError(f"config.json: no_rope_layer_interval: expected a number above 0, got {every}")
        return [(index + 1) % every != 0 for index in range(n_layers)]
    if not isinstance(flags, list) or len(flags) != n_layers or any(flag not in (0, 1) for flag in flags):
        raise ConfigError(f"config.json: no_rope_layers: expected {n_layers} of 0 and 1, got {str(flags)[:60]!r}")
    return [bool(flag) for flag in flags]


def write(config: ModelConfig) -> dict[str, Any]:
    layers = config.stack.layers
    # where no layer turns, the base of the class stands for what no layer has
    bare = replace(layers[0], position=Rope(THETA))
    turned = next((layer for layer in layers if isinstance(layer.position, Rope)), bare)
    whole = replace(config, decoder=replace(config.stack, layers=(turned,) * len(layers)))
    return {
        **llama.write(whole),
        "no_rope_layers": [int(layer.position is not None) for layer in layers],
        "layer_types": [FULL] * len(layers),
        "use_sliding_window": False,
        "sliding_window": None,
    }


FAMILY = Family(
    name="smollm3",
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    tasks=decoder_tasks("SmolLM3ForCausalLM", span_prefix="transformer."),
    build=from_shape("smollm3", read, bias_keys=("attention_bias", "mlp_bias"), eps=1e-6),
    read=read,
    write=faithful("smollm3", read, write),
    weights=llama.weight_table,
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    presets={
        "smollm3-3b": ShapeConfig(
            "smollm3", width=2048, hidden=11008, layers=36, heads=16, kv_heads=4, context_tokens=65536,
            vocab_size=128256, tie=True, rope_theta=5000000.0,
        )
    },
)  # fmt: skip
