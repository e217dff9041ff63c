"""SentencePiece's compiled normalisation: a blob that maps short texts to their replacements, longest first.

The blob is uint32 size of a double-array trie, the trie (uint32 units), then the replacements, each ended by a zero
byte. The trie is laid open once, level by level and within bounds, as a plain mapping.
Source: google/sentencepiece, src/normalizer.cc, `DecodePrecompiledCharsMap`, `NormalizePrefix`; s-yata/darts-clone,
`DoubleArrayUnit`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

from fledge.errors import TokenizerError

MAX_ENTRIES = 1 << 20  # NFKC with case folding has 0.23 million
MAX_KEY_BYTES = 64
MAX_REPLACEMENT_BYTES = 64  # the longest of NFKC has 33

LABEL = 0x800000FF  # of a unit: the byte that leads to it; a value has the top bit and so never fits a byte
HAS_VALUE = 1 << 8  # below this unit hangs a value


def read_charsmap(blob: bytes, at: str = "charsmap") -> dict[str, str]:
    """Text -> replacement. {} for an empty blob. Raises TokenizerError for a damaged one or one that blows texts up."""
    if not blob:
        return {}
    units, replacements = parts_of(blob, at)
    keys, places = keys_of(units, at)
    found: dict[str, str] = {}
    for key, place in zip(keys, places, strict=True):
        end = replacements.find(b"\0", place)
        if end < 0:
            raise TokenizerError(f"{at}: expected the end of the replacement of {key[:16]!r}, found none; damaged")
        try:
            found[key.decode("utf-8")] = replacements[place:end].decode("utf-8")
        except UnicodeDecodeError:
            raise TokenizerError(f"{at}: expected UTF-8, got {key[:16]!r}; the file is damaged") from None
    return found


def parts_of(blob: bytes, at: str = "charsmap") -> tuple[np.ndarray, bytes]:
    """The trie's units as int64 and the replacements. Raises TokenizerError for a damaged blob, or one with a
    replacement long enough to blow a text up."""
    size = struct.unpack_from("<I", blob)[0] if len(blob) >= 4 else -1
    if size < 4 or size % 4 or size > len(blob) - 4:
        raise TokenizerError(f"{at}: expected a trie within {len(blob)} bytes, got one of {size}; the file is damaged")
    replacements = blob[4 + size :]
    longest = max(map(len, replacements.split(b"\0")))
    if longest > MAX_REPLACEMENT_BYTES:
        raise TokenizerError(f"{at}: expected replacements of at most {MAX_REPLACEMENT_BYTES} bytes, got {longest}")
    return np.frombuffer(blob, "<u4", size // 4, 4).astype(np.int64), replacements


def keys_of(units: np.ndarray, at: str) -> tuple[list[bytes], list[int]]:
    """Keys and their values, shortest first. A unit's children stand at its offset xor their label; so each unit, by
    its own label, names the only offset whose child it can be, and sorting by that lists everybody's children."""
    offsets = (units >> 10) << ((units & (1 << 9)) >> 6)
    bases = np.arange(len(units)) ^ offsets  # where a unit's children begin
    bases[0] = offsets[0]
    labels = units & LABEL
    children = np.flatnonzero((labels > 0) & (labels < 256))
    owners = children ^ labels[children]
    order = np.argsort(owners, kind="stable")
    children, owners = children[order], owners[order]
    keys: list[bytes] = []
    values: list[int] = []
    nodes, spelled = np.zeros(1, np.int64), np.zeros((1, 0), np.uint8)
    for _ in range(MAX_KEY_BYTES):
        first, last = np.searchsorted(owners, bases[nodes], "left"), np.searchsorted(owners, bases[nodes], "right")
        counts = last - first
        if counts.sum() > MAX_ENTRIES:
            raise TokenizerError(f"{at}: expected at most {MAX_ENTRIES} entries, got more; the file is damaged")
        parents = np.repeat(np.arange(len(nodes)), counts)
        steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        nodes = children[first[parents] + steps]
        spelled = np.concatenate([spelled[parents], labels[nodes, None].astype(np.uint8)], axis=1)
        ended = np.flatnonzero(units[nodes] & HAS_VALUE)
        places = bases[nodes[ended]]
        if np.any(places >= len(units)):
            raise TokenizerError(f"{at}: expected a value within the trie; the file is damaged")
        width = spelled.shape[1]
        joined = spelled[ended].tobytes()
        keys += [joined[i : i + width] for i in range(0, len(joined), width)]
        values += (units[places] & 0x7FFFFFFF).tolist()
        if not len(nodes):
            return keys, values
        if len(keys) > MAX_ENTRIES:
            break
    raise TokenizerError(f"{at}: expected keys of at most {MAX_KEY_BYTES} bytes and {MAX_ENTRIES} entries; damaged")


def rewriter(mapping: dict[str, str]) -> Callable[[str], str]:
    """A function that replaces the longest key at each place of a text, from the left."""
    if not mapping:
        return lambda text: text
    followers = {key[1] for key in mapping if len(key) > 1}
    # Only a key itself, or the second character of a longer one, can be where a replacement shows first.
    wanted = np.zeros(0x110000, dtype=bool)
    wanted[[ord(key[min(1, len(key) - 1)]) for key in mapping]] = True
    longest = max(map(len, mapping))

    def rewrite(text: str) -> str:
        parts, done = [], 0
        for found in np.flatnonzero(wanted[np.frombuffer(text.encode("utf-32-le"), "<u4")]).tolist():
            if found < done:
                continue
            for start in (found - 1, found) if text[found] in followers and found > done else (found,):
                most = min(longest, len(text) - start) if text[start + 1 : start + 2] in followers else 1
                for length in range(most, found - start, -1):
                    replacement = mapping.get(text[start : start + length])
                    if replacement is not None:
                        parts += [text[done:start], replacement]
                        done = start + length
                        break
                if done > found:
                    break
        return "".join([*parts, text[done:]]) if parts else text

    return rewrite
