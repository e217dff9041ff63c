"""The stages of a pipe in training: their passes, and the weights that several hold. B rows, T tokens, D width.

stages.py says what a stage holds; what it reads comes as `Tokens.embeds`, and the last has the loss. A weight that
several stages hold (a tied embedding, a bias of all layers, ALBERT's block) has its gradient summed over them. Forward
and backward messages go through process groups of their own, so that neither waits for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fledge.batch import Batch
from fledge.model.transformer import Transformer
from fledge.nn.config import StackConfig
from fledge.parallel.config import ranks_along
from fledge.parallel.mesh import Line, Mesh, new_group
from fledge.parallel.stages import keep_stage, layers_of
from fledge.train.clock import Clock
from fledge.train.parallel.schedule import SCHEDULES


@dataclass
class Pipe:
    """One stage. `held_twice`: names of weights that other stages have too, by the line of those stages; `stages`: the
    stages that have a parameter, by name."""

    model: Transformer
    line: Line
    back: Line
    schedule: str
    held_twice: dict[Line, list[str]]
    stages: dict[str, tuple[int, ...]]
    sending: list[tuple[Any, Tensor]] = field(default_factory=list)

    @property
    def is_first(self) -> bool:
        return self.line.index == 0

    @property
    def is_last(self) -> bool:
        return self.line.index == self.line.size - 1

    def is_first_with(self, name: str) -> bool:
        return self.stages[name][0] == self.line.index

    def passes(
        self,
        starts: Sequence[int],
        micro: Callable[[int], Batch],
        objective: Callable[[Batch], Tensor | None],
        clock: Clock,
    ) -> None:
        """This stage's part of a step over the micro-batches that begin at `starts`."""
        kept: dict[int, tuple[Tensor | None, Tensor | None]] = {}
        for direction, k in SCHEDULES[self.schedule](self.line.index, self.line.size, len(starts)):
            if direction == "forward":
                with clock("communication"):
                    batch, given = self.fed(micro(starts[k]))
                with clock("forward"):
                    made = objective(batch) if self.is_last else self.handed_on(batch)
                kept[k] = (given, made)
            else:
                with clock("backward"):
                    self.backward(*kept.pop(k))
        self.flush()

    def fed(self, batch: Batch) -> tuple[Batch, Tensor | None]:
        """A batch with what the stage before made of it."""
        if self.is_first:
            return batch, None
        n_rows, n_tokens = batch.tokens.ids.shape
        given = torch.empty(n_rows, n_tokens, self.model.config.stack.width, device=batch.tokens.ids.device)
        dist.recv(given, self.line.ranks[self.line.index - 1], group=self.line.group)
        given.requires_grad_(torch.is_grad_enabled())
        return replace(batch, tokens=replace(batch.tokens, embeds=given)), given

    def handed_on(self, batch: Batch) -> Tensor:
        """What this stage makes of a batch, sent to the next."""
        made = self.model.hidden(batch.tokens, batch.layout).float()
        self.send(made, self.line, 1)
        return made

    def backward(self, given: Tensor | None, made: Tensor | None) -> None:
        if self.is_last:
            if made is not None:
                made.backward()
        else:
            assert made is not None
            grad = torch.empty_like(made)
            dist.recv(grad, self.back.ranks[self.back.index + 1], group=self.back.group)
            made.backward(grad)
        if given is not None:
            self.send(torch.zeros_like(given) if given.grad is None else given.grad, self.back, -1)

    def send(self, x: Tensor, line: Line, step: int) -> None:
        """Begin to send; the tensor is kept until it has gone."""
        x = x.detach().contiguous()
        self.sending.append((dist.isend(x, line.ranks[line.index + step], group=line.group), x))

    def flush(self) -> None:
        for work, _ in self.sending:
            work.wait()
        self.sending.clear()

    def measure(self, batch: Batch, sums: Callable[[Batch], list[float]]) -> list[float] | None:
        """A forward pass through all stages; the last gives the sums."""
        batch, _ = self.fed(batch)
        if self.is_last:
            return sums(batch)
        self.handed_on(batch)
        self.flush()
        return None


def split_pipe(model: Transformer, mesh: Mesh, schedule: str) -> Pipe:
    """Keep this stage's part of a built model, in place."""
    line = mesh["pipe"]
    config, name = model.config.stack, "encoder" if model.decoder is None else "decoder"
    tied = model.config.lm and model.config.tie
    stages = {n: stages_of(n, name, config, line.size, tied) for n, _ in model.named_parameters()}
    lines = lines_of(sorted({held for held in stages.values() if len(held) > 1}), mesh)
    keep_stage(model, getattr(model, name), line, tied)
    here = {n for n, _ in model.named_parameters()}
    held_twice: dict[Line, list[str]] = {}
    for parameter in sorted(here):
        if len(stages[parameter]) > 1:
            held_twice.setdefault(lines[stages[parameter]], []).append(parameter)
    return Pipe(model, line, mesh["back"], schedule, held_twice, stages)


def stages_of(name: str, stack: str, config: StackConfig, n_stages: int, tied: bool) -> tuple[int, ...]:
    """The stages that hold a parameter."""
    last, rest = n_stages - 1, name.removeprefix(f"{stack}.")
    if name.startswith("embedding."):
        return (0, last) if tied else (0,)
    if rest == name or rest.startswith("norm."):
        return (last,)
    if rest.startswith(("inputs.", "conv.")):
        return (0,)
    if not rest.startswith("layers."):
        return tuple(range(n_stages))  # a bias or a table of distances that all layers read
    block, n_layers = int(rest.split(".")[1]), len(config.layers)
    holders = (
        stage
        for stage in range(n_stages)
        if any(config.block_of_layer[layer] == block for layer in layers_of(stage, n_stages, n_layers))
    )
    return tuple(holders)


def lines_of(sets: list[tuple[int, ...]], mesh: Mesh) -> dict[tuple[int, ...], Line]:
    """A Line through each of these sets of stages, for this process where it is in one."""
    found = {}
    for stages in sets:
        for ranks in ranks_along(("pipe",), mesh.sizes):
            some = [ranks[stage] for stage in stages]
            group = new_group(some, mesh.timeout_seconds)
            if mesh.rank in some:
                found[stages] = Line(tuple(some), some.index(mesh.rank), group)
    return found
