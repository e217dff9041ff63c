"""Writing the GGUF container: metadata and tensors. What it writes `GgufFile` and llama.cpp read.

Source: ggml, docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fledge.errors import TokenizerError
from fledge.text.gguf_file import ARRAY, BOOL, DEFAULT_ALIGNMENT, MAGIC, NUMBERS, PLAIN, STRING, TYPES

NUMBER_TYPES = {np.dtype(form): number for number, form in NUMBERS.items()}
TENSOR_TYPES = {name: number for number, (name, _, _) in TYPES.items()}
SIZES = {name: (weights, n_bytes) for name, weights, n_bytes in TYPES.values()}
PLAIN_TYPES = {np.dtype(form): name for name, form in PLAIN.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor that will be written: `shape` is numpy's, rows first; `type` a name of ggml's."""

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def n_bytes(self) -> int:
        weights, block_bytes = SIZES[self.type]
        return math.prod(self.shape) // weights * block_bytes

    @property
    def padded_bytes(self) -> int:
        """Its bytes and the zeros up to the next tensor."""
        return self.n_bytes + -self.n_bytes % DEFAULT_ALIGNMENT


def header(metadata: Mapping[str, Any], entries: Sequence[Entry]) -> bytes:
    """Everything before the tensors' bytes, in version 3; these follow in the order of `entries`, each at a multiple of
    32. Whole numbers become uint32 (int32 below zero, 64 bits where they need them), floats float32; lists hold str or
    bool, arrays numbers. Raises TokenizerError for a value that the format has no type for."""
    parts = [MAGIC, struct.pack("<IQQ", 3, len(entries), len(metadata))]
    parts += [text(key) + value_of(key, value) for key, value in metadata.items()]
    offset = 0
    for entry in entries:
        sizes = tuple(reversed(entry.shape))
        form = f"<I{len(sizes)}QIQ"
        parts.append(text(entry.name) + struct.pack(form, len(sizes), *sizes, TENSOR_TYPES[entry.type], offset))
        offset += entry.padded_bytes
    head = b"".join(parts)
    return head + (bytes(-len(head) % DEFAULT_ALIGNMENT) if entries else b"")


def write_gguf(path: str | Path, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None = None) -> None:
    """Write a small file whole (see `header`). `tensors`: arrays of plain types in numpy's order of dimensions."""
    entries, bodies = [], []
    for name, array in (tensors or {}).items():
        kind = PLAIN_TYPES.get(array.dtype)
        if kind is None or not array.ndim or math.prod(array.shape) == 0:
            raise TokenizerError(f"{path}: tensor {name!r:.40}: expected a plain type with values, got {array.dtype}")
        entries.append(Entry(name, array.shape, kind))
        bodies.append(np.ascontiguousarray(array).tobytes().ljust(entries[-1].padded_bytes, b"\0"))
    Path(path).write_bytes(b"".join([header(metadata, entries), *bodies]))


def text(value: str) -> bytes:
    data = value.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def value_of(key: str, value: Any) -> bytes:
    """Type and value of one entry."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + text(value)
    if isinstance(value, bool):
        return struct.pack("<IB", BOOL, value)
    if isinstance(value, int):
        form = "<u4" if 0 <= value < 1 << 32 else "<i4" if -(1 << 31) <= value < 0 else "<u8" if value >= 0 else "<i8"
        return number(form) + np.array(value, form).tobytes()
    if isinstance(value, float):
        return number("<f4") + np.array(value, "<f4").tobytes()
    if isinstance(value, np.ndarray) and value.dtype in NUMBER_TYPES and value.ndim == 1:
        head = struct.pack("<IIQ", ARRAY, NUMBER_TYPES[value.dtype], len(value))
        return head + value.tobytes()
    if isinstance(value, Sequence):
        if all(isinstance(item, bool) for item in value) and value:
            return struct.pack("<IIQ", ARRAY, BOOL, len(value)) + bytes(value)
        if all(isinstance(item, str) for item in value):
            return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(text, value))
    raise TokenizerError(f"{key}: expected text, numbers, booleans or a list of them, got {type(value).__name__}")


def number(form: str) -> bytes:
    return struct.pack("<I", NUMBER_TYPES[np.dtype(form)])
