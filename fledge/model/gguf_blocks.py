"""The values of GGUF tensors whose weights are kept in blocks: a few bits a weight, a scale a block.

Source: ggml's block layouts (ggml-common.h) and `gguf.quants`, which a test compares bit by bit. N blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fledge.errors import CheckpointError
from fledge.text.gguf_file import GgufFile

Bytes = np.ndarray  # uint8 [N, bytes of a block]


def values(file: GgufFile, name: str) -> np.ndarray:
    """A tensor's values, float32 in its shape. Raises CheckpointError for a type that is not read."""
    tensor, raw = file.tensors[name], file.data(name)
    if tensor.type in ("F32", "F16", "F64"):
        return raw.astype(np.float32)
    if tensor.type == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if tensor.type not in BLOCKS:
        known = ", ".join(("F32", "F16", "BF16", *BLOCKS))
        raise CheckpointError(f"{name[:60]}: expected one of {known}, got {tensor.type}; convert from another file")
    block_bytes, unpack = BLOCKS[tensor.type]
    return unpack(raw.reshape(-1, block_bytes)).reshape(tensor.shape)


def half(raw: Bytes) -> np.ndarray:
    """Two bytes a block as float32 [N, 1]."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def nibbles(raw: Bytes) -> np.ndarray:
    """The low halves of all bytes, then the high halves: int8 [N, 2 bytes]."""
    return np.concatenate((raw & 15, raw >> 4), 1).astype(np.int8)


def q8_0(raw: Bytes) -> np.ndarray:
    return raw[:, 2:].view(np.int8).astype(np.float32) * half(raw[:, :2])


def q4_0(raw: Bytes) -> np.ndarray:
    return half(raw[:, :2]) * (nibbles(raw[:, 2:]) - np.int8(8)).astype(np.float32)


def q4_1(raw: Bytes) -> np.ndarray:
    return half(raw[:, :2]) * nibbles(raw[:, 4:]).astype(np.float32) + half(raw[:, 2:4])


def q5_0(raw: Bytes) -> np.ndarray:
    return half(raw[:, :2]) * (with_fifth(raw[:, 2:]) - np.int8(16)).astype(np.float32)


def q5_1(raw: Bytes) -> np.ndarray:
    return half(raw[:, :2]) * with_fifth(raw[:, 4:]).astype(np.float32) + half(raw[:, 2:4])


def with_fifth(raw: Bytes) -> np.ndarray:
    """32 numbers of 5 bits: the fifth ones, bit by bit in 4 bytes, then the others. int8 [N, 32]."""
    fifth = np.unpackbits(raw[:, :4], axis=1, bitorder="little").astype(np.int8)
    return nibbles(raw[:, 4:]) | fifth << 4


def q2_k(raw: Bytes) -> np.ndarray:
    """Sixteen groups of 16, a scale and a minimum of 4 bits each."""
    steps = half(raw[:, 80:82]) * (raw[:, :16] & 15).astype(np.float32)
    offsets = half(raw[:, 82:84]) * (raw[:, :16] >> 4).astype(np.float32)
    codes = pairs_of_bits(raw[:, 16:80]).reshape(len(raw), 16, 16).astype(np.float32)
    return steps[:, :, None] * codes - offsets[:, :, None]


def q3_k(raw: Bytes) -> np.ndarray:
    """Sixteen groups of 16, a scale of 6 bits each; the third bits stand apart and take 4 off where they are 0."""
    n = len(raw)
    low = np.concatenate((raw[:, 96:104] & 15, raw[:, 96:104] >> 4), 1)
    high = np.concatenate([raw[:, 104:108] >> shift & 3 for shift in (0, 2, 4, 6)], 1)
    scale = (low | high << 4).astype(np.int8) - np.int8(32)
    third = raw[:, :32].reshape(n, 1, 32) >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1) & 1
    codes = (pairs_of_bits(raw[:, 32:96]) | third << 2).astype(np.int8) - np.int8(4)
    steps = half(raw[:, 108:]) * scale.astype(np.float32)
    return steps[:, :, None] * codes.reshape(n, 16, 16).astype(np.float32)


def pairs_of_bits(raw: Bytes) -> np.ndarray:
    """Eight groups of 32 numbers of 2 bits, four groups in each 32 bytes: uint8 [N, 8, 32]."""
    quarters = raw.reshape(len(raw), 2, 1, 32)
    return np.concatenate([quarters >> shift & 3 for shift in (0, 2, 4, 6)], 2).reshape(len(raw), 8, 32)


def q4_k(raw: Bytes) -> np.ndarray:
    """Eight groups of 32 with a scale and a minimum each."""
    steps, offsets = scales_and_minima(raw)
    return steps * pairs_of_groups(raw[:, 16:]).astype(np.float32) - offsets


def q5_k(raw: Bytes) -> np.ndarray:
    """As Q4_K; the fifth bits stand apart, bit g of each of 32 bytes for group g."""
    steps, offsets = scales_and_minima(raw)
    fifth = raw[:, 16:48].reshape(len(raw), 1, 32) >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1) & 1
    return steps * (pairs_of_groups(raw[:, 48:]) | fifth << 4).astype(np.float32) - offsets


def scales_and_minima(raw: Bytes) -> tuple[np.ndarray, np.ndarray]:
    """Of eight groups, float32 [N, 8, 1] each: 6 bits each, packed into 12 bytes, times a float16 each."""
    packed = raw[:, 4:16].reshape(len(raw), 3, 4)
    low, middle, high = packed[:, 0], packed[:, 1], packed[:, 2]
    scale = np.concatenate((low & 63, (high & 15) | (low >> 6 << 4)), 1)
    minimum = np.concatenate((middle & 63, (high >> 4) | (middle >> 6 << 4)), 1)
    steps = half(raw[:, :2]) * scale.astype(np.float32)
    offsets = half(raw[:, 2:4]) * minimum.astype(np.float32)
    return steps[:, :, None], offsets[:, :, None]


def pairs_of_groups(raw: Bytes) -> np.ndarray:
    """Eight groups of 32 numbers of 4 bits, two groups in each 32 bytes: uint8 [N, 8, 32]."""
    pairs = raw.reshape(len(raw), 4, 1, 32)
    return np.concatenate((pairs & 15, pairs >> 4), 2).reshape(len(raw), 8, 32)


def q6_k(raw: Bytes) -> np.ndarray:
    """Sixteen groups of 16 with an int8 scale each; four low bits and two high ones of a weight stand apart."""
    n = len(raw)
    halves, quarters = raw[:, :128].reshape(n, 2, 1, 64), raw[:, 128:192].reshape(n, 2, 1, 32)
    low = np.concatenate((halves & 15, halves >> 4), 2).reshape(n, 8, 32)
    high = np.concatenate([quarters >> shift & 3 for shift in (0, 2, 4, 6)], 2).reshape(n, 8, 32)
    codes = (low | high << 4).astype(np.int8) - np.int8(32)
    scale = raw[:, 192:208].view(np.int8).astype(np.float32) * half(raw[:, 208:])
    return scale[:, :, None] * codes.reshape(n, 16, 16).astype(np.float32)


BLOCKS: dict[str, tuple[int, Callable[[Bytes], np.ndarray]]] = {
    "Q8_0": (34, q8_0),
    "Q4_0": (18, q4_0),
    "Q4_1": (20, q4_1),
    "Q5_0": (22, q5_0),
    "Q5_1": (24, q5_1),
    "Q2_K": (84, q2_k),
    "Q3_K": (110, q3_k),
    "Q4_K": (144, q4_k),
    "Q5_K": (176, q5_k),
    "Q6_K": (210, q6_k),
}
