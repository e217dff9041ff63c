"""LLaMA 1-3 (Touvron et al. 2023), TinyLlama, SmolLM: rotary positions, pre-norm RMSNorm, SwiGLU, no biases,
grouped-query heads."""

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
from fledge.model.families.family import Family, flag, number
from fledge.model.families.rotary import longest, read_rope, rope_json
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, Heads, LayerConfig, Norm, RopeScaling, StackConfig

DEFAULT = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008,
    "max_position_embeddings": 2048, "vocab_size": 32000,
}  # fmt: skip


def read(raw: dict[str, Any]) -> ModelConfig:
    sizes = read_sizes(raw, DEFAULT)
    bias = flag(raw, "attention_bias", False)
    rope = read_rope(raw, sizes.channels, sizes.context)
    layer = LayerConfig(
        Heads(sizes.heads, sizes.kv_heads, sizes.channels, bias, bias),
        Dense(sizes.hidden, sizes.activation, True, flag(raw, "mlp_bias", False)),
        rope,
    )
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, Norm("rms", number(raw, "rms_norm_eps", 1e-6)))
    return decoder_config(raw, "llama", sizes, stack, longest(rope, sizes.context))


def write(config: ModelConfig) -> dict[str, Any]:
    layer, rope = config.stack.layers[0], rope_of(config, "llama")
    return {
        **sizes_json(config),
        "rms_norm_eps": config.stack.norm.eps,
        "attention_bias": layer.mixer.qkv_bias,
        "mlp_bias": layer.dense.bias,
        **rope_json(rope, layer.mixer.head_channels),
    }


def preset(
    width: int, hidden: int, layers: int, heads: int, kv_heads: int, context_tokens: int, **more: Any
) -> ShapeConfig:
    more = {"vocab_size": 32000, **more}
    return ShapeConfig(
        "llama", width=width, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads,
        context_tokens=context_tokens, **more,
    )  # fmt: skip


def llama3(factor: float = 0.0) -> dict[str, Any]:
    """What Llama 3 sizes share; from 3.1 on with rotary scaling by `factor`."""
    scaling = RopeScaling("llama3", factor, 8192) if factor else None
    return {"vocab_size": 128256, "rope_theta": 500000.0, "rope_scaling": scaling}


SMOL = {"vocab_size": 49152, "tie": True}
LONG = 131072

FAMILY = Family(
    name="llama",
    model_type="llama",
    architecture="LlamaForCausalLM",
    tasks=decoder_tasks("LlamaForCausalLM", span_prefix="transformer."),
    build=from_shape("llama", read, bias_keys=("attention_bias", "mlp_bias")),
    read=read,
    write=faithful("llama", read, write),
    weights=weight_table,
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
        "llama-3-8b": preset(4096, 14336, 32, 32, 8, 8192, **llama3()),
        "llama-3-70b": preset(8192, 28672, 80, 64, 8, 8192, **llama3()),
        "llama-3.1-8b": preset(4096, 14336, 32, 32, 8, LONG, **llama3(8.0)),
        "llama-3.1-70b": preset(8192, 28672, 80, 64, 8, LONG, **llama3(8.0)),
        "llama-3.1-405b": preset(16384, 53248, 126, 128, 8, LONG, **llama3(8.0)),
        "llama-3.3-70b": preset(8192, 28672, 80, 64, 8, LONG, **llama3(8.0)),
        "llama-3.2-1b": preset(2048, 8192, 16, 32, 8, LONG, head_channels=64, tie=True, **llama3(32.0)),
        "llama-3.2-3b": preset(3072, 8192, 28, 24, 8, LONG, head_channels=128, tie=True, **llama3(32.0)),
        "smollm-135m": preset(576, 1536, 30, 9, 3, 2048, **SMOL),
        "smollm-360m": preset(960, 2560, 32, 15, 5, 2048, **SMOL),
        "smollm-1.7b": preset(2048, 8192, 24, 32, 32, 2048, **SMOL),
        "smollm2-135m": preset(576, 1536, 30, 9, 3, 8192, rope_theta=100000.0, **SMOL),
        "smollm2-360m": preset(960, 2560, 32, 15, 5, 8192, rope_theta=100000.0, **SMOL),
        "smollm2-1.7b": preset(2048, 8192, 24, 32, 32, 8192, rope_theta=130000.0, **SMOL),
        "llama-15m": preset(288, 768, 6, 6, 6, 256),
    },
)
