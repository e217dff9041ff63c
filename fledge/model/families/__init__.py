"""Families: each is data (presets, a weight-name table both ways, config.json both ways) and holds no module class."""

from __future__ import annotations

from dataclasses import replace

from fledge.errors import ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.families import (
    albert,
    bart,
    bert,
    bigbird,
    bloom,
    camembert,
    cohere,
    deberta,
    deberta_v2,
    distilbert,
    electra,
    falcon,
    gemma,
    gemma2,
    gemma3,
    glm4,
    gpt2,
    gpt_bigcode,
    gpt_neox,
    gptj,
    llama,
    longformer,
    mistral,
    mixtral,
    modernbert,
    mpnet,
    mt5,
    native,
    olmo,
    olmo2,
    olmo3,
    olmoe,
    openai_gpt,
    opt,
    palm,
    phi,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    roberta,
    smollm3,
    stablelm,
    starcoder2,
    t5,
    xlm_roberta,
)
from fledge.model.families.family import Family

DECODERS = (
    llama, gpt2, mistral, qwen2, qwen3, gemma, gemma2, gemma3, openai_gpt, gpt_neox, mixtral, phi3, bloom, olmo2, palm,
    olmo, stablelm, phi, gptj, starcoder2, falcon, opt, qwen3_moe, olmoe,
    smollm3, gpt_bigcode, cohere, glm4, olmo3,
)  # fmt: skip
MODULES = (
    *DECODERS,
    t5,
    mt5,
    bart,
    bert,
    roberta,
    xlm_roberta,
    camembert,
    distilbert,
    albert,
    electra,
    mpnet,
    deberta,
    deberta_v2,
    longformer,
    bigbird,
    modernbert,
    native,
)
FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in MODULES}


def family(name: str) -> Family:
    """The family called `name`. Raises ConfigError listing the known ones."""
    if name not in FAMILIES:
        raise ConfigError(f"model.family: expected one of {', '.join(FAMILIES)}, got {name!r:.60}")
    return FAMILIES[name]


def preset_family(preset: str) -> Family:
    """The family that publishes `preset`. Raises ConfigError listing the known presets."""
    for candidate in FAMILIES.values():
        if preset in candidate.presets:
            return candidate
    known = ", ".join(name for candidate in FAMILIES.values() for name in candidate.presets)
    raise ConfigError(f"model.preset: expected one of {known}, got {preset!r:.60}")


def over_preset(shape: ShapeConfig) -> ShapeConfig:
    """The shape with its preset filled in under the fields that were set; itself when it names no preset."""
    if not shape.preset:
        return shape
    defaults = vars(ShapeConfig())
    chosen = {k: v for k, v in vars(shape).items() if v != defaults[k] and k not in ("preset", "family")}
    return replace(preset_family(shape.preset).presets[shape.preset], **chosen)
