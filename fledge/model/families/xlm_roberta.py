"""XLM-RoBERTa (Conneau et al. 2019, arXiv 1911.02116): RoBERTa on a hundred languages, under another name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families import roberta
from fledge.model.families.family import Family

VOCAB = 30522  # of their classes in transformers; no published model has it


def renamed(name: str, model_type: str, stem: str, presets: dict[str, ShapeConfig]) -> Family:
    """RoBERTa's family under another name, its classes in transformers beginning with `stem`."""

    def build(shape: ShapeConfig) -> ModelConfig:
        return replace(roberta.build(shape), family=name)

    def read(raw: dict[str, Any]) -> ModelConfig:
        return replace(roberta.read({"vocab_size": VOCAB, **raw}), family=name)

    tasks = tuple(
        replace(task, architecture=stem + task.architecture.removeprefix("Roberta")) for task in roberta.TASKS
    )
    return replace(
        roberta.FAMILY,
        name=name,
        model_type=model_type,
        architecture=tasks[0].architecture,
        build=build,
        read=read,
        tasks=tasks,
        presets=presets,
    )


def preset(name: str, vocab_size: int, size: str = "base") -> ShapeConfig:
    return replace(roberta.FAMILY.presets[f"roberta-{size}"], family=name, vocab_size=vocab_size)


FAMILY = renamed(
    "xlm_roberta",
    "xlm-roberta",
    "XLMRoberta",
    {
        "xlm-roberta-base": preset("xlm_roberta", 250002),
        "xlm-roberta-large": preset("xlm_roberta", 250002, "large"),
    },
)
