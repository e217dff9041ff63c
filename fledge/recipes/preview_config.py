"""What `fledge data preview` shows. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fledge.errors import ConfigError

PreviewedVerb = Literal["pretrain", "sft", "finetune", "align dpo"]


@dataclass(frozen=True)
class PreviewConfig:
    """Show rows of training as the verb that trains on them makes them: its batches, targets and weights."""

    path: str
    """A training verb's YAML file, a run folder (its run.yaml), or data: a dataset, text, JSON lines, a table."""
    changes: tuple[str, ...] = ()
    """Keys of the training verb over the file's, as key=value. On the command line they stand as they do behind the
    training verb: fledge data preview chats.jsonl model.path=out/base."""
    verb: PreviewedVerb | None = None
    """The training verb; unset: by the keys of the file and what the data's first row holds."""
    rows: int = 3
    """How many rows are shown."""
    first_row: int = 0
    """Which is the first, counted through training in its order; of the split val through a validation."""
    split: Literal["train", "val"] = "train"
    """Rows of training, or held-out ones."""
    count_rows: int = 1000
    """Rows, from the first of training (or validation) on, over which tokens are counted; no more than an epoch."""
    ids: bool = False
    """Show each token's id behind it."""
    tokens: int = 512
    """Most tokens of a row that are printed; JSON and page hold them all."""
    html: Path | None = None
    """Write the rows as one self-contained page to this file too."""

    def __post_init__(self) -> None:
        for name, least in (("rows", 0), ("first_row", 0), ("count_rows", 0), ("tokens", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected at least {least}, got {getattr(self, name)}")
