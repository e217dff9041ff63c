"""Tensors that lie in slices: which part of a tensor a rank holds, an index of all parts, and reading any part of any
tensor back, whoever wrote it and however many there were. Needs no torch.distributed.

`NAME-00002-of-00004.safetensors` holds what the second of four ranks held; `NAME.safetensors.index.json` tells of each
tensor its dtype, its shape and `[file, offsets, sizes]` of each slice. A tensor lies in one file whole where
`NAME.safetensors` stands alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge.config import read_json
from fledge.errors import CheckpointError, ConfigError
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors
from fledge.model.safetensors_header import DTYPES
from fledge.optim.part import Box

INDEX_FORMAT = 1
MAX_INDEX_BYTES = 1 << 30
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Slice:
    """The part of tensor `name`, of `shape`, that begins at `offsets`: `tensor`."""

    name: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    tensor: Tensor

    @property
    def box(self) -> Box:
        return self.offsets, tuple(self.tensor.shape)


@dataclass
class Entry:
    """One tensor of an index: its dtype, its shape, and of each slice the number of its file (from 1) and its box."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    slices: list[tuple[int, Box]]


def shard_name(stem: str, number: int, n_files: int) -> str:
    return f"{stem}-{number:05d}-of-{n_files:05d}.safetensors"


def index_name(stem: str) -> str:
    return f"{stem}.safetensors.index.json"


def write_slices(folder: Path, stem: str, number: int, n_files: int, slices: Iterable[Slice]) -> list[list[Any]]:
    """Write file `number` of `n_files`; gives what the index must know of it: `[name, dtype, shape, number, offsets,
    sizes]` of each slice. Raises CheckpointError for two slices of one tensor."""
    tensors: dict[str, Tensor] = {}
    rows: list[list[Any]] = []
    for one in slices:
        if one.name in tensors:
            raise CheckpointError(f"{one.name}: expected one slice of it in a file, got two; join them")
        tensors[one.name] = one.tensor
        offsets, sizes = one.box
        rows.append([one.name, DTYPE_NAMES[one.tensor.dtype], list(one.shape), number, list(offsets), list(sizes)])
    write_safetensors(folder / shard_name(stem, number, n_files), tensors)
    return rows


def index_of(rows: Iterable[list[Any]], n_files: int) -> dict[str, Any]:
    """The index, as plain values, of what `write_slices` gave for each file. Raises CheckpointError unless the slices
    of each tensor are all of it, once."""
    tensors: dict[str, dict[str, Any]] = {}
    for name, dtype, shape, number, offsets, sizes in sorted(rows, key=repr):
        entry = tensors.setdefault(name, {"dtype": dtype, "shape": shape, "slices": []})
        if (entry["dtype"], entry["shape"]) != (dtype, shape):
            raise CheckpointError(f"{name}: expected {entry['dtype']} {entry['shape']} everywhere, got {dtype} {shape}")
        entry["slices"].append([number, offsets, sizes])
    index = {"format": INDEX_FORMAT, "files": n_files, "tensors": tensors}
    checked(index, "index")
    return index


def checked(raw: Any, at: str) -> tuple[int, dict[str, Entry]]:
    """Number of files and entries of an index's content. Raises CheckpointError for one that is no index, or whose
    slices are not all of a tensor, once."""
    try:
        if raw["format"] != INDEX_FORMAT:
            raise CheckpointError(
                f"{at}: expected format {INDEX_FORMAT}, got {raw['format']!r:.40}; use a later fledge"
            )
        n_files, entries = raw["files"], {}
        for name, value in raw["tensors"].items():
            boxes = [(number, (tuple(offsets), tuple(sizes))) for number, offsets, sizes in value["slices"]]
            entry = Entry(DTYPES[value["dtype"]], tuple(value["shape"]), boxes)
            numbers = [n for number, box in boxes for n in (number, *box[0], *box[1])]
            if not all(isinstance(n, int) and n >= 0 for n in (*numbers, *entry.shape, n_files)):
                raise TypeError
            if not all(1 <= number <= n_files for number, _ in boxes):
                raise CheckpointError(f"{at}: {name}: expected slices in files 1 to {n_files}, got others")
            if not tiles([box for _, box in boxes], entry.shape):
                raise CheckpointError(f"{at}: {name}: its slices are not all of its {list(entry.shape)}, each once")
            entries[name] = entry
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{at}: damaged index; restore it or use an earlier checkpoint") from None
    return n_files, entries


def tiles(boxes: list[Box], shape: tuple[int, ...], dimension: int = 0) -> bool:
    """Whether the boxes are the whole shape, each part once, cut along the first dimension, then the next, and so on
    (as every mesh of ranks cuts)."""
    if any(len(offsets) != len(shape) or len(sizes) != len(shape) for offsets, sizes in boxes):
        return False
    if dimension == len(shape):
        return len(boxes) == 1
    spans: dict[tuple[int, int], list[Box]] = {}
    for offsets, sizes in boxes:
        spans.setdefault((offsets[dimension], sizes[dimension]), []).append((offsets, sizes))
    end = 0
    for (start, size), inside in sorted(spans.items()):
        if start != end or not tiles(inside, shape, dimension + 1):
            return False
        end = start + size
    return end == shape[dimension] and bool(boxes)


class SlicedTensors:
    """The tensors of `stem` in a folder, in one file or in slices: `entries` by name, `read(name)`, `read_part`. Close
    it, or use it in a `with`.

    Raises CheckpointError naming the file that is missing, damaged, of another index or more than the index knows of.
    """

    def __init__(self, folder: Path, stem: str):
        self.folder, self.stem = folder, stem
        self.open_files = ExitStack()
        self.files: dict[int, SafetensorsFile] = {}
        path = folder / index_name(stem)
        try:
            if path.is_file():
                self.n_files, self.entries = checked(read_index(path), path.name)
                self.check_names()
            else:
                self.n_files = 1
                whole = self.open_files.enter_context(SafetensorsFile(folder / f"{stem}.safetensors"))
                self.files[1] = whole
                self.entries = {name: Entry(e.dtype, e.shape, [(1, whole_box(e.shape))])
                                for name, e in whole.entries.items()}  # fmt: skip
        except BaseException:
            self.close()
            raise

    def check_names(self) -> None:
        wanted = {shard_name(self.stem, number, self.n_files) for number in range(1, self.n_files + 1)}
        there = {path.name for path in self.folder.glob(f"{self.stem}*.safetensors")}
        for name in sorted(wanted - there):
            raise CheckpointError(f"{self.folder / name}: missing shard; expected {self.n_files} of them")
        for name in sorted(there - wanted):
            raise CheckpointError(
                f"{self.folder / name}: a shard that {index_name(self.stem)} knows nothing of; remove it"
            )

    def file(self, number: int) -> SafetensorsFile:
        """File `number`, opened when first asked for, after a look whether it holds what the index says."""
        if number not in self.files:
            name = shard_name(self.stem, number, self.n_files)
            file = self.open_files.enter_context(SafetensorsFile(self.folder / name))
            wanted = {
                tensor: (entry.dtype, box[1])
                for tensor, entry in self.entries.items()
                for owner, box in entry.slices
                if owner == number
            }
            if {tensor: (e.dtype, e.shape) for tensor, e in file.entries.items()} != wanted:
                raise CheckpointError(f"{self.folder / name}: holds other slices than {index_name(self.stem)} says")
            self.files[number] = file
        return self.files[number]

    def read(self, name: str) -> Tensor:
        """The whole tensor `name`, freshly allocated."""
        return self.read_part(name, *whole_box(self.entry(name).shape))

    def read_part(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """The box of `sizes` at `offsets` of tensor `name`, freshly allocated, from whichever files hold it."""
        entry = self.entry(name)
        part = torch.empty(tuple(sizes), dtype=entry.dtype)
        for number, (at, extent) in entry.slices:
            low = [max(a, b) for a, b in zip(offsets, at, strict=True)]
            high = [min(a + n, b + m) for a, n, b, m in zip(offsets, sizes, at, extent, strict=True)]
            common = tuple(max(0, b - a) for a, b in zip(low, high, strict=True))
            if not math.prod(common):
                continue
            here = tuple(slice(x - a, x - a + n) for x, a, n in zip(low, offsets, common, strict=True))
            there = tuple(x - b for x, b in zip(low, at, strict=True))
            part[here] = self.file(number).read_part(name, there, common)
        return part

    def entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise CheckpointError(f"{self.folder}: {self.stem} holds no tensor {name[:80]!r}")
        return self.entries[name]

    def close(self) -> None:
        self.open_files.close()

    def __enter__(self) -> SlicedTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_index(path: Path) -> Any:
    try:
        return read_json(path, MAX_INDEX_BYTES, unique=True)
    except ConfigError:
        raise CheckpointError(f"{path}: damaged index; restore it or use an earlier checkpoint") from None


def n_bytes_of(slices: Iterable[Slice]) -> int:
    return sum(one.tensor.numel() * one.tensor.dtype.itemsize for one in slices)


def whole_box(shape: tuple[int, ...]) -> Box:
    return (0,) * len(shape), shape


def cut(tensors: Mapping[str, Tensor], number: int, n_files: int) -> list[Slice]:
    """What rank `number` (from 1) of `n_files` holds where each tensor is cut along its first dimension into pieces of
    equal size, the last ones smaller or none, as fully sharded training does; numbers are the first's."""
    slices = []
    for name, tensor in tensors.items():
        box = cut_box(tuple(tensor.shape), number, n_files)
        if box is not None:
            part = tensor[tuple(slice(at, at + n) for at, n in zip(*box, strict=True))]
            slices.append(Slice(name, tuple(tensor.shape), box[0], part))
    return slices


def cut_box(shape: tuple[int, ...], number: int, n_files: int) -> Box | None:
    """The box of rank `number` (from 1), or None where it holds nothing of a tensor of this shape."""
    if not shape or not math.prod(shape):
        return whole_box(shape) if number == 1 else None
    rows = -(-shape[0] // n_files)
    at = rows * (number - 1)
    if at >= shape[0]:
        return None
    return (at, *(0 for _ in shape[1:])), (min(rows, shape[0] - at), *shape[1:])
