"""A reward model's folder."""

from __future__ import annotations

from pathlib import Path

from fledge.model.folder import save_model
from fledge.model.retask import retask
from fledge.model.transformer import Transformer
from fledge.text.tokenizer import Tokenizer


def reward_model(folder: Path, model: Transformer, tokenizer: Tokenizer) -> Path:
    """`model`'s body with a random head of one number."""
    save_model(retask(model, "sequence", 1, seed=3), folder, tokenizer)
    return folder
