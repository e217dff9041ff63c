"""What `fledge distill` teaches a student. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from fledge.errors import ConfigError
from fledge.recipes.config import PretrainConfig


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher, and how much each of its lessons counts beside the objective's own loss."""

    path: str = ""
    """Model or run folder of the teacher; its tokenizer is the student's."""
    temperature: float = 2.0
    """Both distributions are those of logits divided by this; the teacher's term counts temperature² times, so that its
    gradient does not shrink (Hinton et al. 2015)."""
    share: float = 0.5
    """Coefficient of the teacher's term; the objective's own has 1 - share."""
    hidden: float = 0.0
    """Coefficient of 1 - cosine of the last states of student and teacher, which must be of one width (DistilBERT's
    third loss); 0: not looked at."""
    top_k: int = 0
    """Compare the teacher's likeliest tokens one by one and all others as one; 0: all tokens. What the teacher said is
    then kept in run.dir/teacher, and it is not asked again."""

    def __post_init__(self) -> None:
        if not 0.01 <= self.temperature <= 100:
            raise ConfigError(f"teacher.temperature: expected 0.01 to 100, got {self.temperature}")
        if not 0 <= self.share <= 1:
            raise ConfigError(f"teacher.share: expected a share from 0 to 1, got {self.share}")
        if self.hidden < 0 or self.top_k < 0:
            raise ConfigError(f"teacher: expected hidden and top_k of at least 0, got {self.hidden} and {self.top_k}")


@dataclass(frozen=True)
class DistillConfig(PretrainConfig):
    """Train a student on text beside a teacher: a pre-training whose loss listens to another model too."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
