"""What a tokenizer.json's `model` must satisfy, kind by kind, before anything encodes with it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from fledge.errors import TokenizerError

MAX_PIECE_CHARACTERS = 256  # of Unigram, which looks up every beginning of what follows; some 20 are common
MAX_ENTRIES = 1 << 20  # of a vocabulary; the largest in wide use has 0.9 million
MAX_SPLITS = 32_000_000  # squared lengths of the tokens whose merges are looked for; Llama 3's have 7 million
MAX_WORD_CHARACTERS = 200  # that WordPiece tries to cut: it takes quadratic time; 100 everywhere


def vocab_of(model: Any, at: str) -> list[tuple[str, Any]]:
    """(token, id) of every entry: of a mapping, or of Unigram's list of (token, score). Raises TokenizerError."""
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        return list(vocab.items())
    if not isinstance(vocab, list) or name_of(model) != "Unigram":
        raise TokenizerError(f"{at}: model.vocab: expected a mapping of tokens to ids, got {describe(vocab)}")
    seen: set[str] = set()
    for number, entry in enumerate(vocab):
        fits = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and is_score(entry[1])
        if not fits or not entry[0] or len(entry[0]) > MAX_PIECE_CHARACTERS:
            raise TokenizerError(
                f"{at}: model.vocab[{number}]: expected a piece of 1..{MAX_PIECE_CHARACTERS} characters and a finite "
                f"score, got {describe(entry)}"
            )
        if entry[0] in seen:
            raise TokenizerError(f"{at}: model.vocab[{number}]: expected {entry[0]!r:.40} once, got it twice")
        seen.add(entry[0])
    return [(entry[0], number) for number, entry in enumerate(vocab)]


def is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30 and math.isfinite(value)


def name_of(model: dict[str, Any]) -> Any:
    """The model's type; old files don't say it."""
    if model.get("type"):
        return model["type"]
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "BPE" if "merges" in model else "WordPiece" if "max_input_chars_per_word" in model else "none"


def check_model(model: dict[str, Any], at: str) -> None:
    """Raises TokenizerError unless encoding with this model is deterministic and takes bounded time."""
    name = name_of(model)
    if name == "Unigram":
        unknown = model.get("unk_id")
        good = isinstance(unknown, int) and not isinstance(unknown, bool) and 0 <= unknown < len(model["vocab"])
        if not (good or unknown is None and model.get("byte_fallback")):
            raise TokenizerError(f"{at}: model.unk_id: expected the id of a piece, got {describe(unknown)}")
    elif name == "WordPiece":
        longest = model.get("max_input_chars_per_word", 100)
        if isinstance(longest, bool) or not isinstance(longest, int) or not 1 <= longest <= MAX_WORD_CHARACTERS:
            raise TokenizerError(
                f"{at}: model.max_input_chars_per_word: expected 1..{MAX_WORD_CHARACTERS}, got {describe(longest)}"
            )
        if model.get("unk_token", "[UNK]") not in model["vocab"]:
            raise TokenizerError(f"{at}: model.unk_token: {describe(model.get('unk_token'))} is not in the vocabulary")
    elif name == "BPE":
        check_bpe(model, at)


def check_bpe(model: dict[str, Any], at: str) -> None:
    """Raises TokenizerError unless the merges join known tokens to known tokens and encoding is deterministic."""
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise TokenizerError(f"{at}: model.{key}: expected none, got {describe(model[key])}; not supported")
    if model.get("dropout"):
        raise TokenizerError(
            f"{at}: model.dropout: expected none, got {describe(model['dropout'])}; ids would be random"
        )
    merges = model.get("merges", [])
    if not isinstance(merges, list):
        raise TokenizerError(f"{at}: model.merges: expected a list, got {describe(merges)}")
    vocab = model["vocab"]
    for place, merge in enumerate(merges):
        pair = split_merge(merge)
        if pair is None:
            raise TokenizerError(f"{at}: model.merges[{place}]: expected two tokens, got {describe(merge)}")
        left, right = pair
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise TokenizerError(
                f"{at}: model.merges[{place}]: {left!r:.30} + {right!r:.30}: not all in the vocabulary"
            )


def check_splits(lengths: Iterable[int], at: str) -> None:
    """Raises TokenizerError if to look for the ways in which tokens can be put together would take too long."""
    work = sum(length * length for length in lengths)
    if work > MAX_SPLITS:
        raise TokenizerError(
            f"{at}: expected tokens whose squared lengths add up to at most {MAX_SPLITS}, got {work}; their merges "
            "would take too long to find"
        )


def split_merge(merge: Any) -> tuple[str, str] | None:
    """Left and right of a merge in either of its two spellings, or None if it is neither."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) and p for p in parts):
        return None
    return parts[0], parts[1]


def describe(value: Any) -> str:
    """A value for a message, never long."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value) if isinstance(value, str | int | float | bool | type(None)) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
