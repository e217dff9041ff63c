"""What `fledge finetune` trains. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fledge.data.task_config import Task, TaskDataConfig
from fledge.recipes.config import BaseModelConfig
from fledge.train.config import RunConfig, TrainConfig
from fledge.tune.config import TuneConfig


@dataclass(frozen=True)
class FinetuneConfig:
    """Tune a model with a task head on labelled rows."""

    model: BaseModelConfig = field(default_factory=BaseModelConfig)
    data: TaskDataConfig = field(default_factory=TaskDataConfig)
    task: Task = "sequence"
    """What is answered: sequence, a label for a text or a pair of texts (or several); regression, a number; token, a
    label for each word; span, where in a context the answer stands; choice, which of a question's answers is right."""
    class_weights: Literal["none", "balanced"] = "none"
    """How much a row of each label counts: alike, or balanced, by rows / (labels · rows of this label)."""
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
