"""mT5 (Xue et al. 2020, arXiv 2010.11934): T5 v1.1 on a hundred languages; its output is never scaled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families import t5

DEFAULT = {"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu",
           "decoder_start_token_id": 0}  # fmt: skip
SCALED = "scale_decoder_outputs"


def build(shape: ShapeConfig) -> ModelConfig:
    gated = True if shape.gated is None else shape.gated
    return replace(t5.build(replace(shape, gated=gated)), family="mt5", logit_scale=1.0)


def read(raw: dict[str, Any]) -> ModelConfig:
    return replace(t5.read({**DEFAULT, **raw, SCALED: False}), family="mt5")


def write(config: ModelConfig) -> dict[str, Any]:
    return {key: value for key, value in t5.write(config).items() if key != SCALED}


def preset(size: str) -> ShapeConfig:
    return replace(t5.GATED[size], family="mt5", vocab_size=250112)


FAMILY = replace(
    t5.FAMILY,
    name="mt5",
    model_type="mt5",
    architecture="MT5ForConditionalGeneration",
    build=build,
    read=read,
    write=write,
    tasks=tuple(replace(task, architecture=f"M{task.architecture}") for task in t5.TASKS),
    presets={f"mt5-{size}": preset(size) for size in t5.GATED},
)
