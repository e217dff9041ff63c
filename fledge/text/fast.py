"""Quick ways from text to arrays of ids, equal to the plain ones: tiktoken for byte-level BPE, a table for characters.

tiktoken (extra `fast-tok`) joins any neighbours whose bytes together are a token, lowest id first; Hugging Face's BPE
joins listed pairs, first one first. The two agree when ids rise with the merges and every token encodes to itself, or
words that are tokens are taken whole: `ranks_of` checks just that, and a tokenizer that fails is encoded the plain way.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import tokenizers

from fledge.errors import TokenizerError
from fledge.text import pattern
from fledge.text.byte_alphabet import to_bytes
from fledge.text.model_check import split_merge
from fledge.text.tokenizer_file import TokenizerFile

PIECE_CHARACTERS = 100_000  # of a long text: enough to fill the cores, little enough to hold in memory
LONGEST_SPACE = 5000
LONG_SPACE = re.compile(
    rf"\s{{{LONGEST_SPACE}}}"
)  # tiktoken's regex engine overflows its stack on some hundred thousand
NO_TEXT = "\0fledge\0"  # tiktoken's one special token, which is never allowed: where a text spells it, it is text
ALLOWED: frozenset[str] = frozenset()


class QuickEncoder:
    """tiktoken's `Encoding` over a vocabulary of ours, bytes to ids, under a split pattern."""

    def __init__(self, make: Any, ranks: dict[bytes, int], split: str):
        # Without any special token tiktoken looks for the empty one at every character.
        special = {NO_TEXT: max(ranks.values()) + 1}
        encoding = make("fledge", pat_str=split, mergeable_ranks=ranks, special_tokens=special)
        self.buffer_of = encoding._core_bpe.encode_to_tiktoken_buffer  # what encode_to_numpy calls after its checks

    def encode(self, text: str) -> np.ndarray | None:
        """Ids of `text` as uint32 [n], not to be written to; None for the rare text that tiktoken can't take: one that
        is not Unicode, or needs too much backtracking."""
        if len(text) >= LONGEST_SPACE and has_long_space(text):
            return None
        try:
            return np.frombuffer(self.buffer_of(text, ALLOWED), np.uint32)
        except ValueError:
            return None


def has_long_space(text: str) -> bool:
    """Whether LONGEST_SPACE characters of space stand together: they then fill one of the text's halves of that length,
    which is far quicker to ask than a search."""
    half = LONGEST_SPACE // 2
    filled = any(text[start : start + half].isspace() for start in range(0, len(text) - half + 1, half))
    return filled and LONG_SPACE.search(text) is not None


def quick_encoder(file: TokenizerFile, control: frozenset[int], plain: tokenizers.Tokenizer) -> QuickEncoder | None:
    """A QuickEncoder whose ids equal `plain`'s, or None if tiktoken is not installed or can't give them."""
    if not is_plain(file, control):
        return None
    try:
        import tiktoken
    except ImportError:
        return None
    ranks = ranks_of(file, plain)
    return None if ranks is None else QuickEncoder(tiktoken.Encoding, ranks, pattern.PATTERNS[str(file.pattern)])


def is_plain(file: TokenizerFile, control: frozenset[int]) -> bool:
    """Whether nothing but a published split pattern and the merges decides the ids of a text."""
    return file.pattern is not None and file.tree.get("normalizer") is None and set(file.added) <= control


def ranks_of(file: TokenizerFile, plain: tokenizers.Tokenizer) -> dict[bytes, int] | None:
    """tiktoken's table, bytes -> id, or None if its order of merging could differ from the listed one."""
    vocab = {token: i for token, i in file.tree["model"]["vocab"].items() if i not in file.added}
    ranks = {to_bytes(token): number for token, number in vocab.items()}
    if None in ranks or len(ranks) != len(vocab) or any(bytes([byte]) not in ranks for byte in range(256)):
        return None
    last, merges = -1, file.tree["model"].get("merges", [])
    for merge in merges:
        left, right = split_merge(merge) or ("", "")
        if left not in vocab or right not in vocab or left + right not in vocab:
            return None
        number = vocab[left + right]
        if number < last:
            return None
        last = number
    if not same_joins(file, plain, list(vocab)):
        return None
    return {data: number for data, number in ranks.items() if data is not None}


def same_joins(file: TokenizerFile, plain: tokenizers.Tokenizer, tokens: list[str]) -> bool:
    """Whether tiktoken's joins are those listed, which then decide the same: shown token by token, the shorter first,
    by each encoding to itself. Where words that are tokens are taken whole, one may also stay in three parts or more,
    of which none has a join in either library; of two, tiktoken would make the token."""
    model = plain.model
    if not file.tree["model"].get("ignore_merges"):
        return all(len(model.tokenize(token)) == 1 for token in tokens)
    tree = {"version": "1.0", "added_tokens": [], "model": {**file.tree["model"], "ignore_merges": False}}
    model = tokenizers.Tokenizer.from_str(json.dumps(tree)).model
    return all(len(model.tokenize(token)) != 2 for token in tokens)


class Alphabet:
    """Single characters to ids by binary search among the code points; others become `unknown`."""

    def __init__(self, ids: dict[str, int], unknown: int | None):
        if not ids:
            raise TokenizerError("tokenizer: expected a character that may be encoded, found only special tokens")
        points = sorted((ord(character), number) for character, number in ids.items())
        self.points = np.array([point for point, _ in points], dtype=np.uint32)
        self.ids = np.array([number for _, number in points], dtype=np.uint32)
        self.unknown = unknown

    def encode(self, text: str) -> np.ndarray:
        """Ids as uint32 [characters]; without an `unknown` id, unknown characters are left out."""
        wanted = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        place = np.minimum(np.searchsorted(self.points, wanted), len(self.points) - 1)
        known, found = self.points[place] == wanted, self.ids[place]
        return found[known] if self.unknown is None else np.where(known, found, np.uint32(self.unknown))
