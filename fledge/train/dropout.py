"""What dropout asks of the loop: whether there is any, and the seed of each draw."""

from __future__ import annotations

from fledge.model.transformer import Transformer
from fledge.nn.adapter import Adapter
from fledge.train.config import TrainConfig


def draws_dropout(model: Transformer, train: TrainConfig) -> bool:
    """Whether a pass in training leaves anything out by chance."""
    dropped = train.dropout.any or any(stack.dropout for stack in model.config.stacks.values())
    return dropped or any(isinstance(part, Adapter) and part.dropout for part in model.modules())


def dropout_seed(seed: int, drawn: int, start: int, stage: int = 0) -> int:
    """Seed of a micro-batch's dropout: a function of (seed, batch, first row, stage of a pipe) and nothing else."""
    mixed = (seed * 0x9E3779B97F4A7C15 + drawn * 0xBF58476D1CE4E5B9 + start * 0x94D049BB133111EB) & (2**64 - 1)
    mixed ^= stage * 0xD6E8FEB86659FD93 & (2**64 - 1)
    mixed ^= mixed >> 31
    return mixed & (2**63 - 1)
