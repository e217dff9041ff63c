"""Reading safetensors files from anywhere: the header is checked before a byte of data is used, the data is read (not
mapped), so a file replaced under a running server can't hurt it and a load holds each weight once.

Format: 8 bytes little-endian header length N, N bytes of JSON, then the data buffer (huggingface/safetensors).
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the reference implementation's cap
MAX_TENSORS = 1_000_000
MAX_DIMENSIONS = 16

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its dtype, shape and the byte range of its data in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    """An opened and checked file: `entries` by name, `read(name)`, `metadata`. Close it, or use it in a `with`.

    Raises CheckpointError, naming the file, for every way in which the header can lie.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self._file = open(self.path, "rb")  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise CheckpointError(f"{self.path.name}: can't be opened ({error.strerror})") from None
        try:
            self.entries, self.metadata = read_header(self._file, self.path)
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str) -> Tensor:
        """The tensor `name`, freshly allocated. Raises CheckpointError if the file has been cut short since."""
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        if tensor.numel():
            view = tensor.view(-1).view(torch.uint8).numpy()
            self._file.seek(entry.start)
            if self._file.readinto(view.data) != entry.end - entry.start:
                raise CheckpointError(f"{self.path.name}: {name}: the file ended early; it changed while being read")
        return tensor

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_header(file: Any, path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    size = path.stat().st_size
    place = path.name
    if size < 8:
        raise CheckpointError(f"{place}: expected at least 8 bytes of safetensors, got {size}; the file is damaged")
    (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{place}: header length {length} exceeds {MAX_HEADER_BYTES}; not a safetensors file")
    if 8 + length > size:
        raise CheckpointError(f"{place}: header length {length} exceeds the file's {size} bytes; the file is damaged")
    raw = file.read(length)
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{place}: the header does not start with '{{'; not a safetensors file")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=refuse_duplicates)
    except UnicodeDecodeError:
        raise CheckpointError(f"{place}: the header is not UTF-8; the file is damaged") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{place}: the header is not usable JSON ({str(error)[:80]})") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{place}: __metadata__ is not a mapping of texts")
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{place}: {len(header)} tensors exceed {MAX_TENSORS}")
    data_start = 8 + length
    entries = {name: check_entry(place, name, info, data_start) for name, info in header.items()}
    check_ranges(place, entries, data_start, size)
    return entries, metadata


def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands twice")
    return result


def check_entry(place: str, name: str, info: Any, data_start: int) -> Entry:
    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63

    at = f"{place}: {name[:80]!r}"
    if not isinstance(info, dict) or set(info) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{at}: expected dtype, shape and data_offsets")
    if not isinstance(info["dtype"], str) or info["dtype"] not in DTYPES:
        raise CheckpointError(f"{at}: unknown dtype {str(info['dtype'])[:20]!r}; expected one of {', '.join(DTYPES)}")
    shape, offsets = info["shape"], info["data_offsets"]
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(whole, shape)):
        raise CheckpointError(f"{at}: shape is not a list of whole numbers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(whole, offsets)) or offsets[0] > offsets[1]:
        raise CheckpointError(f"{at}: data_offsets are not two ordered whole numbers")
    dtype = DTYPES[info["dtype"]]
    count = 1
    for dimension in shape:
        count *= dimension
    if count * dtype.itemsize != offsets[1] - offsets[0]:
        raise CheckpointError(
            f"{at}: shape {shape} of {info['dtype']} needs {count * dtype.itemsize} bytes, "
            f"data_offsets give {offsets[1] - offsets[0]}"
        )
    return Entry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def check_ranges(place: str, entries: dict[str, Entry], data_start: int, size: int) -> None:
    at = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != at:
            what = "overlaps another tensor" if entry.start < at else "leaves a hole before it"
            raise CheckpointError(f"{place}: {name[:80]!r} {what}; the file is damaged")
        at = entry.end
    if at != size:
        what = "ends early" if at > size else f"has {size - at} bytes after the last tensor"
        raise CheckpointError(f"{place}: the file {what}; it is damaged")


def write_safetensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors in name order, one after the other, and fsync. Equal tensors give equal bytes.

    transformers refuses files without the `format` key, so it is always there.
    """
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
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            flat = tensors[name].detach().cpu().contiguous().view(-1)
            if flat.numel():
                file.write(flat.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
