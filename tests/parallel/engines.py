"""Engines that several processes share, for tests: what one answers, and faults to plant in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

from torch import Tensor

from fledge.engine import plan
from fledge.engine.config import EngineConfig
from fledge.engine.request import Completion, Request
from fledge.model import transformer
from fledge.parallel import stages, tensor
from fledge.parallel.config import SplitConfig
from tests.parallel.fleet import Ended, ended

Answered = tuple[list[list[Completion]], dict[str, float], int]
BOX, LAYERS = tensor.Cut.box, stages.layers_of


def first_part(cut: Any, shape: tuple[int, ...], index: int) -> Any:
    """Everybody's part is the first one, where parts are alike."""
    return BOX(cut, shape, 0 if len(set(cut.sizes)) == 1 else index)


def other_layers(stage: int, n_stages: int, n_layers: int) -> range:
    """The stages stand in the wrong order."""
    return LAYERS(n_stages - 1 - stage, n_stages, n_layers)


def skips_its_sum(self: Any, x: Tensor) -> Tensor:
    y = self.product(x)
    return y if self.bias is None else y + self.bias


def copies_forgotten(pair: object) -> None:
    """The others are not told which blocks to copy."""


FAULTS: dict[str, Callable[[], Any]] = {
    "": nullcontext,
    "no sum": lambda: mock.patch.object(tensor.PackedRows, "forward", skips_its_sum),
    "wrong slice": lambda: mock.patch.object(tensor.Cut, "box", first_part),
    "no copies": lambda: mock.patch.object(plan, "pair_of", copies_forgotten),
    "wrong stage": lambda: mock.patch.object(stages, "layers_of", other_layers),
}


def answered(folder: str, requests: list[Request], config: EngineConfig, fault: str = "") -> Ended:
    """(what rank 0's engine said to the requests, twice one after the other, its counters and blocks; the error)."""
    from fledge.engine.ranks import shared_engine

    def act() -> Answered | None:
        with FAULTS[fault](), shared_engine(folder, config) as engine:
            if engine is None:
                return None
            said = [engine.complete(requests) for _ in range(2)]
            return said, engine.counters(), engine.runner.n_blocks

    return ended(act)


def blocks_by_rank(folder: str, free: list[int]) -> int:
    """How many blocks this process's cache has where rank n of two finds `free[n]` bytes."""
    from fledge.device import place_of_process
    from fledge.engine.shared import load_shared
    from fledge.parallel.group import joined

    config = EngineConfig(parallel=SplitConfig(tensor=2), n_slots=100)
    with (
        mock.patch.object(transformer, "available_bytes", lambda device: free[place_of_process().rank]),
        joined(config.parallel, "cpu") as group,
    ):
        return load_shared(folder, config, group)[0].cache.n_blocks
