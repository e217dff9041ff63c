"""OLMoE (Muennighoff et al. 2024, arXiv 2409.02060): LLaMA with whole queries and keys normalised and 64 small experts,
whose chosen weights are not brought to a sum of 1."""

from __future__ import annotations

from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import (
    decoder_config,
    faithful,
    from_shape,
    read_clip,
    read_sizes,
    rope_of,
    sizes_json,
)
from fledge.model.families.experts import (
    experts_in_shape,
    experts_json,
    experts_of,
    read_experts,
    weights_apart,
    weights_stacked,
)
from fledge.model.families.family import Family, flag, number
from fledge.model.families.rotary import longest, read_rope, rope_json
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, Heads, LayerConfig, Norm, StackConfig

EXPERTS = "num_experts"
DEFAULT = {
    "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16, "intermediate_size": 2048,
    "max_position_embeddings": 4096, "vocab_size": 50304, "num_experts": 64, "num_experts_per_tok": 8,
}  # fmt: skip


def read(raw: dict[str, Any]) -> ModelConfig:
    sizes = read_sizes(raw, DEFAULT)
    if sizes.channels * sizes.heads != sizes.width:
        raise ConfigError(f"config.json: head_dim: expected {sizes.width} / {sizes.heads}, got {sizes.channels}")
    dense, bias = Dense(sizes.hidden, sizes.activation, True), flag(raw, "attention_bias", False)
    ffn = read_experts(raw, EXPERTS, DEFAULT, dense, flag(raw, "norm_topk_prob", False), 0.01)
    heads = Heads(sizes.heads, sizes.kv_heads, sizes.channels, bias, bias, qk_norm="whole", clip=read_clip(raw))
    rope = read_rope(raw, sizes.channels, sizes.context)
    layer = LayerConfig(heads, ffn, rope)
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, Norm("rms", number(raw, "rms_norm_eps", 1e-5)))
    return decoder_config(raw, "olmoe", sizes, stack, longest(rope, sizes.context))


def write(config: ModelConfig) -> dict[str, Any]:
    mixer, rope = config.stack.layers[0].mixer, rope_of(config, "olmoe")
    return {
        **sizes_json(config),
        **experts_json(config, EXPERTS),
        "norm_topk_prob": experts_of(config).renormalise,
        "rms_norm_eps": config.stack.norm.eps,
        "attention_bias": mixer.qkv_bias,
        "clip_qkv": mixer.clip,
        **rope_json(rope, mixer.head_channels),
    }


def extra(shape: ShapeConfig) -> dict[str, Any]:
    return experts_in_shape(shape, EXPERTS)


FAMILY = Family(
    name="olmoe",
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    tasks=decoder_tasks("OlmoeForCausalLM", ()),
    build=from_shape(
        "olmoe", read, ("rope_theta", "rope_scaling", "experts", "experts_per_token"), ("attention_bias",), extra=extra
    ),
    read=read,
    write=faithful("olmoe", read, write),
    weights=weights_apart,
    spellings=(weights_stacked,),
    aliases={EXPERTS: "num_local_experts"},
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    presets={
        "olmoe-1b-7b": ShapeConfig(
            "olmoe", width=2048, hidden=1024, layers=16, heads=16, context_tokens=4096, vocab_size=50304, experts=64,
            experts_per_token=8,
        )
    },
)  # fmt: skip
