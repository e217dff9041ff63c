"""`GgufFile`: the container that llama.cpp's models come in, read strictly and within bounds. Loads no torch.

A file is a header (magic, version 2 or 3, two counts), metadata (key, type, value), a table of tensors (name, sizes,
type, offset) and the tensors' bytes, aligned. Every count and length is held against the bytes that are left before
anything is allocated for it, so a hostile file costs no more than its own size. The file is read, not mapped: one
that is cut short meanwhile is an error, not a signal that ends the process.
Source: ggml, docs/gguf.md; block sizes from gguf-py, `GGML_QUANT_SIZES`.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fledge.errors import TokenizerError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_KEY_BYTES = 1 << 16
MAX_ELEMENTS = 4_000_000  # strings or numbers of one array; the largest vocabulary in wide use has 0.3 million
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32

STRING, ARRAY, BOOL = 8, 9, 7
NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}

# ggml type -> name, weights a block, bytes a block
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


@dataclass(frozen=True)
class GgufTensor:
    """An entry of the tensor table. `shape` is numpy's: rows first, the dimension that lies together in memory last
    (the file lists it the other way round). `start` is the byte in the file where its `n_bytes` begin."""

    name: str
    shape: tuple[int, ...]
    type: str
    start: int
    n_bytes: int


class GgufFile:
    """`metadata` maps keys to values: str, bool, int, float, a list of str or bool, or a numpy array of numbers.
    `tensors` maps names to GgufTensor. Use as a context manager, or `close()` when done; no tensor is read before
    asked for."""

    def __init__(self, path: str | Path):
        """Open and check the file. Raises TokenizerError naming the file and what is wrong."""
        self.path = Path(path)
        try:
            self.file = open(self.path, "rb")  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise TokenizerError(f"{self.path}: expected a GGUF file, can't be read ({error.strerror})") from None
        try:
            reader = Reader(self.file, str(self.path))
            self.version, n_tensors, n_keys = reader.head()
            self.metadata = reader.read_metadata(n_keys)
            self.alignment = reader.alignment(self.metadata)
            self.tensors = reader.read_table(n_tensors, self.alignment)
        except BaseException:
            self.close()
            raise

    def data(self, name: str) -> np.ndarray:
        """The tensor's values, read from the file: its `shape` for plain types; for BF16 its `shape` as uint16; for
        block types uint8 [..., bytes of a row]. Raises KeyError for an unknown name, TokenizerError for a file that
        has been cut short since."""
        tensor = self.tensors[name]
        self.file.seek(tensor.start)
        read = self.file.read(tensor.n_bytes)
        if len(read) != tensor.n_bytes:
            raise TokenizerError(f"{self.path}: tensor {name!r:.60}: the file ended early; it changed while being read")
        raw = np.frombuffer(read, np.uint8)
        plain = "<u2" if tensor.type == "BF16" else PLAIN.get(tensor.type)
        if plain is not None:
            return raw.view(plain).reshape(tensor.shape)
        rows = tensor.shape[:-1]
        return raw.reshape(*rows, tensor.n_bytes // max(1, math.prod(rows)))

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()


class Reader:
    """Reads one value after the other and refuses what reaches beyond the end."""

    def __init__(self, file: BinaryIO, path: str):
        self.file, self.path = file, path
        self.place, self.end = 0, os.fstat(file.fileno()).st_size
        if not self.end:
            raise TokenizerError(f"{path}: expected a GGUF file, can't be read (it is empty)")

    def fail(self, what: str) -> TokenizerError:
        return TokenizerError(f"{self.path}, byte {self.place}: {what}; the file is damaged or no GGUF file")

    def take(self, n: int, what: str) -> bytes:
        if n > self.end - self.place:
            raise self.fail(f"{what}: expected {n} bytes, got {self.end - self.place} before the end")
        found = self.file.read(n)
        if len(found) != n:
            raise self.fail(f"{what}: the file ended early")
        self.place += n
        return found

    def number(self, form: str, what: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def count(self, limit: int, least_bytes: int, what: str) -> int:
        """A count of things that take `least_bytes` each at least. Refused beyond `limit` or the end of the file."""
        n: int = self.number("<Q", what)
        room = (self.end - self.place) // least_bytes
        if n > min(limit, room):
            raise self.fail(f"{what}: expected at most {min(limit, room)}, got {n}")
        return n

    def string(self, limit: int, what: str) -> str:
        data = self.take(self.count(limit, 1, what), what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what}: expected UTF-8, got {data[:24]!r}") from None

    def head(self) -> tuple[int, int, int]:
        """Version, number of tensors, number of metadata keys."""
        magic = self.take(4, "magic")
        if magic != MAGIC:
            raise TokenizerError(f"{self.path}: expected a GGUF file, got one that begins with {magic!r}")
        version: int = self.number("<I", "version")
        if version not in VERSIONS:
            swapped = version & 0xFFFF == 0
            remedy = "it is big-endian; convert it with gguf-py" if swapped else "convert the model anew"
            raise TokenizerError(f"{self.path}: version: expected 2 or 3, got {version}; {remedy}")
        n_tensors = self.count(MAX_TENSORS, 24, "number of tensors")
        return version, n_tensors, self.count(MAX_KEYS, 13, "number of metadata keys")

    def read_metadata(self, n_keys: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self.string(MAX_KEY_BYTES, "metadata key")
            if key in found:
                raise self.fail(f"metadata key {key!r:.60}: expected once, got twice")
            found[key] = self.value(self.number("<I", f"type of {key!r:.60}"), f"value of {key!r:.60}")
        return found

    def value(self, kind: int, what: str) -> Any:
        if kind == STRING:
            return self.string(self.end, what)
        if kind == ARRAY:
            return self.array(what)
        if kind == BOOL:
            return self.boolean(self.number("<B", what), what)
        if kind not in NUMBERS:
            raise self.fail(f"{what}: expected a type of 0..12, got {kind}")
        return np.frombuffer(self.take(np.dtype(NUMBERS[kind]).itemsize, what), NUMBERS[kind])[0].item()

    def array(self, what: str) -> Any:
        kind: int = self.number("<I", what)
        if kind == STRING:
            return [self.string(self.end, what) for _ in range(self.count(MAX_ELEMENTS, 8, what))]
        if kind == BOOL:
            n = self.count(MAX_ELEMENTS, 1, what)
            return [self.boolean(byte, what) for byte in self.take(n, what)]
        if kind not in NUMBERS:
            raise self.fail(f"{what}: expected an array of numbers, booleans or strings, got type {kind}")
        size = np.dtype(NUMBERS[kind]).itemsize
        n = self.count(MAX_ELEMENTS, size, what)
        return np.frombuffer(self.take(n * size, what), NUMBERS[kind])

    def boolean(self, value: int, what: str) -> bool:
        if value not in (0, 1):
            raise self.fail(f"{what}: expected 0 or 1 for a boolean, got {value}")
        return bool(value)

    def alignment(self, metadata: dict[str, Any]) -> int:
        found = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if isinstance(found, bool) or not isinstance(found, int) or found not in (1 << n for n in range(3, 21)):
            raise self.fail(f"general.alignment: expected a power of two from 8 to {1 << 20}, got {found!r:.20}")
        return found

    def read_table(self, n_tensors: int, alignment: int) -> dict[str, GgufTensor]:
        """The tensor table, each tensor checked to lie inside the file and none on another."""
        entries = {}
        for _ in range(n_tensors):
            name, shape, kind, offset = self.entry()
            if name in entries:
                raise self.fail(f"tensor {name!r:.60}: expected once, got twice")
            entries[name] = (shape, kind, offset)
        begin = -(-self.place // alignment) * alignment
        found = {}
        for name, (shape, kind, offset) in entries.items():
            label, weights, n_bytes = TYPES[kind]
            size = math.prod(shape) // weights * n_bytes
            if offset % alignment or begin + offset + size > self.end:
                raise TokenizerError(
                    f"{self.path}: tensor {name!r:.60}: expected {size} bytes at a multiple of {alignment} inside the "
                    f"file of {self.end} bytes, got offset {offset}; the file is damaged or cut short"
                )
            found[name] = GgufTensor(name, shape, label, begin + offset, size)
        laid = sorted((tensor.start, tensor.n_bytes, tensor.name) for tensor in found.values() if tensor.n_bytes)
        for (start, n_bytes, name), (following, _, other) in zip(laid, laid[1:], strict=False):
            if start + n_bytes > following:
                raise TokenizerError(
                    f"{self.path}: tensors {name!r:.60} and {other!r:.60}: expected apart, got overlap"
                )
        return found

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string(MAX_KEY_BYTES, "tensor name")
        what = f"tensor {name!r:.60}"
        n_dimensions: int = self.number("<I", what)
        if not 1 <= n_dimensions <= MAX_DIMENSIONS:
            raise self.fail(f"{what}: expected 1..{MAX_DIMENSIONS} dimensions, got {n_dimensions}")
        sizes = [int(self.number("<Q", what)) for _ in range(n_dimensions)]
        kind: int = self.number("<I", what)
        if kind not in TYPES:
            raise self.fail(f"{what}: expected a known ggml type, got {kind}")
        if math.prod(sizes) > 1 << 56 or sizes[0] % TYPES[kind][1]:
            raise self.fail(f"{what}: expected rows of whole {TYPES[kind][0]} blocks, got sizes {sizes}"[:200])
        return name, tuple(reversed(sizes)), kind, int(self.number("<Q", what))
