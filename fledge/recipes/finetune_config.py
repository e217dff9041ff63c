"""What `fledge finetune` trains. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fledge.data.task_config import Task, TaskDataConfig
from fledge.errors import ConfigError
from fledge.recipes.config import BaseModelConfig
from fledge.train.config import RunConfig, TrainConfig
from fledge.tune.config import TuneConfig

Metric = Literal["bleu", "chrf", "rouge"]


@dataclass(frozen=True)
class WritingConfig:
    """How the held-out sources of text2text are answered, and what is made of it."""

    beams: int = 1
    """Above 1: a beam search of this width; 1: the likeliest token each time."""
    length_penalty: float = 1.0
    """Of a beam search: an answer's log-probability counts over its length to this power."""
    max_tokens: int = 0
    """Most tokens of an answer; 0: as many as the context holds."""
    metrics: tuple[Metric, ...] = ("bleu", "chrf", "rouge")
    """What is computed beside the share of exact answers; needs the extra eval."""
    before: bool = False
    """Score the model that tuning starts from too."""

    def __post_init__(self) -> None:
        if self.beams < 1 or self.max_tokens < 0:
            raise ConfigError(
                f"writing: expected beams of at least 1 and max_tokens of 0 or more, got {self.beams} and "
                f"{self.max_tokens}"
            )


@dataclass(frozen=True)
class FinetuneConfig:
    """Tune a model on labelled rows: with a task head, or to write a text for a text."""

    model: BaseModelConfig = field(default_factory=BaseModelConfig)
    data: TaskDataConfig = field(default_factory=TaskDataConfig)
    task: Task = "sequence"
    """What is answered: sequence, a label for a text or a pair of texts (or several); regression, a number; token, a
    label for each word; span, where in a context the answer stands; choice, which of a question's answers is right;
    text2text, a text that an encoder-decoder writes for another."""
    class_weights: Literal["none", "balanced"] = "none"
    """How much a row of each label counts: alike, or balanced, by rows / (labels · rows of this label)."""
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    writing: WritingConfig = field(default_factory=WritingConfig)
