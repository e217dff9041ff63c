"""Tiny models whose maps can be quantized, and text for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fledge.batch import OneDocument, one_document
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.init import initialise
from fledge.model.transformer import Transformer, build
from fledge.text.tokenizer import byte_level

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "with", "old", "hat", "in", "rain")


def tiny(name: str = "llama", width: int = 64, layers: int = 2, noise: float = 0.1, **more: Any) -> Transformer:
    """A random model of a family; its norms and biases are no ones and zeros."""
    more = {"heads": 4, "context_tokens": 64, "vocab_size": byte_level().vocab_size, **more}
    shape = ShapeConfig(name, width=width, layers=layers, **more)
    model = initialise(build(family(name).build(shape), "cpu"), 1)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * noise)
    return model.eval()


def ids(n_rows: int = 4, n_tokens: int = 24, seed: int = 0) -> torch.Tensor:
    vocab = byte_level().vocab_size
    return torch.randint(vocab, (n_rows, n_tokens), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: Transformer, rows: torch.Tensor | None = None) -> torch.Tensor:
    return model(one_document(ids() if rows is None else rows), OneDocument())


def text_file(path: Path, n_words: int = 1500, seed: int = 0) -> Path:
    """Words in a random order, so that every byte that can come has been seen."""
    chosen = torch.randint(len(WORDS), (n_words,), generator=torch.Generator().manual_seed(seed))
    path.write_text(" ".join(WORDS[i] for i in chosen.tolist()), encoding="utf-8")
    return path
