"""A tuned model as its base: the adapters stand aside for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from fledge.model.transformer import Transformer
from fledge.nn.adapter import Adapter
from fledge.tune.attach import ATTRIBUTES

NAMES = ("adapter", *ATTRIBUTES.values())


@contextmanager
def without_adapters(model: Transformer) -> Iterator[Transformer]:
    """While in it, `model` computes what its base does; afterwards its adapters are where they were."""
    aside: list[tuple[nn.Module, str, Adapter]] = []
    for part in list(model.modules()):
        for name in NAMES:
            adapter = getattr(part, name, None)
            if isinstance(adapter, Adapter):
                aside.append((part, name, adapter))
                setattr(part, name, None)
    try:
        yield model
    finally:
        for part, name, adapter in aside:
            setattr(part, name, adapter)
