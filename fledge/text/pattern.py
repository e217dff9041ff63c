"""The split patterns of byte-level BPE, as their authors published them, and where a text may be cut beforehand.

A pattern decides which characters may share a token. Ours are those that other software knows by name, unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

PatternName = Literal["gpt2", "llama3", "qwen2", "o200k"]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS: dict[str, str] = {"gpt2": GPT2, "llama3": LLAMA3, "qwen2": QWEN2, "o200k": O200K}
EVERY_CHARACTER = r"[\s\S]"  # how our character tokenizers split
KNOWN = frozenset((*PATTERNS.values(), EVERY_CHARACTER))  # linear, so loading needn't try them out

# A newline after one of these begins a new piece under the pattern, whatever stands around it, so that the two sides
# can be encoded apart. GPT-2's keeps newlines to themselves; the others glue them to punctuation, not to letters.
SAFE_CUT = {
    "gpt2": re.compile(r"(?<=\S)\n"),
    "llama3": re.compile(r"(?<=[A-Za-z0-9])\n"),
    "qwen2": re.compile(r"(?<=[A-Za-z0-9])\n"),
    "o200k": re.compile(r"(?<=[A-Za-z0-9])\n"),
}


def pre_tokenizer_of(name: str) -> dict[str, Any]:
    """The `pre_tokenizer` entry of tokenizer.json for a pattern (the byte alphabet included)."""
    if name == "gpt2":
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": PATTERNS[name]}, "behavior": "Isolated", "invert": False}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, plain]}


def name_of(pre_tokenizer: Any) -> str | None:
    """The pattern that a `pre_tokenizer` entry spells, or None if it is none of ours."""
    wanted = without_offsets(pre_tokenizer)
    for name in PATTERNS:
        if wanted == without_offsets(pre_tokenizer_of(name)):
            return name
    return None


def without_offsets(entry: Any) -> Any:
    """`entry` without `trim_offsets`, which moves character offsets and no id; a missing `use_regex` is True."""
    if isinstance(entry, list):
        return [without_offsets(item) for item in entry]
    if not isinstance(entry, dict):
        return entry
    kept = {key: without_offsets(value) for key, value in entry.items() if key != "trim_offsets"}
    if kept.get("type") == "ByteLevel":
        kept.setdefault("use_regex", True)
    return kept


def pieces(text: str, name: str, characters: int) -> Iterator[str]:
    """`text` in pieces of about `characters`, cut only where no id can change (pieces are longer where it can't be)."""
    cut = SAFE_CUT[name]
    start = 0
    while len(text) - start > characters:
        found = cut.search(text, start + characters)
        if found is None:
            break
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]
