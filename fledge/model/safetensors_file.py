"""Reading safetensors files from anywhere: the header is checked before a byte of data is used, the data is read (not
mapped), so a file replaced under a running server can't hurt it and a load holds each weight once.

Format: 8 bytes little-endian header length N, N bytes of JSON, then the data buffer (huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge.errors import CheckpointError
from fledge.lineage import rename
from fledge.model.safetensors_header import DTYPES, read_header

BATCH_BYTES, BATCH_TENSORS = 64 << 20, 256
PART_BYTES = 16 << 20


class SafetensorsFile:
    """An opened and checked file: `entries` by name, `read(name)`, `metadata`. Close it, or use it in a `with`.

    Raises CheckpointError, naming the file, for every way in which the header can lie.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self._file = open(self.path, "rb")  # noqa: SIM115 (closed by close)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.path.name}: can't be opened ({getattr(error, 'strerror', error)}); check the path"
            ) from None
        try:
            self.entries, self.metadata = read_header(self._file, self.path)
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str) -> Tensor:
        """The tensor `name`, freshly allocated. Raises CheckpointError if the file has been cut short since."""
        entry = self.entries[name]
        return self.read_part(name, (0,) * len(entry.shape), entry.shape)

    def read_part(self, name: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
        """The box of `sizes` at `offsets` of the tensor `name`, freshly allocated; only the rows (of the first
        dimension in which it is not the whole) that it lies in are read. Raises CheckpointError as `read` does."""
        entry = self.entries[name]
        inside = all(at >= 0 and at + n <= m for at, n, m in zip(offsets, sizes, entry.shape, strict=True))
        assert inside, f"{name}: {offsets} {sizes} of {entry.shape}"
        part = torch.empty(sizes, dtype=entry.dtype)
        if part.numel():
            self._fill(part, name, offsets, entry.shape, entry.start)
        return part

    def _fill(self, part: Tensor, name: str, offsets: tuple[int, ...], shape: tuple[int, ...], start: int) -> None:
        """Read into `part` from a tensor of `shape` whose data starts at byte `start`."""
        row_bytes = math.prod(shape[1:]) * part.dtype.itemsize
        if tuple(part.shape[1:]) == shape[1:]:  # whole rows
            self._read_at(start + (offsets[0] * row_bytes if offsets else 0), part, name)
        elif row_bytes > PART_BYTES:
            for index in range(part.shape[0]):
                self._fill(part[index], name, offsets[1:], shape[1:], start + (offsets[0] + index) * row_bytes)
        else:
            n_rows = max(1, PART_BYTES // row_bytes)
            box = tuple(slice(at, at + n) for at, n in zip(offsets[1:], part.shape[1:], strict=True))
            for first in range(0, part.shape[0], n_rows):
                rows = torch.empty((min(n_rows, part.shape[0] - first), *shape[1:]), dtype=part.dtype)
                self._read_at(start + (offsets[0] + first) * row_bytes, rows, name)
                part[first : first + rows.shape[0]] = rows[(slice(None), *box)]

    def _read_at(self, position: int, into: Tensor, name: str) -> None:
        view = into.view(-1).view(torch.uint8).numpy()
        self._file.seek(position)
        if self._file.readinto(view.data) != view.nbytes:
            raise CheckpointError(f"{self.path.name}: {name}: the file ended early; it changed while being read")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_safetensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors in name order, one after the other, beside `path`, fsync and rename. Equal tensors give equal
    bytes; whoever has the file of before open or mapped keeps that one.

    transformers refuses files without the `format` key, so it is always there.
    """
    path = Path(path)
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at = 0
    # widest types first keeps every tensor aligned, as the reference writer does
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    for name in order:
        tensor = tensors[name]
        size = tensor.numel() * tensor.dtype.itemsize
        entry = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        header[name], at = entry, at + size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    scratch = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(scratch, "wb", buffering=0) as file:
            write_whole(file.fileno(), [memoryview(struct.pack("<Q", len(text)) + text)])
            for batch in together({name: tensors[name].numel() * tensors[name].dtype.itemsize for name in order}):
                write_whole(file.fileno(), [bytes_of(tensors[name]) for name in batch])
            os.fsync(file.fileno())
        rename(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def together(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Names whose bytes are handled by one call: the fewer calls, the fewer times a thread waits for its turn;
    but not so many that a second copy of them would matter."""
    batch: list[str] = []
    for name, n_bytes in sizes.items():
        full = sum(sizes[other] for other in batch) + n_bytes > BATCH_BYTES or len(batch) == BATCH_TENSORS
        if batch and full:
            yield batch
            batch = []
        batch.append(name)
    if batch:
        yield batch


def bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def write_whole(handle: int, views: list[memoryview]) -> None:
    """Write all of the views, however little the system takes at once."""
    views = [view for view in views if view.nbytes]
    while views:
        n = os.writev(handle, views)
        while views and n >= views[0].nbytes:
            n -= views.pop(0).nbytes
        if n:
            views[0] = views[0][n:]
