"""Checkpoints that all ranks of a distributed run write at once. fledge/train/restore.py reads them, in any number.

The folder is a checkpoint like any other: the model in Hugging Face's sharded layout, which `load_model` reads, beside
the optimizer's state in slices (see fledge/train/slices.py). The weights go through slices too: each rank writes what
it holds, then turns its share of whole tensors into their layout, reading by position what the others have written. So
beside its own part no rank holds more than its share of the model, but all must write to one file system.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge import lineage
from fledge.model.config import ModelConfig
from fledge.model.families.family import Weight
from fledge.model.folder import weights_in_files, write_json
from fledge.model.names import to_theirs
from fledge.model.resize import unpadded
from fledge.model.safetensors_file import write_safetensors
from fledge.model.weight_files import INDEX
from fledge.train.checkpointing import (
    SPARE_BYTES,
    State,
    check_finite,
    check_space,
    clear_scratch,
    folder_name,
    fsync_tree,
    refuse_non_finite,
    swap_in,
    unwritten,
    write_state,
)
from fledge.train.ranks import Ranks, Team
from fledge.train.slices import Slice, SlicedTensors, index_name, index_of, n_bytes_of, shard_name, write_slices

OPTIMIZER, MODEL, WEIGHTS = "optimizer", "model", "weights"


def save_sharded(
    root: Path,
    state: State,
    config: ModelConfig | None,
    weights: Sequence[Slice],
    moments: Sequence[Slice],
    describe: Callable[[Path], None],
    ranks: Ranks,
    meddle: Callable[[], None] = lambda: None,
) -> Path:
    """Write the checkpoint of `state.step` under `root` with all `ranks` and give its folder. Every rank calls it, with
    its own slices of the parameters (by our names) and of the optimizer's state; `describe` writes the rest of a model
    folder (`save_description`) and is called on rank 0 alone; without a `config` it writes the weights too. `meddle`: a
    fault of a test, before this rank's files.

    Raises CheckpointError on every rank, naming the one that failed, and NonFiniteError; no folder that looks valid is
    left then, and earlier ones are untouched.
    """
    target = root / folder_name(state.step)
    team = Team(ranks, lambda refusal: unwritten(target, refusal))
    need = sum(ranks.exchange(2 * n_bytes_of(weights) + n_bytes_of(moments))) + SPARE_BYTES
    scratch = root / team.all(lambda: begin(target, need) if ranks.rank == 0 else "")[0]
    try:
        told = team.all(lambda: write_own(scratch, weights, moments, ranks, meddle))
        rows = {kind: index_of([row for one in told for row in one[kind]], ranks.size) for kind in (WEIGHTS, OPTIMIZER)}
        digests = {name: digest for one in told for name, digest in one["digests"].items()}
        team.first(lambda: write_json(scratch / index_name(WEIGHTS), rows[WEIGHTS]))  # before it is read
        written = team.all(lambda: assemble(scratch, config, rows[WEIGHTS], ranks))
        digests |= {name: digest for one in written for name, digest in one["digests"].items()}
        team.first(lambda: seal(scratch, target, state, describe, rows[OPTIMIZER], written, digests, ranks.size))
    except BaseException:
        if ranks.rank == 0:
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    return target


def begin(target: Path, need: int) -> str:
    """Make the folder to write in; gives its name, which no writer of an earlier run can know."""
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_scratch(target.parent)
    check_space(target, need)
    name = f".new-{target.name}-{uuid.uuid4().hex[:12]}"
    (target.parent / name).mkdir()
    return name


def write_own(
    folder: Path, weights: Sequence[Slice], moments: Sequence[Slice], ranks: Ranks, meddle: Callable[[], None]
) -> dict[str, Any]:
    """Write this rank's slices; gives their rows of the indexes, and digests of the files that stay."""
    meddle()
    refuse_non_finite({one.name: one.tensor for one in weights})
    number, n_files = ranks.rank + 1, ranks.size
    told: dict[str, Any] = {WEIGHTS: write_slices(folder, WEIGHTS, number, n_files, weights)}
    told[OPTIMIZER] = write_slices(folder, OPTIMIZER, number, n_files, moments)
    name = shard_name(OPTIMIZER, number, n_files)
    return {**told, "digests": {name: lineage.sha256_file(folder / name)}}


def assemble(folder: Path, config: ModelConfig | None, index: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Write this rank's share of whole tensors in Hugging Face's names and layout; gives names, bytes and digests."""
    rows = {} if config is None else weights_in_files(unpadded(config, {})[0])
    shares = share_out(rows, index, ranks.size)
    if config is None or ranks.rank >= len(shares):
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
    if weight_map:
        n_bytes = sum(one["bytes"] for one in written)
        write_json(scratch / INDEX, {"metadata": {"total_size": n_bytes}, "weight_map": weight_map})
    else:
        check_finite(scratch)  # what `describe` wrote
    write_json(scratch / index_name(OPTIMIZER), optimizer_index)
    write_state(scratch, state)
    fsync_tree(scratch)
    lineage.write_card(
        scratch, "checkpoint", {"data": state.data_digest}, state.config, {"ranks": n_ranks}, known=digests
    )
    swap_in(scratch, target)
