"""A run shared by several processes: what the loop asks of each of them.

The order in which a built and loaded model is changed: split along tensor and pipe, then (by the loop) checkpointed and
compiled, then sharded.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fledge.batch import Batch
from fledge.errors import CheckpointError
from fledge.log import say
from fledge.model.folder import put_parameter
from fledge.model.transformer import Transformer, build
from fledge.nn.adapter import LowRank
from fledge.optim.config import GroupConfig
from fledge.optim.groups import members
from fledge.optim.optimizer import gradients
from fledge.optim.part import local
from fledge.parallel.group import Group
from fledge.parallel.mesh import Mesh, make_mesh
from fledge.parallel.parts import weight_parts
from fledge.parallel.tensor import split_tensor
from fledge.train.clock import Clock
from fledge.train.config import TrainConfig
from fledge.train.contents import Beside, Contents, Share
from fledge.train.parallel.data import check_rows, own_rows, sum_over
from fledge.train.parallel.estimate import counted, memory, traffic
from fledge.train.parallel.fit import check_model, check_tuned
from fledge.train.parallel.pieces import EVERYWHERE, Pieces, split_key, whole_parameters
from fledge.train.parallel.pipe import Pipe, split_pipe
from fledge.train.parallel.shard import hand_out, reshard, shard_fully, share_out
from fledge.train.parallel.single import Single
from fledge.train.ranks import ranks_of
from fledge.train.recipe import Recipe
from fledge.train.slices import Slice


def parallelise(recipe: Recipe, train: TrainConfig, group: Group, device: torch.device) -> Single:
    """Split `recipe.model`, built and loaded (or without memory, to be restored), in place. Raises ConfigError for a
    model or rows that can't be."""
    if group.alone:
        return Single(recipe.model)
    check_rows(train, group.world_size)
    sizes = train.parallel.sizes(group.world_size)
    check_model(recipe.model.config, train, sizes)
    return Many(recipe, train, group, make_mesh(group.rank, sizes, group.timeout_seconds), device)


class Many(Single):
    """One process's share of the run."""

    def __init__(self, recipe: Recipe, train: TrainConfig, group: Group, mesh: Mesh, device: torch.device):
        super().__init__(recipe.model)
        self.group, self.mesh, self.config, self.turns = group, mesh, train.parallel, 0
        self.ranks, self.device = ranks_of(group), device
        members(self.model, train.optimizer, train.weight_decay, train.groups)  # a wrong group is told of the whole
        self.trained = {name: p.requires_grad for name, p in self.model.named_parameters()}
        self.restored = not self.model.embedding.weight.is_meta  # what is no model folder was read whole
        self.beside = not self.trained.keys() <= dict(build(self.model.config).named_parameters()).keys()
        check_tuned(self.beside, all(self.trained.values()), mesh.sizes)
        self.part: Pieces = Pieces(mesh, {name: tuple(p.shape) for name, p in self.model.named_parameters()})
        self.partial: set[str] = set()
        self.pipe: Pipe | None = None
        if mesh["tensor"].size > 1:
            self.part.cuts, self.partial = split_tensor(self.model, mesh["tensor"], self.config.sequence)
        if mesh["pipe"].size > 1:
            self.pipe = split_pipe(self.model, mesh, self.config.schedule)
        self.stage = mesh.place["pipe"]
        self.fully = mesh["shard"].size > 1 and self.config.shard_stage > 1
        self.sketch = emptied(self.model) if self.fully and self.beside and group.rank == 0 else None
        self.named = self.names()
        self.introduce(train)

    def introduce(self, train: TrainConfig) -> None:
        """Say what each process will hold and send."""
        config, sizes, held = self.model.config, self.mesh.sizes, counted(self.model)
        rows = len(self.rows(train.rows))
        micro_rows = int(train.micro_rows or rows)
        tokens = (train.row_tokens or config.context_tokens) * micro_rows
        bytes_held = sum(memory(held, sizes["shard"], self.config.shard_stage).values())
        sent = sum(traffic(config, self.config, sizes, held, tokens, rows // micro_rows).values())
        mesh = " x ".join(f"{axis} {sizes[axis]}" for axis in ("data", "shard", "tensor", "pipe"))
        say(
            f"{self.group.world_size} processes ({mesh}): each holds {bytes_held / 2**20:,.1f} MiB of weights, "
            f"gradients and moments, and sends about {sent / 2**20:,.1f} MiB a step"
        )

    def names(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def shard(self) -> None:
        shard = self.mesh["shard"]
        if self.fully:
            self.part.lengths = shard_fully(self.model, self.mesh, self.device.type, self.config.shard_stage)
        elif shard.size > 1:
            self.part.owners = share_out(self.named, shard.size)
        self.named = self.names()

    @torch.no_grad()
    def restore(self, folder: Path) -> None:
        """Raises CheckpointError for a folder that lacks a weight."""
        if self.restored:
            return
        self.model.to_empty(device=self.device)
        self.named = self.names()
        self.fill(folder)

    @torch.no_grad()
    def go_back(self, folder: Path, load_at: Callable[[Path], Transformer]) -> None:
        if not self.beside:
            self.fill(folder)
            return
        found = dict(load_at(folder).named_parameters())
        for name, parameter in self.model.named_parameters():
            local(parameter).copy_(self.part.own(name, found[name]))

    def fill(self, folder: Path) -> None:
        """This process's part of the weights in a folder, into its own. Raises CheckpointError."""
        here = {name: local(p) for name, p in self.model.named_parameters()}
        wanted = {name: self.part.box(name, self.part.shapes[name]) for name in here}
        for name, part in weight_parts(folder, wanted):
            here.pop(name).copy_(part)
        if here:
            raise CheckpointError(f"{folder}: expected values for {min(here)!r}, found none; use an earlier checkpoint")

    def rows(self, n_rows: int) -> range:
        return own_rows(n_rows, self.mesh["batch"])

    def groups(self, groups: Sequence[GroupConfig]) -> Sequence[GroupConfig]:
        first = (next((g for g in groups if fnmatchcase(name, g.pattern)), None) for name in self.named)
        asked = {id(group) for group in first if group is not None}
        return [group for group in groups if id(group) in asked]

    def weights(self, recipe: Recipe, batch: Batch) -> dict[str, float]:
        with self.adding_up(recipe):
            return recipe.weights(batch)

    def passes(
        self,
        starts: Sequence[int],
        micro: Callable[[int], Batch],
        objective: Callable[[Batch], Tensor | None],
        clock: Clock,
    ) -> None:
        if self.pipe is None:
            super().passes(starts, micro, objective, clock)
        else:
            self.pipe.passes(starts, micro, objective, clock)

    @torch.no_grad()
    def reduce_gradients(self) -> None:
        """Sums over the processes that read other rows, saw other heads or tokens, or hold the same weight at another
        stage. A parameter that saw no data here has a gradient of zeros."""
        for parameter in self.named.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        found = {name: local(p.grad) for name, p in self.named.items() if p.grad is not None}
        sum_over([found[name] for name in sorted(self.partial & found.keys())], self.mesh["tensor"])
        if self.pipe is not None:
            for line, names in self.pipe.held_twice.items():
                sum_over([found[name] for name in names], line)
        if not self.fully:
            sum_over(found.values(), self.mesh["batch"])
        for name in self.part.owners:
            if not self.part.moves(name):
                self.named[name].grad = None

    def terms(self, found: dict[str, float], names: Sequence[str]) -> dict[str, float]:
        counts = self.mesh.place["tensor"] == 0
        return dict(zip(names, self.group.summed([found.get(n, 0.0) if counts else 0.0 for n in names]), strict=True))

    def norm(self, parameters: list[Tensor]) -> float:
        """Every part of a gradient counts once, on the first process that has it."""
        names = {id(parameter): name for name, parameter in self.named.items()}
        total = 0.0
        for parameter, gradient in zip(parameters, gradients(parameters), strict=True):
            if self.counts(names[id(parameter)]):
                total += float(torch.linalg.vector_norm(gradient)) ** 2
        return math.sqrt(self.group.summed([total])[0])

    def counts(self, name: str) -> bool:
        return self.mesh.place["data"] == 0 and self.is_first_with(name)

    def is_first_with(self, name: str) -> bool:
        """Whether of equal copies of what this process holds of a parameter it has the first, but for the data axis."""
        place = self.mesh.place
        shared_out = name in self.part.lengths or name in self.part.owners
        return (
            (shared_out or place["shard"] == 0)
            and (name in self.part.cuts or place["tensor"] == 0)
            and (self.pipe is None or self.pipe.is_first_with(name))
        )

    def stepped(self) -> None:
        if self.part.owners:
            hand_out(self.named, self.part.owners, self.mesh["shard"])

    @torch.no_grad()
    def validated(self, recipe: Recipe, rows: int) -> dict[str, float]:
        try:
            with self.adding_up(recipe):
                return recipe.validate(rows)
        finally:
            if self.fully:
                reshard(self.model)

    @contextmanager
    def adding_up(self, recipe: Recipe) -> Iterator[None]:
        """While in it, `recipe.totals` are those of all processes."""
        kept, recipe.totals = recipe.totals, self.totals
        try:
            yield
        finally:
            recipe.totals = kept

    def totals(self, batches: Sequence[Batch], chosen: list[int], sums: Callable[[Batch], list[float]]) -> list[float]:
        """A validation's sums over all processes, each of which takes batches of its own. All readers go through as
        many, as those that share weights must; one who has none left takes the last again and does not count it."""
        line, device = self.mesh["batch"], self.model.embedding.weight.device
        found: list[float] = []
        for turn in range(0, len(chosen), line.size):
            place = turn + line.index
            batch = batches[chosen[min(place, len(chosen) - 1)]].to(device)
            here = sums(batch) if self.pipe is None else self.pipe.measure(batch, sums)
            if here is not None and place < len(chosen) and self.mesh.place["tensor"] == 0:
                found = [a + b for a, b in zip(found or [0.0] * len(here), here, strict=True)]
        n_sums = self.group.most(len(found))
        return self.group.summed(found or [0.0] * n_sums)

    def contents(self, recipe: Recipe, moments: dict[str, Tensor]) -> Contents:
        """Of what several hold alike each tensor is written by one, those of the data axis in turn."""
        weights = {name: local(p) for name, p in self.model.named_parameters()}
        writers = share_out(weights, self.mesh["data"].size)

        def writes(key: str, tensor: Tensor) -> bool:
            kind, name = split_key(key)
            place, part = self.mesh.place, self.part
            first = self.is_first_with(name) and part.moves(name) and writers[name] == place["data"]
            if kind in EVERYWHERE:
                first &= not (place["shard"] and name in part.lengths or place["tensor"] and name in part.cuts)
            return first and tensor.numel() > 0

        def own(tensors: dict[str, Tensor]) -> list[Slice]:
            return self.part.slices({key: tensor for key, tensor in tensors.items() if writes(key, tensor)})

        if self.beside:
            return Beside(self.writer(recipe), own(moments), self.fully)
        return Share(self.model.config, own(weights), own(moments), recipe.describe)

    def writer(self, recipe: Recipe) -> Recipe | None:
        """On rank 0 the recipe that writes what is trained beside a base, whose own weights aren't gathered for it but
        where lengths of theirs are written too (DoRA)."""
        if not self.fully:
            return recipe if self.group.rank == 0 else None
        of_base = any(isinstance(part, LowRank) and part.magnitude is not None for part in self.model.modules())
        whole = self.gathered({name for name, trained in self.trained.items() if trained or of_base})
        if whole is None:
            return None
        twin = copy.copy(recipe)
        twin.model = whole
        return twin

    @contextmanager
    def whole_model(self, recipe: Recipe) -> Iterator[bool]:
        kept = recipe.model
        try:
            self.leave_whole(recipe)
            yield self.group.rank == 0
        finally:
            recipe.model = kept

    def leave_whole(self, recipe: Recipe) -> None:
        if self.part.cuts or self.part.lengths or self.pipe is not None:
            recipe.model = self.gathered(self.trained) or recipe.model

    def gathered(self, names: Collection[str]) -> Transformer | None:
        """On rank 0 the model on the CPU, of whose parameters those of `names` have values; elsewhere None."""
        self.turns += 1
        parameters = {name: local(p) for name, p in self.model.named_parameters() if name in names}
        found = whole_parameters(parameters, self.part, self.group, f"model/{self.turns}")
        if self.group.rank:
            return None
        whole = build(self.model.config) if self.sketch is None else emptied(self.sketch)
        for name, parameter in whole.named_parameters():
            parameter.requires_grad_(self.trained[name])
        for name, tensor in found.items():
            put_parameter(whole, name, tensor)
        return whole.train(self.model.training)


def emptied(model: Transformer) -> Transformer:
    """A model of the same parts, adapters too, whose parameters have no values; buffers, which nobody moves, are the
    model's own."""
    twins: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        twins[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    return copy.deepcopy(model, twins)
