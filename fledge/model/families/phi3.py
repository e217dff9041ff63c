"""Phi-3 and Phi-4 (Abdin et al. 2024, arXiv 2404.14219): LLaMA with fused products, LongRoPE for long documents, and a
window or a part of the channels turned in some sizes."""

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
    weight_table,
    window_json,
)
from fledge.model.families.family import Family, Weight, integer, number
from fledge.model.families.rotary import read_rope, rope_json
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, Heads, LayerConfig, Norm, Rope, StackConfig

DEFAULT = {
    "hidden_size": 3072, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 8192,
    "max_position_embeddings": 4096, "vocab_size": 32064,
}  # fmt: skip
ORIGINAL = "original_max_position_embeddings"
LINEARS = {
    "self_attn.qkv_proj": ("attention.qkv.q", "attention.qkv.k", "attention.qkv.v"),
    "self_attn.o_proj": ("attention.out",),
    "mlp.gate_up_proj": ("ffn.inward.gate", "ffn.inward.up"),
    "mlp.down_proj": ("ffn.down",),
}


def read(raw: dict[str, Any]) -> ModelConfig:
    sizes = read_sizes(raw, DEFAULT)
    rope = read_rope(longrope_named(raw), sizes.channels, sizes.context, share=1.0)
    if rope.scaling is not None and rope.scaling.kind != "longrope":
        raise ConfigError(f"config.json: rope_type: expected default or longrope, got {rope.scaling.kind!r}")
    heads = Heads(sizes.heads, sizes.kv_heads, sizes.channels)
    layer = LayerConfig(heads, Dense(sizes.hidden, sizes.activation, True), rope, read_window(raw, None))
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, Norm("rms", number(raw, "rms_norm_eps", 1e-5)))
    return decoder_config(raw, "phi3", sizes, stack, sizes.context)


def longrope_named(raw: dict[str, Any]) -> dict[str, Any]:
    """The first releases call LongRoPE "su" or "yarn"; the original length stands beside the group and is 4,096."""
    raw = {**raw, ORIGINAL: integer(raw, ORIGINAL, 4096)}
    for name in ("rope_scaling", "rope_parameters"):
        group = raw.get(name)
        if isinstance(group, dict) and group.get("rope_type", group.get("type")) == "yarn":
            raw[name] = {key: value for key, value in group.items() if key != "type"} | {"rope_type": "longrope"}
    return raw


def write(config: ModelConfig) -> dict[str, Any]:
    layer, rope = config.stack.layers[0], rope_of(config, "phi3")
    return {
        **sizes_json(config),
        "rms_norm_eps": config.stack.norm.eps,
        "sliding_window": window_json(config),
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        ORIGINAL: config.context_tokens,
        **long_json(rope, layer.mixer.head_channels, config.context_tokens),
    }


def long_json(rope: Rope, channels: int, context: int) -> dict[str, Any]:
    """transformers 4 takes a rope_scaling of exactly three keys, and the ratio of the lengths as factor."""
    entries, scaling = rope_json(rope, channels, share=True), rope.scaling
    old = entries.pop("rope_scaling", None)
    if scaling is None or old is None:
        return entries
    entries[ORIGINAL] = scaling.original_tokens
    if scaling.attention_factor is None and scaling.factor == context / scaling.original_tokens:
        three = {"short_factor": old["short_factor"], "long_factor": old["long_factor"]}
        entries["rope_scaling"] = {"type": "longrope", **three}
    return entries


def weights(config: ModelConfig) -> list[Weight]:
    return weight_table(config, LINEARS)


def extra(shape: ShapeConfig) -> dict[str, Any]:
    original = shape.rope_scaling.original_tokens if shape.rope_scaling is not None else 0
    return {"sliding_window": shape.window or None, ORIGINAL: original or shape.context_tokens}


def preset(
    width: int, hidden: int, layers: int, heads: int, kv_heads: int, context: int, window: int, vocab: int = 32064,
    **more: Any,
) -> ShapeConfig:  # fmt: skip
    return ShapeConfig(
        "phi3", width=width, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, context_tokens=context,
        vocab_size=vocab, window=window, **more,
    )  # fmt: skip


FAMILY = Family(
    name="phi3",
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    tasks=decoder_tasks("Phi3ForCausalLM", ("sequence", "token")),
    build=from_shape("phi3", read, ("rope_theta", "rope_scaling", "rope_share", "window"), extra=extra),
    read=read,
    write=faithful("phi3", read, write),
    weights=weights,
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    presets={
        # the long forms have published factors for each channel: open their folders instead
        "phi-3-mini-4k": preset(3072, 8192, 32, 32, 32, 4096, 2047),
        "phi-3-medium-4k": preset(5120, 17920, 40, 40, 10, 4096, 2047),
        "phi-4": preset(5120, 17920, 40, 40, 10, 16384, 0, 100352, rope_theta=250000.0),
    },
)
