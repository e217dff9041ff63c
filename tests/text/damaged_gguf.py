"""Mending the data set's GGUF vocabularies: somebody's copy replaced every byte that isn't UTF-8 by U+FFFD.

Texts and small numbers came through whole; counts, ids and lengths of 128 and more, and most float scores did not. The
strings are found again by the zero bytes of the length that follows each; scores are taken from the model's own file.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

LOST = "\ufffd".encode()
KEYS = ("tokens", "token_type", "merges")
ROLES = ("bos", "eos", "unknown", "padding", "seperator", "cls", "mask")


def is_damaged(path: Path) -> bool:
    """Whether a file is valid UTF-8 with replacement characters, which no GGUF file of this size is."""
    data = path.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return LOST in data


def mended(path: Path, scores: np.ndarray | None = None) -> dict[str, Any]:
    """The vocabulary's metadata, with `scores` if given."""
    data = path.read_bytes()
    found: dict[str, Any] = {}
    for name in ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre"):
        place = value_place(data, name) + 4
        (n,) = struct.unpack_from("<Q", data, place)
        found[name] = data[place + 8 : place + 8 + n].decode()
    tokens = strings(data, "tokenizer.ggml.tokens")
    found["tokenizer.ggml.tokens"] = tokens
    place = after_count(data, "tokenizer.ggml.token_type")
    found["tokenizer.ggml.token_type"] = np.frombuffer(data, "<i4", len(tokens), place)
    if b"tokenizer.ggml.merges" in data:
        found["tokenizer.ggml.merges"] = strings(data, "tokenizer.ggml.merges")
    if scores is not None:
        found["tokenizer.ggml.scores"] = scores
    for role in ROLES:
        name = f"tokenizer.ggml.{role}_token_id"
        if name.encode() in data:
            raw = data[value_place(data, name) + 4 :][:4]
            if LOST not in raw and LOST[:2] not in raw:
                found[name] = struct.unpack("<I", raw)[0]
    return found


def value_place(data: bytes, name: str) -> int:
    """Where the type of a key's value stands."""
    encoded = name.encode()
    return data.index(struct.pack("<Q", len(encoded)) + encoded) + 8 + len(encoded)


def after_count(data: bytes, name: str) -> int:
    """Where the first element of an array stands: after type, type of elements, and a count of 8 bytes, of which one or
    two may be one lost mark of 3 bytes."""
    place = value_place(data, name) + 8
    lost = data.find(LOST, place, place + 8)
    if lost < 0:
        return place + 8
    place = lost + 3
    while data[place] == 0:
        place += 1
    return place


def strings(data: bytes, name: str) -> list[str]:
    """The strings of an array, up to the next key or the end."""
    place = after_count(data, name)
    found = []
    while place < len(data):
        lost = data[place : place + 3] == LOST
        length = None if lost else struct.unpack_from("<Q", data, place)[0]
        start = place + (10 if lost else 8)
        if length is None:  # up to the length that follows: one byte, or a lost one, before seven zeros
            zeros = data.index(bytes(7), start)
            length = (zeros - 3 if data[zeros - 3 : zeros] == LOST else zeros - 1) - start
        text = data[start : start + length].decode()
        if text.startswith(("tokenizer.", "general.")) and b"\0\0\0" in data[start + length : start + length + 4]:
            break
        found.append(text)
        place = start + length
    return found
