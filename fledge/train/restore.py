"""What a process reads of a checkpoint: its part of the weights and of the optimizer's state, however many processes
wrote it and however many read it. At most one tensor is read as a whole at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from fledge.model.folder import read_config, weights_in_files
from fledge.model.names import to_ours
from fledge.model.transformer import build
from fledge.model.weight_files import opened
from fledge.optim.part import ALL, Box, Part
from fledge.train.slices import SlicedTensors

OPTIMIZER = "optimizer"


def weight_parts(folder: Path, wanted: Mapping[str, Box]) -> Iterator[tuple[str, Tensor]]:
    """The boxes `wanted` of parameters, by our names, one after the other, of a checkpoint or model folder of any
    number of files. Raises CheckpointError for files that are missing or damaged."""
    _, config = read_config(folder)
    shapes = {name: tuple(p.shape) for name, p in build(config).named_parameters()}
    with ExitStack() as files:
        where = opened(folder, files)
        for name, weight in weights_in_files(config).items():
            ours = [own for own in weight.ours if own in wanted]
            if weight.how == "same" and len(weight.ours) == 1 and ours:
                yield ours[0], where[name].read_part(name, *wanted[ours[0]])
            elif ours:
                found = to_ours(weight, where[name].read(name), shapes)
                yield from ((own, inside(found[own], wanted[own]).clone()) for own in ours)


def inside(tensor: Tensor, box: Box) -> Tensor:
    """The part of a tensor that lies in the box."""
    return tensor[tuple(slice(at, at + n) for at, n in zip(*box, strict=True))]


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
