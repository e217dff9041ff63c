"""Qwen3 (Yang et al. 2025, arXiv 2505.09388): LLaMA whose queries and keys are normalised head by head."""

from __future__ import annotations

from typing import Any

from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families import qwen2
from fledge.model.families.decoder import faithful, from_shape, read_sizes, weight_table
from fledge.model.families.family import Family, flag
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Heads

DEFAULT = {**qwen2.DEFAULT, "head_dim": 128}


def read(raw: dict[str, Any]) -> ModelConfig:
    # a null is no head_dim in this family; its class has 128
    sizes = read_sizes(raw, DEFAULT)
    bias = flag(raw, "attention_bias", False)
    heads = Heads(sizes.heads, sizes.kv_heads, sizes.channels, bias, bias, qk_norm="head")
    return qwen2.with_heads(raw, "qwen3", sizes, heads)


def write(config: ModelConfig) -> dict[str, Any]:
    return {**qwen2.write(config), "attention_bias": config.stack.layers[0].mixer.qkv_bias}


def preset(
    width: int, hidden: int, layers: int, heads: int, kv_heads: int = 8, context: int = 40960, tie: bool = False
) -> ShapeConfig:
    return ShapeConfig(
        "qwen3", width=width, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, head_channels=128,
        context_tokens=context, vocab_size=151936, tie=tie, rope_theta=1000000.0, norm_eps=1e-6,
    )  # fmt: skip


FAMILY = Family(
    name="qwen3",
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    tasks=decoder_tasks("Qwen3ForCausalLM", span_prefix="transformer."),
    build=from_shape("qwen3", read, qwen2.TAKES, ("attention_bias",), extra=qwen2.extra, eps=1e-6),
    read=read,
    write=faithful("qwen3", read, write),
    weights=weight_table,
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    presets={
        "qwen3-0.6b": preset(1024, 3072, 28, 16, tie=True),
        "qwen3-1.7b": preset(2048, 6144, 28, 16, tie=True),
        "qwen3-4b": preset(2560, 9728, 36, 32, tie=True),
        "qwen3-8b": preset(4096, 12288, 36, 32),
        "qwen3-14b": preset(5120, 17408, 40, 40),
        "qwen3-32b": preset(5120, 25600, 64, 64),
    },
)
