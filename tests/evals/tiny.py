"""A tiny model folder with a tokenizer that can chat."""

from __future__ import annotations

from pathlib import Path

import torch

from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import save_model
from fledge.model.init import initialise
from fledge.model.transformer import build
from fledge.text.tokenizer import Tokenizer, byte_level

CONTEXT = 48


def save_tiny(folder: Path, seed: int = 1, noise: float = 0.3, tokenizer: Tokenizer | None = None) -> Path:
    """A random LLaMA shape of context 48; with noise 0 every weight is 0, so that every token is equally likely."""
    tokenizer = tokenizer or byte_level()
    shape = ShapeConfig(
        "llama", width=32, layers=2, heads=4, kv_heads=2, context_tokens=CONTEXT, vocab_size=tokenizer.vocab_size
    )
    model = initialise(build(family("llama").build(shape), "cpu"), seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if noise:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * noise)
            else:
                parameter.zero_()
    save_model(model, folder, tokenizer)
    return folder


def save_family(folder: Path, name: str) -> None:
    """A random model of another family, with the tokenizer of `save_tiny`."""
    tokenizer = byte_level()
    shape = ShapeConfig(name, width=16, layers=1, heads=2, context_tokens=32, vocab_size=tokenizer.vocab_size)
    save_model(initialise(build(family(name).build(shape), "cpu"), 1), folder, tokenizer)
