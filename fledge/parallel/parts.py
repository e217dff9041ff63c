"""Reading a process's part of a model's weights, whoever wrote them and however many did. At most one tensor is read as
a whole at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from fledge.model.folder import Stored, stored_in
from fledge.model.names import to_ours
from fledge.optim.part import Box


def weight_parts(folder: Path, wanted: Mapping[str, Box]) -> Iterator[tuple[str, Tensor]]:
    """As `parts_of`, of a checkpoint or model folder. Raises CheckpointError for files that are missing or damaged."""
    with ExitStack() as files:
        yield from parts_of(stored_in(folder, files), wanted)


def parts_of(stored: Stored, wanted: Mapping[str, Box]) -> Iterator[tuple[str, Tensor]]:
    """The boxes `wanted` of parameters, by our names, one after the other. Of a weight that stands in the files as it
    is here no more is read; one that is turned or joined there is read as a whole."""
    for name, weight in stored.plain().items():
        file, theirs = stored.where[stored.found[name]], stored.found[name]
        ours = [own for own in weight.ours if own in wanted]
        if weight.how == "same" and len(weight.ours) == 1 and ours:
            yield ours[0], file.read_part(theirs, *wanted[ours[0]])
        elif ours:
            found = to_ours(weight, file.read(theirs), stored.shapes)
            yield from ((own, inside(found[own], wanted[own]).clone()) for own in ours)


def inside(tensor: Tensor, box: Box) -> Tensor:
    """The part of a tensor that lies in the box."""
    return tensor[tuple(slice(at, at + n) for at, n in zip(*box, strict=True))]
