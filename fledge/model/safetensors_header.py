"""The header of a safetensors file, checked before a byte of data is used, in little memory whatever it says.

Format: 8 bytes little-endian header length N, N bytes of JSON, then the data buffer (huggingface/safetensors).
"""

from __future__ import annotations

import codecs
import json
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fledge.errors import CheckpointError

MAX_HEADER_BYTES = 10_000_000  # a tenth of the reference implementation's cap, and still MAX_TENSORS of them
MAX_TENSORS = 50_000
MAX_NAME_BYTES = 4096
MAX_ENTRY_BYTES = 4096
MAX_METADATA_BYTES = 1 << 20
MAX_DIMENSIONS = 16

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

NAME = re.compile(rb'\s*("(?:[^"\\]|\\.){0,%d}")\s*:\s*' % MAX_NAME_BYTES, re.DOTALL)
PLAIN = re.compile(rb'"[^"\\\x00-\x1f]*"')
COMMA = re.compile(rb"\s*,")
END = re.compile(rb"\s*}\s*")
# An object without another inside, read once and never again: metadata of brackets would be a million Python objects.
FLAT = re.compile(rb'{(?:[^"\[\]{}]|"(?:[^"\\]|\\.)*+")*+}', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: its dtype, shape and the byte range of its data in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def n_bytes(self) -> int:
        return self.end - self.start


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
    metadata, entries = {}, {}
    for name, value in members(file.read(length), place):
        if name == "__metadata__":
            metadata = check_metadata(place, value)
        else:
            entries[name] = check_entry(place, name, value, 8 + length)
    check_ranges(place, entries, 8 + length, size)
    return entries, metadata


def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands twice")
    return result


DECODER = json.JSONDecoder(object_pairs_hook=refuse_duplicates)


def members(raw: bytes, place: str) -> Iterator[tuple[str, Any]]:
    """Name and value of each member of a header, one at a time: a header of nothing but brackets would otherwise take
    twenty times its size as Python objects before anyone could look at it."""
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{place}: the header does not start with '{{'; not a safetensors file")
    if raw.count(b'"data_offsets"') > MAX_TENSORS:
        raise CheckpointError(f"{place}: the header is not usable JSON (more than {MAX_TENSORS} tensors)")
    at = 1
    seen: set[str] = set()
    try:
        while seen or not END.fullmatch(raw, at):
            found = NAME.match(raw, at)
            if found is None:
                raise ValueError(f"a name of at most {MAX_NAME_BYTES} bytes expected at byte {at}")
            name = text_of(found[1])
            if name in seen or len(seen) >= MAX_TENSORS:
                raise ValueError("a name stands twice" if name in seen else f"more than {MAX_TENSORS} tensors")
            seen.add(name)
            limit = MAX_METADATA_BYTES if name == "__metadata__" else MAX_ENTRY_BYTES
            value, at = member_value(raw, found.end(), limit)
            yield name, value
            if END.fullmatch(raw, at):
                return
            comma = COMMA.match(raw, at)
            if comma is None:
                raise ValueError(f"a comma or the end expected at byte {at}")
            at = comma.end()
    except UnicodeError:
        raise CheckpointError(f"{place}: the header is not UTF-8; the file is damaged") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{place}: the header is not usable JSON ({str(error)[:80]})") from None


def text_of(quoted: bytes) -> str:
    """The text of a JSON string."""
    if PLAIN.fullmatch(quoted):
        return quoted[1:-1].decode()
    text: str = json.loads(quoted.decode())
    text.encode()  # half a character is no text
    return text


def member_value(raw: bytes, at: int, limit: int) -> tuple[Any, int]:
    """The object at byte `at`, of at most `limit` bytes, and where it ends."""
    if raw[at : at + 1] != b"{":
        raise ValueError(f"an object expected at byte {at}")
    if limit == MAX_METADATA_BYTES and FLAT.match(raw, at, at + limit) is None:
        raise ValueError(f"a mapping of texts of at most {limit} bytes expected at byte {at}")
    end = raw.find(b"}", at, at + limit) + 1
    if end:  # an entry has no other bracket: one that has is read below
        try:
            value, length = DECODER.raw_decode(text := raw[at:end].decode())
            return value, at + len(text[:length].encode())
        except json.JSONDecodeError:
            pass
    # whole characters only: the cut may fall into one
    text = codecs.getincrementaldecoder("utf-8")().decode(raw[at : at + limit])
    value, length = DECODER.raw_decode(text)
    return value, at + len(text[:length].encode())


def check_metadata(place: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise CheckpointError(f"{place}: __metadata__ is not a mapping of texts")
    return value


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
    if math.prod(dimension for dimension in shape if dimension) >= 2**63:
        raise CheckpointError(
            f"{at}: shape {str(shape)[:80]} holds more values than can be counted; the file is damaged"
        )
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
