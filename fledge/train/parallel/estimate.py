"""What a process of a mesh holds and sends, counted from a model.

What it holds is counted on a model that is cut by the very functions that cut the one to be trained. Traffic is that
of ring algorithms: of V bytes over n processes each sends V (n - 1) / n to gather or to scatter sums, and twice that to
sum in place (Thakur et al. 2005).
"""

from __future__ import annotations

from dataclasses import dataclass

from fledge.model.config import ModelConfig
from fledge.model.transformer import Transformer, build
from fledge.parallel.config import ParallelConfig, coordinates
from fledge.parallel.mesh import Line
from fledge.parallel.tensor import split_tensor
from fledge.train.parallel.pipe import keep_stage
from fledge.train.parallel.shard import own_blocks

FLOAT, MOMENTS = 4, 2
"""Bytes of a number; numbers that AdamW keeps for each weight."""


@dataclass(frozen=True)
class Held:
    """Numbers of a process: its own parameters after tensor and pipe, the largest block among them, what lies outside
    of blocks, and how many of its own are trained."""

    own: int
    largest_block: int
    outside: int
    trained: int


def held_by(config: ModelConfig, sizes: dict[str, int], rank: int, sequence: bool = False) -> Held:
    """What rank `rank` holds before anything is sharded."""
    place = coordinates(rank, sizes)
    model = build(config)
    if sizes["tensor"] > 1:
        split_tensor(model, Line(tuple(range(sizes["tensor"])), place["tensor"]), sequence)
    if sizes["pipe"] > 1:
        stack = model.decoder if model.decoder is not None else model.encoder
        assert stack is not None
        keep_stage(model, stack, Line(tuple(range(sizes["pipe"])), place["pipe"]), config.lm and config.tie)
    return counted(model)


def counted(model: Transformer) -> Held:
    own = sum(p.numel() for p in model.parameters())
    blocks = [sum(p.numel() for p in block.parameters()) for block in own_blocks(model)]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Held(own, max(blocks, default=0), own - sum(blocks), trained)


def memory(held: Held, shard: int, stage: int) -> dict[str, int]:
    """Bytes of weights, gradients and AdamW's moments at once, by what the shard axis shares out."""
    numbers = {"weights": held.own, "gradients": held.trained, "optimizer": MOMENTS * held.trained}
    if shard > 1:
        part, trained = -(-held.own // shard), -(-held.trained // shard)
        numbers["optimizer"] = MOMENTS * trained
        if stage > 1:
            numbers["gradients"] = trained + min(held.trained, max(held.largest_block, held.outside))
            numbers["weights"] = part + (held.own if stage == 2 else held.outside + held.largest_block)
    return {name: FLOAT * n for name, n in numbers.items()}


def traffic(
    config: ModelConfig, mesh: ParallelConfig, sizes: dict[str, int], held: Held, micro_tokens: int, n_micro: int
) -> dict[str, int]:
    """Bytes that a process sends in a step, by what for."""
    data, shard, tensor, pipe = (sizes[axis] for axis in ("data", "shard", "tensor", "pipe"))
    found: dict[str, float] = {}
    whole, trained, stage = FLOAT * held.own, FLOAT * held.trained, mesh.shard_stage
    if shard > 1 and stage > 1:
        gathers = 2 if stage == 3 else 1  # the forward pass, and again the backward one
        found["weights gathered"] = n_micro * gathers * ring(whole, shard)
        found["gradients scattered"] = n_micro * ring(trained, shard)
        found["gradients summed"] = n_micro * 2 * ring(trained / shard, data)
    else:
        found["gradients summed"] = 2 * ring(trained, data * shard)
        found["weights handed out"] = ring(trained, shard)
    residual = FLOAT * micro_tokens * config.stack.width
    n_layers = sum(len(stack.layers) for stack in config.stacks.values()) / pipe
    n_sums = 2 * n_layers + sum(len(s.layers) for s in config.stacks.values() if s.cross is not None)
    found["activations summed"] = n_micro * 2 * (n_sums + 1) * 2 * ring(residual, tensor)  # forward and backward
    found["activations handed on"] = n_micro * 2 * residual if pipe > 1 else 0
    return {name: round(n) for name, n in found.items() if n}


def ring(n_bytes: float, n_processes: int) -> float:
    return n_bytes * (n_processes - 1) / n_processes
