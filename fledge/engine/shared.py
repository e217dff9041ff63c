"""`SharedRunner`: one process's part of a model that several answer with together.

Rank 0 has the engine: it tells the others what each pass is (plan.py), computes its own part beside them and has the
logits. Every process holds the same blocks of cache, of its own heads and layers, so one table serves all. B rows,
T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fledge.engine.config import EngineConfig
from fledge.engine.plan import Plan, hear, tell, unpacked
from fledge.engine.row import Row
from fledge.engine.runner import Runner, fitted, refuse_encoders
from fledge.errors import CheckpointError, ConfigError, RankError
from fledge.model.folder import Stored, stored_in
from fledge.model.transformer import Transformer, build, new_cache
from fledge.nn.cache import KeyValueCache
from fledge.nn.native.library import build_in_background
from fledge.parallel.fit import check_split
from fledge.parallel.group import Group
from fledge.parallel.mesh import Mesh, make_mesh
from fledge.parallel.parts import parts_of
from fledge.parallel.stages import keep_stage
from fledge.parallel.tensor import Cut, split_tensor
from fledge.text.tokenizer import Tokenizer
from fledge.tune.changes import Changes
from fledge.tune.folder import is_adapter
from fledge.tune.load import find_served, served_stop_ids, served_tokenizer

WHY_TORCH = "several processes share its weights"


class SharedRunner(Runner):
    """On rank 0 the engine's runner; the others `follow` it. `model` is this process's part (see `own_part`).

    An error in a pass ends all processes: they can't agree any more on who sends what. `forward` then raises RankError,
    or PeerError where another process says why.
    """

    def __init__(self, model: Transformer, group: Group, mesh: Mesh, config: EngineConfig, room: tuple[int, int]):
        self.group, self.mesh, self.pipe = group, mesh, mesh["pipe"]
        self.forgotten: list[bytes] = []  # sources that the others have not been told to forget yet
        self.underway: list[tuple[Any, Tensor]] = []  # sends and receipts of this pass
        super().__init__(model, config.n_slots, *room, config.cache_dtype, config.reach_tokens)

    def new_cache(self, longest: int, cache_tokens: int, int8: bool) -> KeyValueCache:
        """As many blocks as the process with the least memory can have."""
        here = int(os.environ.get("LOCAL_WORLD_SIZE") or self.group.world_size)
        return new_cache(self.model, self.n_slots, longest, cache_tokens, int8, here, self.group.least)

    def compile(self) -> None:
        self.why_torch = WHY_TORCH

    def forward(self, rows: list[Row]) -> list[Tensor]:
        plan = Plan(tuple(rows), tuple(self.forgotten))
        self.forgotten.clear()
        return self.together(plan, lambda: self.torch_forward(rows))

    def pulse(self) -> None:
        """While there is nothing to compute: the others don't wait in vain."""
        self.together(Plan(), list)

    def finish(self) -> None:
        """The others need not follow any longer."""
        self.together(Plan(last=True), list)

    def together(self, plan: Plan, compute: Callable[[], list[Tensor]]) -> list[Tensor]:
        try:
            tell(plan.packed(self.cache.sources))
            return compute()
        except Exception as error:
            raise self.group.reason(error) or RankError(
                f"rank 0: a pass failed ({type(error).__name__}: {error!s:.200}), and its processes end; "
                f"{self.group.config.remedy}"
            ) from error

    def follow(self) -> None:
        """On the other ranks: what rank 0 tells, until it has finished. Raises what a pass raises, and RuntimeError
        when rank 0 is gone."""
        while not (plan := unpacked(hear())).last:
            for name in plan.forgotten:
                super().forget(name)
            if plan.rows:
                self.torch_forward(list(plan.rows))

    def torch_forward(self, rows: list[Row]) -> list[Tensor]:
        results = super().torch_forward(rows)
        for work, _ in self.underway:
            work.wait()
        self.underway.clear()
        return results

    def logits(self, rows: list[Row], last_only: bool) -> Tensor:
        """As of a whole model on rank 0; elsewhere of no use. On rank 0 of a pipe they are there when the pass ends, so
        that a stage reads the next row meanwhile."""
        pipe, (tokens, layout) = self.pipe, self.pass_of(rows)
        if pipe.index:
            given = torch.empty(*tokens.ids.shape, self.model.config.stack.width)
            dist.recv(given, pipe.ranks[pipe.index - 1], group=pipe.group)
            tokens = replace(tokens, embeds=given)
        hidden = self.model.hidden(tokens, layout, self.cache)
        if pipe.index == pipe.size - 1:
            logits = self.told_by(hidden, last_only)
            if pipe.index and not self.mesh.place["tensor"]:
                self.send(logits, 0)
            return logits
        self.send(hidden, pipe.index + 1)
        config = self.model.config
        n_told = 1 if last_only else tokens.ids.shape[1]
        logits = torch.empty(len(rows), n_told, config.tokens or config.vocab_size)
        if not self.group.rank:
            self.underway.append((dist.irecv(logits, pipe.ranks[-1], group=pipe.group), logits))
        return logits

    def send(self, x: Tensor, stage: int) -> None:
        """Begin to send; the tensor is kept until the pass ends."""
        x = x.contiguous()
        self.underway.append((dist.isend(x, self.pipe.ranks[stage], group=self.pipe.group), x))

    def forget(self, source_name: bytes) -> None:
        super().forget(source_name)
        self.forgotten.append(source_name)

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        raise CheckpointError("weights: expected a model of one process, got a shared one; load it anew")

    def read_adapter(self, folder: str) -> Changes:
        raise ConfigError("adapters: expected a model of one process, got a shared one; merge it (fledge merge)")


def load_shared(path: str | Path, config: EngineConfig, group: Group) -> tuple[SharedRunner, Tokenizer, frozenset[int]]:
    """Runner of this process's part, tokenizer and stop ids of a model folder or a run folder. Of the weights each
    process reads and holds its own part; for a moment one whole tensor. Raises ConfigError for what can't be shared,
    before a weight is read, and CheckpointError."""
    refuse(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    build_in_background()
    folder = find_served(path)
    if is_adapter(folder):
        raise ConfigError(f"{folder}: expected a model folder for several processes, got an adapter's; merge it first")
    tokenizer = served_tokenizer(folder)
    with ExitStack() as files:
        stored = stored_in(folder, files)
        sizes = config.parallel.sizes(group.world_size)
        if stored.packed:
            raise ConfigError(f"{folder}: expected floating-point weights for several processes, got quantized ones")
        check_split(stored.config, sizes)
        mesh = make_mesh(group.rank, sizes, group.timeout_seconds)
        model = build(stored.config)
        refuse_encoders(model)
        room = fitted(model, config)
        read_part(model, own_part(model, mesh), mesh, stored)
    return SharedRunner(model, group, mesh, config, room), tokenizer, served_stop_ids(folder, tokenizer)


def refuse(config: EngineConfig) -> None:
    """Raises ConfigError for settings that don't go with several processes."""
    if config.deterministic:
        raise ConfigError(f"deterministic: expected the compiled kernels to compute the model, got torch: {WHY_TORCH}")
    if config.draft not in ("", "lookup"):
        raise ConfigError(f"draft: expected lookup or nothing for several processes, got {config.draft!r:.60}")


def own_part(model: Transformer, mesh: Mesh) -> dict[str, Cut]:
    """Keep this process's part of a built model, in place; how its parameters were cut, by name."""
    cuts: dict[str, Cut] = {}
    if mesh["tensor"].size > 1:
        cuts, _ = split_tensor(model, mesh["tensor"], sequence=False)
    if mesh["pipe"].size > 1:
        assert model.decoder is not None
        keep_stage(model, model.decoder, mesh["pipe"], model.config.lm and model.config.tie)
    return cuts


@torch.no_grad()
def read_part(model: Transformer, cuts: Mapping[str, Cut], mesh: Mesh, stored: Stored) -> None:
    """Values for a model without memory, cut as `cuts` say. Raises CheckpointError for one that the files lack."""
    model.to_empty(device="cpu").requires_grad_(False)
    here = dict(model.named_parameters())
    whole = {name: ((0,) * len(stored.shapes[name]), stored.shapes[name]) for name in here}
    own = {name: cut.box(stored.shapes[name], mesh.place["tensor"]) for name, cut in cuts.items() if name in here}
    for name, part in parts_of(stored, whole | own):
        assert math.prod(part.shape) == here[name].numel()
        here.pop(name).copy_(part)
    if here:
        raise CheckpointError(f"weights: expected values for {min(here)!r}, found none; download the folder again")
