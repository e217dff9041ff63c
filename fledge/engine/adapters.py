"""Adapters beside one packed model: each row of a pass goes through its own, by name, or through the base alone.

The compiled kernels add a row's changes where they have its product. On torch a pass has one adapter, and hooks on the
packed maps add its changes: rows of different adapters go one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fledge.engine.native import NativeDecoder
from fledge.errors import ConfigError
from fledge.model.transformer import Transformer
from fledge.tune.changes import Change, Changes
from fledge.tune.sites import EMBEDDING


class Adapters:
    """Those of one runner, by key. `decoder` computes the model where the kernels know it."""

    def __init__(self, model: Transformer, decoder: NativeDecoder | None):
        self.model, self.decoder = model, decoder
        self.known: dict[str, dict[str, list[Change]]] = {}  # by module
        self.rows: dict[str, tuple[Tensor, Tensor]] = {}
        self.hooked: set[str] = set()
        self.current = ""

    def add(self, key: str, changes: Changes) -> None:
        """Raises ConfigError for changes of maps that the model doesn't have."""
        at: dict[str, list[Change]] = {}
        for change in changes.maps:
            if not has_module(self.model, change.path):
                raise ConfigError(f"adapter: expected maps of the model, got a change of {change.path}")
            at.setdefault(change.path, []).append(change)
        if self.decoder is not None:
            self.decoder.add_adapter(key, at, changes.embedding)
        self.known[key] = at
        if changes.embedding is not None:
            self.rows[key] = changes.embedding
        if self.decoder is None:
            for path in {*at, *([EMBEDDING] if changes.embedding is not None else [])} - self.hooked:
                self.hook(path)

    def remove(self, key: str) -> None:
        self.known.pop(key, None)
        self.rows.pop(key, None)
        if self.decoder is not None:
            self.decoder.adapters.pop(key, None)

    @contextmanager
    def chosen(self, key: str) -> Iterator[None]:
        """While in it, torch computes with this adapter."""
        self.current = key
        try:
            yield
        finally:
            self.current = ""

    def hook(self, path: str) -> None:
        """Have torch's pass through a module changed by whichever adapter is chosen."""
        module = self.model.get_submodule(path)
        self.hooked.add(path)

        def before(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
            changes = self.known.get(self.current, {}).get(path, ())
            scales = [change.before for change in changes if change.before is not None]
            return (given[0] * scales[0], *given[1:]) if scales else None

        def after(_: nn.Module, given: tuple[Any, ...], y: Tensor) -> Tensor:
            if path == EMBEDDING:
                rows = self.rows.get(self.current)
                return y if rows is None else y + rows[0][given[0]] @ rows[1]
            changes = self.known.get(self.current, {}).get(path, ())
            return changed(given[0], y, changes) if changes else y

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)


def changed(x: Tensor, y: Tensor, changes: list[Change] | tuple[Change, ...]) -> Tensor:
    """What changes make of y [..., O], which a map gave of x [..., I]."""
    y = y.clone()
    for change in changes:
        part = y[..., change.begin : change.begin + change.size]
        if change.factor is not None:
            part *= change.factor
        if change.down is not None and change.up is not None:
            part += (x @ change.down.t()) @ change.up
        if change.offset is not None:
            part += change.offset
    return y


def has_module(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True
