"""Tensors that a file holds twice: copies of the embedding, and an output matrix that is the embedding or is not."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

import torch

from fledge.errors import CheckpointError
from fledge.model.config import ModelConfig
from fledge.model.families.family import Family
from fledge.model.safetensors_file import SafetensorsFile

Where = dict[str, SafetensorsFile]


def as_stored(own_family: Family, config: ModelConfig, where: Where, quantized: Set[str] = frozenset()) -> ModelConfig:
    """`config`, untied where the file's output matrix differs from its embedding: transformers 5 writes T5's
    `tie_word_embeddings` as true whatever the weights are, and goes by the values itself when it reads. One of the
    `quantized` matrices is never an embedding."""
    if not (config.tie and config.lm):
        return config
    names = {w.ours: w.theirs for w in own_family.weights(replace(config, tie=False)) if len(w.ours) == 1}
    output = stored(own_family, where, names.get(("output.weight",), ""))
    embedding = embedding_name(own_family, where, names.get(("embedding.weight",), ""))
    if output not in quantized and (not output or not embedding or equal(where, output, embedding)):
        return config
    return replace(config, tie=False)


def embedding_name(own_family: Family, where: Where, canonical: str) -> str:
    """The name under which the file holds `canonical`, itself or a copy; empty if it holds neither."""
    candidates = (canonical, *(copy for copy, whose in own_family.copies.items() if whose == canonical))
    return next(filter(None, (stored(own_family, where, name) for name in candidates)), "")


def stored(own_family: Family, where: Where, name: str) -> str:
    """`name` as the file spells it, with or without the family's prefix; empty if it isn't there."""
    return next((spelling for spelling in (name, name.removeprefix(own_family.prefix)) if spelling in where), "")


def equal(where: Where, one: str, other: str) -> bool:
    """Whether two tensors of the files have the same shape and values."""
    if where[one].entries[one].shape != where[other].entries[other].shape:
        return False
    return torch.equal(where[one].read(one), where[other].read(other))


def check_copy(where: Where, copy: str, original: str) -> None:
    """Raise CheckpointError unless two tensors of the files are the same."""
    if not equal(where, copy, original):
        raise CheckpointError(
            f"{copy}: expected a copy of {original}, got other values; a model here has one embedding for all"
        )
