"""What `fledge embed` and `fledge probe` compute. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fledge.config import check_threads
from fledge.data.task_config import TaskDataConfig
from fledge.engine.purpose import check_pooling
from fledge.errors import ConfigError


@dataclass(frozen=True)
class EmbedConfig:
    """A vector for each text of a file."""

    model: str
    """Folder of sentence-transformers, of an encoder, or with a pooling of any model; or a run folder."""
    texts: str = ""
    """File with a text a line, or with JSON lines (.jsonl: objects or strings), each also compressed (.gz)."""
    out: Path = Path("vectors.npy")
    """NumPy file to write: float32, a row a text in the file's order."""
    column: str = ""
    """Key of the text in JSON lines; empty: text, sentence, sentence1, premise…"""
    prompt: str = ""
    """Name of one of the folder's prompts, to stand before each text; empty: its default one, where it has one."""
    pooling: str = ""
    """How states become a vector, of length 1: cls, max, mean, mean_sqrt_len_tokens, weightedmean or lasttoken. Empty:
    as a sentence-transformers folder says, mean for another encoder; a decoder needs one."""
    batch_tokens: int = 1024
    """Tokens of one pass at most, padding counted; a longer text passes alone."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"
    """Where to compute."""
    threads: int = 0
    """CPU threads; 0 is one for each core."""

    def __post_init__(self) -> None:
        check_pooling(self.pooling)
        check_threads(self.threads)
        if self.batch_tokens < 1:
            raise ConfigError(f"batch_tokens: expected at least 1, got {self.batch_tokens}")


@dataclass(frozen=True)
class ProbeConfig:
    """Logistic regression on the frozen states of a model, as a task head."""

    model: str
    """Model folder or run folder, of sentence-transformers or not."""
    out: Path = Path("out/probe")
    """Model folder to write: the model with a head of labels, for predict and serve."""
    data: TaskDataConfig = field(default_factory=TaskDataConfig)
    """Labelled texts."""
    pooling: Literal["", "cls", "mean", "lasttoken"] = ""
    """Whose states the head reads; empty: as a sentence-transformers folder says, the mean for another encoder, the
    last token's for a decoder."""
    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    """Inverse strengths of the penalty (scikit-learn's C) to choose from by cross-validation of the training rows."""
    folds: int = 5
    """Parts of that cross-validation."""
    class_weights: Literal["none", "balanced"] = "none"
    """How much a row of each label counts: alike, or balanced, by rows / (labels · rows of this label)."""
    vectors: Path = Path("out/vectors")
    """Folder where vectors are kept, by digest of model and texts, for the next time."""
    seed: int = 0
    """Decides the folds, and what is held out without data.val."""
    threads: int = 0
    """CPU threads; 0 is one for each core."""

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if not self.strengths or min(self.strengths) <= 0:
            raise ConfigError(f"strengths: expected numbers above 0, got {str(self.strengths)[:60]}")
        if self.folds < 2:
            raise ConfigError(f"folds: expected at least 2, got {self.folds}")
