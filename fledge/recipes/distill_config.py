"""What `fledge distill` teaches a student. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

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
    attention: float = 0.0
    """Coefficient of the distance of attention maps, which have as many heads; 0: not looked at."""
    attention_loss: Literal["kl", "mse"] = "kl"
    """kl: KL(teacher ‖ student) of each row of a map (MiniLM); mse: the mean of squared differences (TinyBERT's loss,
    of shares of attention)."""
    values: float = 0.0
    """Coefficient of the divergence of relations between values, softmax(V Vᵀ / √channels) (MiniLM); 0: not looked
    at."""
    relation_heads: int = 0
    """Part the values of student and teacher into so many heads for that (MiniLM v2), where they have not as many; 0:
    as they are."""
    states: float = 0.0
    """Coefficient of the mean of squared differences of what layers give (TinyBERT); where widths differ the student's
    go through a learned matrix, which checkpoints keep and the published model has not. 0: not looked at."""
    layer_map: Literal["last", "every"] = "last"
    """Of attention, values and states: last, the last layer from the teacher's last (MiniLM); every, the m-th of M
    layers from the teacher's m·N/M-th (TinyBERT)."""
    layers: tuple[int, ...] = ()
    """Instead: for each layer of the student the teacher's that it learns from, from 0; -1: none."""
    beta: float = 0.0
    """Which divergence the teacher's term is: 0, KL(teacher ‖ student); 1, KL(student ‖ teacher), the reverse; between,
    the generalised Jensen-Shannon divergence (Agarwal et al. 2024)."""
    top_k: int = 0
    """Compare the teacher's likeliest tokens one by one and all others as one; 0: all tokens. What the teacher said is
    then kept in run.dir/teacher, and it is not asked again."""

    def __post_init__(self) -> None:
        if not 0.01 <= self.temperature <= 100:
            raise ConfigError(f"teacher.temperature: expected 0.01 to 100, got {self.temperature}")
        if not 0 <= self.share <= 1:
            raise ConfigError(f"teacher.share: expected a share from 0 to 1, got {self.share}")
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"teacher.beta: expected a number from 0 to 1, got {self.beta}")
        for name in ("hidden", "top_k", "attention", "values", "relation_heads", "states"):
            if getattr(self, name) < 0:
                raise ConfigError(f"teacher.{name}: expected at least 0, got {getattr(self, name)}")
        if self.layers and not self.looks_inside:
            raise ConfigError("teacher.layers: read with teacher.attention, teacher.values or teacher.states; set one")

    @property
    def looks_inside(self) -> bool:
        """Whether layers are compared."""
        return bool(self.attention or self.values or self.states)


@dataclass(frozen=True)
class OnPolicyConfig:
    """Batches that the student writes itself, by the engine and its weights of now (GKD, Agarwal et al. 2024)."""

    share: float = 0.0
    """Share of the batches that are the student's own text, spread evenly (the paper's λ); 0: none."""
    prompts: str = ""
    """Prompts (.jsonl) as `align grpo` reads them; empty: the beginnings of the training rows."""
    prompt_tokens: int = 16
    """Tokens of such a beginning."""
    max_tokens: int = 64
    """Most tokens that are written behind a prompt."""
    temperature: float = 1.0
    """Temperature of the writing."""
    batches: int = 1
    """Batches that are written at once; those after the first are of weights that have moved on since."""
    slots: int = 16
    """Texts that the engine writes side by side."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"on_policy.share: expected a share from 0 to 1, got {self.share}")
        for name in ("prompt_tokens", "max_tokens", "batches", "slots"):
            if getattr(self, name) < 1:
                raise ConfigError(f"on_policy.{name}: expected at least 1, got {getattr(self, name)}")
        if not 0.01 <= self.temperature <= 100:
            raise ConfigError(f"on_policy.temperature: expected a number in 0.01..100, got {self.temperature}")


@dataclass(frozen=True)
class DistillConfig(PretrainConfig):
    """Train a student on text beside a teacher: a pre-training whose loss listens to another model too."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    on_policy: OnPolicyConfig = field(default_factory=OnPolicyConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.on_policy.share:
            return
        train = self.train
        for key, wrong, why in (
            ("objective", self.objective != "causal", "causal: a student writes from left to right"),
            ("teacher.share", self.teacher.share == 0, "a share above 0: nothing else is learned of own text"),
            ("train.precision", train.precision != "float32", "float32: engine and training must agree"),
            ("train.micro_rows", train.micro_rows == "auto", "a number: batches come from rollouts"),
            ("train.dropout", train.dropout.any or self.model.dropout > 0, "none: engine and training must agree"),
            ("train.compile", train.compile != "off", "off"),
        ):
            if wrong:
                raise ConfigError(f"{key}: expected {why}, with on_policy.share above 0")
