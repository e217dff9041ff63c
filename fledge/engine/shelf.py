"""The adapters that stand beside an engine's model, by the names that requests give. Imports no torch.

Each time one is loaded it gets a key of its own, which is what rows and blocks of cache carry: an adapter that is
loaded again under its name shares nothing with the one before, and requests that began with that finish with it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from fledge.engine.row import RunnerFace
from fledge.errors import RequestError

if TYPE_CHECKING:
    from fledge.engine.request import Request
    from fledge.tune.changes import Changes


class Shelf:
    """Adapters of one runner."""

    def __init__(self, runner: RunnerFace):
        self.runner = runner
        self.keys: dict[str, str] = {}  # name -> key
        self.holders: Counter[str] = Counter()  # key -> requests that are under way
        self.numbers = itertools.count(1)

    def load(self, name: str, changes: Changes) -> None:
        """Requests that name it are answered with it from now on. Raises ConfigError for changes that the model has no
        maps for, and then nothing has changed."""
        key = f"{name}#{next(self.numbers)}"
        self.runner.add_adapter(key, changes)
        if name in self.keys:
            self.unload(name)
        self.keys[name] = key

    def unload(self, name: str) -> None:
        """No new request gets it; its memory is free when the last that has it ends. Raises RequestError."""
        self.check(name)
        key = self.keys.pop(name)
        if not self.holders[key]:
            self.forget(key)

    def check(self, name: str) -> None:
        if name not in self.keys:
            known = ", ".join(sorted(self.keys)) or "none is loaded"
            raise RequestError(
                f"adapter: expected the name of one that is loaded ({known[:200]}), got {name!r:.60}",
                "model",
                "model_not_found",
            )

    def resolved(self, request: Request) -> Request:
        """The request with the key of its adapter in place of the name. Raises RequestError for an unknown one."""
        if not request.adapter:
            return request
        self.check(request.adapter)
        return replace(request, adapter=self.keys[request.adapter])

    def hold(self, key: str) -> None:
        """A request with this adapter begins."""
        if key:
            self.holders[key] += 1

    def let_go(self, key: str) -> None:
        """One has ended."""
        if not key:
            return
        self.holders[key] -= 1
        if not self.holders[key] and key not in self.keys.values():
            self.forget(key)

    def forget(self, key: str) -> None:
        del self.holders[key]
        self.runner.remove_adapter(key)
