"""Qwen3's mixtures (Yang et al. 2025, arXiv 2505.09388): Qwen3 with many small experts for its feed-forward, in
all layers or in some."""

from __future__ import annotations

from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import (
    decoder_config,
    faithful,
    from_shape,
    read_sizes,
    read_window,
    rope_of,
    sizes_json,
    window_json,
)
from fledge.model.families.experts import (
    dense_layers,
    experts_in_shape,
    experts_json,
    experts_of,
    read_experts,
    weights_apart,
    weights_stacked,
)
from fledge.model.families.family import Family, flag, integer, number
from fledge.model.families.rotary import longest, read_rope, rope_json
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, Heads, LayerConfig, Norm, StackConfig

EXPERTS = "num_experts"
DEFAULT = {
    "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 4,
    "intermediate_size": 6144, "max_position_embeddings": 32768, "vocab_size": 151936, "num_experts": 128,
    "num_experts_per_tok": 8,
}  # fmt: skip


def read(raw: dict[str, Any]) -> ModelConfig:
    sizes = read_sizes(raw, DEFAULT)
    dense = Dense(integer(raw, "moe_intermediate_size", 768), sizes.activation, True)
    ffn = read_experts(raw, EXPERTS, DEFAULT, dense, flag(raw, "norm_topk_prob", False), 0.001)
    bias = flag(raw, "attention_bias", False)
    heads = Heads(sizes.heads, sizes.kv_heads, sizes.channels, bias, bias, qk_norm="head")
    window = read_window(raw, 4096) if flag(raw, "use_sliding_window", False) else None
    rope = read_rope(raw, sizes.channels, sizes.context)
    plain = Dense(sizes.hidden, sizes.activation, True)
    layers = tuple(
        LayerConfig(heads, ffn if sparse else plain, rope, window) for sparse in read_sparse(raw, sizes.layers)
    )
    stack = StackConfig(sizes.width, layers, Norm("rms", number(raw, "rms_norm_eps", 1e-6)))
    return decoder_config(raw, "qwen3_moe", sizes, stack, longest(rope, sizes.context))


def read_sparse(raw: dict[str, Any], n_layers: int) -> list[bool]:
    """Which layers have experts. Raises ConfigError where none has."""
    only, step = raw.get("mlp_only_layers"), integer(raw, "decoder_sparse_step", 1)
    only = [] if only is None else only
    numbers = isinstance(only, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in only)
    if not numbers or any(not 0 <= n < n_layers for n in only):
        raise ConfigError(f"config.json: mlp_only_layers: expected layers of 0..{n_layers - 1}, got {str(only)[:40]!r}")
    if step < 1:
        raise ConfigError(f"config.json: decoder_sparse_step: expected a number above 0, got {step}")
    found = [index not in only and (index + 1) % step == 0 for index in range(n_layers)]
    if not any(found):
        raise ConfigError(f"config.json: mlp_only_layers: expected a layer with experts, got none of {n_layers}")
    return found


def write(config: ModelConfig) -> dict[str, Any]:
    layer, rope, window = config.stack.layers[0], rope_of(config, "qwen3_moe"), window_json(config)
    dense, hidden = dense_layers(config), experts_of(config).expert.hidden
    return {
        **sizes_json(config),
        "intermediate_size": config.stack.layers[dense[0]].dense.hidden if dense else hidden,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
        **experts_json(config, EXPERTS),
        "moe_intermediate_size": hidden,
        "norm_topk_prob": experts_of(config).renormalise,
        "rms_norm_eps": config.stack.norm.eps,
        "attention_bias": layer.mixer.qkv_bias,
        "use_sliding_window": window is not None,
        "sliding_window": window,
        **rope_json(rope, layer.mixer.head_channels),
    }


def extra(shape: ShapeConfig) -> dict[str, Any]:
    """A new model's chosen experts weigh 1 together, as in all published ones."""
    own = {"norm_topk_prob": True, "use_sliding_window": bool(shape.window), "sliding_window": shape.window or None}
    return {**own, "moe_intermediate_size": shape.hidden or 768, **experts_in_shape(shape, EXPERTS)}


def preset(width: int, hidden: int, layers: int, heads: int) -> ShapeConfig:
    return ShapeConfig(
        "qwen3_moe", width=width, hidden=hidden, layers=layers, heads=heads, kv_heads=4, head_channels=128,
        context_tokens=40960, vocab_size=151936, rope_theta=1000000.0, norm_eps=1e-6, experts=128, experts_per_token=8,
    )  # fmt: skip


FAMILY = Family(
    name="qwen3_moe",
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    tasks=decoder_tasks("Qwen3MoeForCausalLM", span_prefix="transformer."),
    build=from_shape(
        "qwen3_moe", read, ("rope_theta", "rope_scaling", "window", "experts", "experts_per_token"),
        ("attention_bias",), extra=extra, eps=1e-6,
    ),
    read=read,
    write=faithful("qwen3_moe", read, write),
    weights=weights_apart,
    spellings=(weights_stacked,),
    aliases={EXPERTS: "num_local_experts"},
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    presets={"qwen3-30b-a3b": preset(2048, 768, 48, 32), "qwen3-235b-a22b": preset(4096, 1536, 94, 64)},
)  # fmt: skip
