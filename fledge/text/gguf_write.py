"""Writing the GGUF container: metadata and, for small ones, tensors. What it writes `GgufFile` and llama.cpp read.

Source: ggml, docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fledge.errors import TokenizerError
from fledge.text.gguf_file import ARRAY, BOOL, DEFAULT_ALIGNMENT, MAGIC, NUMBERS, PLAIN, STRING, TYPES

NUMBER_TYPES = {np.dtype(form): number for number, form in NUMBERS.items()}
TENSOR_TYPES = {name: number for number, (name, _, _) in TYPES.items()}
PLAIN_TYPES = {np.dtype(form): name for name, form in PLAIN.items()}


def write_gguf(path: str | Path, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None = None) -> None:
    """Write version 3. Whole numbers become uint32 (int32 below zero, 64 bits where they need them), floats float32;
    lists hold str or bool, arrays numbers. `tensors`: arrays of plain types in numpy's order of dimensions. Raises
    TokenizerError for a value that the format has no type for."""
    tensors = tensors or {}
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    parts += [text(key) + value_of(key, value) for key, value in metadata.items()]
    offset, bodies = 0, []
    for name, array in tensors.items():
        array = np.ascontiguousarray(array)
        kind = PLAIN_TYPES.get(array.dtype)
        if kind is None or not array.ndim or math.prod(array.shape) == 0:
            raise TokenizerError(f"{path}: tensor {name!r:.40}: expected a plain type with values, got {array.dtype}")
        sizes = tuple(reversed(array.shape))
        parts.append(text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, TENSOR_TYPES[kind], offset))
        body = array.tobytes()
        bodies.append(body + bytes(-len(body) % DEFAULT_ALIGNMENT))
        offset += len(bodies[-1])
    head = b"".join(parts)
    Path(path).write_bytes(b"".join([head, bytes(-len(head) % DEFAULT_ALIGNMENT) if tensors else b"", *bodies]))


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
