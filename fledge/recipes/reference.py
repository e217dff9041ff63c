"""Log-probabilities of the reference: computed once, kept in the run folder under a digest, checked when a run goes on.

N items, S answers of each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from fledge.align.answers import answer_log_probabilities
from fledge.data.keyed_batches import EveryRow
from fledge.data.preference_batches import Item, PreferenceBatches
from fledge.device import DTYPES
from fledge.errors import CheckpointError
from fledge.log import Progress
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors
from fledge.model.transformer import Transformer
from fledge.parallel.group import ALONE, Group
from fledge.train.ranks import ranks_of

FILE = "reference.safetensors"
NAME = "log_probabilities"
ROWS = 8  # of a pass, whatever a training batch has: the table of a run is the same bits whenever it is made


def computing(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """As a training pass computes, so that the two are compared like with like."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, DTYPES[precision])


def reference_table(
    folder: Path,
    digest: str,
    items: list[Item],
    base: Callable[[], AbstractContextManager[Transformer]],
    precision: str,
    going_on: bool,
    group: Group = ALONE,
) -> Tensor:
    """float32 [N, S]: that of `folder` where it is whole and of this `digest`; else computed by `base`, by each process
    of `group` a share, and written by the first.

    Raises CheckpointError where a run that goes on has one that is damaged or of other data, model or settings."""
    path = folder / FILE
    shape = (len(items), len(items[0].answers))
    known = None
    if path.is_file():
        try:
            known = read_table(path, digest, shape)
        except CheckpointError:
            if going_on:
                raise
    if group.least(known is not None) and known is not None:
        return known
    table = computed(items, base, precision, group)

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, {NAME: table}, {"digest": digest, "content": content_digest(table)})

    group.once(write)
    return table


def read_table(path: Path, digest: str, shape: tuple[int, int]) -> Tensor:
    with SafetensorsFile(path) as file:
        metadata = dict(file.metadata or {})
        table = file.read(NAME) if NAME in file.entries else torch.empty(0)
    if metadata.get("digest") != digest:
        raise CheckpointError(
            f"{path}: expected the reference {digest[:12]}…, got {str(metadata.get('digest'))[:12]}…: it is of other "
            "data, another model or other settings; use another run.dir, or remove the file to have it made again"
        )
    if tuple(table.shape) != shape or metadata.get("content") != content_digest(table):
        raise CheckpointError(f"{path}: expected what was written, got other numbers; remove it to have it made again")
    return table


def content_digest(table: Tensor) -> str:
    return hashlib.sha256(table.contiguous().numpy().astype("<f4").tobytes()).hexdigest()


def computed(
    items: list[Item], base: Callable[[], AbstractContextManager[Transformer]], precision: str, group: Group = ALONE
) -> Tensor:
    """The table, of which every process computes some batches and has all: float32 values are told to the bit."""
    batches = EveryRow(PreferenceBatches(items, ROWS, seed=0))
    progress = Progress("reference, batch", len(batches), every_seconds=5.0)
    parts: dict[int, list[list[float]]] = {}
    with base() as model, torch.no_grad():
        device, was_training = model.embedding.weight.device, model.training
        model.eval()
        with computing(precision, device):
            for number in range(group.rank, len(batches), group.world_size):
                found = answer_log_probabilities(model, batches[number].to(device), len(items[0].answers))
                parts[number] = found.tolist()
                progress.update(number + 1)
        model.train(was_training)
    progress.close()
    told = {number: rows for one in ranks_of(group).exchange(list(parts.items())) for number, rows in one}
    return torch.tensor([row for number in sorted(told) for row in told[number]], dtype=torch.float32)
