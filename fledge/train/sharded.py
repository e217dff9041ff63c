"""Checkpoints that all ranks of a distributed run write at once, and that any number of them, or one process without
torch.distributed, reads again.

The folder is a checkpoint like any other: the model in Hugging Face's sharded layout, which `load_model` reads, beside
the optimizer's state in slices (see fledge/train/slices.py). The weights go through slices too: each rank writes what
it holds, then turns its share of whole tensors into their layout, reading by position what the others have written. So
beside its own part no rank holds more than its share of the model, but all must write to one file system.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from fledge import lineage
from fledge.errors import CheckpointError, FledgeError, NonFiniteError
from fledge.model.config import ModelConfig
from fledge.model.families.family import Weight
from fledge.model.folder import read_config, weights_in_files, write_json
from fledge.model.names import to_ours, to_theirs
from fledge.model.resize import unpadded
from fledge.model.safetensors_file import write_safetensors
from fledge.model.transformer import build
from fledge.model.weight_files import INDEX, opened
from fledge.train.checkpointing import (
    State,
    check_space,
    clear_scratch,
    folder_name,
    fsync_tree,
    refuse_non_finite,
    swap_in,
    unwritten,
    write_state,
)
from fledge.train.ranks import Ranks
from fledge.train.slices import Box, Slice, SlicedTensors, index_name, index_of, shard_name, write_slices

OPTIMIZER, MODEL, WEIGHTS = "optimizer", "model", "weights"
Result = TypeVar("Result")


def save_sharded(
    root: Path,
    state: State,
    config: ModelConfig,
    weights: Sequence[Slice],
    moments: Sequence[Slice],
    describe: Callable[[Path], None],
    ranks: Ranks,
) -> Path:
    """Write the checkpoint of `state.step` under `root` with all `ranks` and give its folder. Every rank calls it, with
    its own slices of the parameters (by our names) and of the optimizer's state; `describe` writes the rest of a model
    folder (`save_description`) and is called on rank 0 alone.

    Raises CheckpointError on every rank, naming the one that failed, and NonFiniteError; no folder that looks valid is
    left then, and earlier ones are untouched.
    """
    target = root / folder_name(state.step)
    scratch = root / f".new-{target.name}-ranks"
    team = Team(ranks, target)
    try:
        n_bytes = sum(one.tensor.numel() * one.tensor.dtype.itemsize for one in (*weights, *moments))
        need = sum(ranks.exchange(n_bytes)) * 3 // 2
        team.first(lambda: begin(target, scratch, need))
        told = team.all(lambda: write_own(scratch, weights, moments, ranks))
        rows = {kind: index_of([row for one in told for row in one[kind]], ranks.size) for kind in (WEIGHTS, OPTIMIZER)}
        digests = {name: digest for one in told for name, digest in one["digests"].items()}
        written = team.all(lambda: assemble(scratch, config, rows[WEIGHTS], ranks))
        digests |= {name: digest for one in written for name, digest in one["digests"].items()}
        team.first(lambda: seal(scratch, target, state, describe, rows[OPTIMIZER], written, digests, ranks.size))
    except BaseException:
        if ranks.rank == 0:
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    return target


class Team:
    """Steps that all ranks take together: what stops one stops all, with the same error."""

    def __init__(self, ranks: Ranks, target: Path):
        self.ranks, self.target = ranks, target

    def all(self, work: Callable[[], Result]) -> list[Result]:
        """What `work` gave on each rank."""
        value: Result | None = None
        error, non_finite = "", False
        try:
            value = work()
        except OSError as refusal:
            error = str(unwritten(self.target, refusal))
        except FledgeError as failure:
            error, non_finite = str(failure), isinstance(failure, NonFiniteError)
        told = self.ranks.exchange([value, error, non_finite])
        for rank, (_, error, non_finite) in enumerate(told):
            if error:
                raise (NonFiniteError if non_finite else CheckpointError)(f"rank {rank}: {error}")
        return [value for value, _, _ in told]

    def first(self, work: Callable[[], None]) -> None:
        """`work` on rank 0, the others waiting."""
        self.all(work if self.ranks.rank == 0 else lambda: None)


def begin(target: Path, scratch: Path, need: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_scratch(target.parent)
    check_space(target, need)
    scratch.mkdir()


def write_own(folder: Path, weights: Sequence[Slice], moments: Sequence[Slice], ranks: Ranks) -> dict[str, Any]:
    """Write this rank's slices; gives their rows of the indexes, and digests of the files that stay."""
    refuse_non_finite({one.name: one.tensor for one in weights})
    number, n_files = ranks.rank + 1, ranks.size
    told: dict[str, Any] = {WEIGHTS: write_slices(folder, WEIGHTS, number, n_files, weights)}
    told[OPTIMIZER] = write_slices(folder, OPTIMIZER, number, n_files, moments)
    name = shard_name(OPTIMIZER, number, n_files)
    return {**told, "digests": {name: lineage.sha256_file(folder / name)}}


def assemble(folder: Path, config: ModelConfig, index: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Write this rank's share of whole tensors in Hugging Face's names and layout; gives names, bytes and digests."""
    if ranks.rank == 0:
        write_json(folder / index_name(WEIGHTS), index)
    ranks.exchange(None)  # the index must be there before it is read
    rows = weights_in_files(unpadded(config, {})[0])
    shares = share_out(rows, index, ranks.size)
    if ranks.rank >= len(shares):
        return {"names": [], "bytes": 0, "digests": {}}
    with SlicedTensors(folder, WEIGHTS) as sliced:
        tensors = {name: their_tensor(config, rows[name], sliced) for name in shares[ranks.rank]}
    name = shard_name(MODEL, ranks.rank + 1, len(shares))
    write_safetensors(folder / name, tensors)
    n_bytes = sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())
    return {"names": list(tensors), "bytes": n_bytes, "digests": {name: lineage.sha256_file(folder / name)}}


def share_out(rows: dict[str, Weight], index: dict[str, Any], n_ranks: int) -> list[list[str]]:
    """Names of the model's tensors in files, a list of about equal size for each rank; empty ones are left out."""
    sizes = {name: torch.Size(entry["shape"]).numel() for name, entry in index["tensors"].items()}
    theirs = {name: sum(sizes[ours] for ours in weight.ours) for name, weight in rows.items()}
    whole, done = max(1, sum(theirs.values())), 0
    shares: list[list[str]] = [[] for _ in range(n_ranks)]
    for name, size in theirs.items():
        shares[min(n_ranks - 1, (done + size // 2) * n_ranks // whole)].append(name)
        done += size
    return [share for share in shares if share]


def their_tensor(config: ModelConfig, weight: Weight, sliced: SlicedTensors) -> Tensor:
    ours = {own: sliced.read(own) for own in weight.ours} or {"": torch.empty(0, dtype=first_dtype(sliced))}
    return to_theirs(weight, unpadded(config, ours)[1])


def first_dtype(sliced: SlicedTensors) -> torch.dtype:
    return next(iter(sliced.entries.values())).dtype


def seal(
    scratch: Path,
    target: Path,
    state: State,
    describe: Callable[[Path], None],
    optimizer_index: dict[str, Any],
    written: list[dict[str, Any]],
    digests: dict[str, str],
    n_ranks: int,
) -> None:
    """Rank 0's part at the end: indexes, state and card over everybody's files, and the name."""
    for number in range(1, n_ranks + 1):
        (scratch / shard_name(WEIGHTS, number, n_ranks)).unlink()
    (scratch / index_name(WEIGHTS)).unlink()
    describe(scratch)
    weight_map = {name: file for one in written for file in one["digests"] for name in one["names"]}
    write_json(
        scratch / INDEX, {"metadata": {"total_size": sum(one["bytes"] for one in written)}, "weight_map": weight_map}
    )
    write_json(scratch / index_name(OPTIMIZER), optimizer_index)
    write_state(scratch, state)
    fsync_tree(scratch)
    lineage.write_card(
        scratch, "checkpoint", {"data": state.data_digest}, state.config, {"ranks": n_ranks}, known=digests
    )
    swap_in(scratch, target)


def read_weight_parts(folder: Path, wanted: Mapping[str, Box]) -> dict[str, Tensor]:
    """The boxes `wanted` of parameters, by our names, of a checkpoint or model folder of any number of files. At most
    one tensor beside the parts is in memory at a time."""
    _, config = read_config(folder)
    shapes = {name: tuple(p.shape) for name, p in build(config).named_parameters()}
    parts: dict[str, Tensor] = {}
    with ExitStack() as files:
        where = opened(folder, files)
        for name, weight in weights_in_files(config).items():
            ours = [own for own in weight.ours if own in wanted]
            if not ours:
                continue
            if weight.how == "same" and len(weight.ours) == 1:
                parts[ours[0]] = where[name].read_part(name, *wanted[ours[0]])
                continue
            found = to_ours(weight, where[name].read(name), shapes)
            for own in ours:
                offsets, sizes = wanted[own]
                parts[own] = found[own][tuple(slice(a, a + n) for a, n in zip(offsets, sizes, strict=True))].clone()
    return parts
