"""What a process reads of a checkpoint beside its part of the weights: that of the optimizer's state, however many
processes wrote it and however many read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from fledge.optim.part import ALL, Part
from fledge.train.slices import SlicedTensors

OPTIMIZER = "optimizer"


class SavedState(Mapping[str, Tensor]):
    """The optimizer's state of a checkpoint, of each tensor what is this process's `part`, read when it is asked for.
    Close it, or use it in a `with`. Raises CheckpointError for what is missing or damaged."""

    def __init__(self, folder: Path, part: Part = ALL):
        self.sliced, self.part = SlicedTensors(folder, OPTIMIZER), part

    def __getitem__(self, key: str) -> Tensor:
        return self.sliced.read_part(key, *self.part.box(key, self.sliced.entries[key].shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self.sliced.entries)

    def __len__(self) -> int:
        return len(self.sliced.entries)

    def __enter__(self) -> SavedState:
        return self

    def __exit__(self, *_: object) -> None:
        self.sliced.close()
