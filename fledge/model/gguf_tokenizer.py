"""A tokenizer's entries in the GGUF file of a model, as llama.cpp goes by them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from fledge.errors import TokenizerError
from fledge.log import warn
from fledge.model.resize import check_fits
from fledge.text.export import gguf_metadata
from fledge.text.gguf_patterns import other_in_llama_cpp
from fledge.text.gguf_vocab import PREFIX, source_of
from fledge.text.sentencepiece_model import BYTE, UNUSED
from fledge.text.tokenizer import Tokenizer, from_text

SAMPLE = (
    "Über 1,024 naïve élèves — don't  wait.\n\tfor i in range(10):\n    x += 3.14159\n你好，世界! Привет 😀👍🏽 नमस्ते  "
)


def tokenizer_metadata(tokenizer: Tokenizer, n_rows: int) -> dict[str, Any]:
    """The `tokenizer.*` entries for a model whose embedding has `n_rows` rows: those beyond the tokens are unused, and
    control tokens beyond the rows left out. A prompt begins with the token for the beginning, if there is one, as it
    does here.

    Raises TokenizerError for a tokenizer that GGUF, or llama.cpp, has no equal of.
    """
    check_fits(tokenizer, n_rows)
    if tokenizer.eos_id is None:
        raise TokenizerError(
            "gguf: expected a token for the end of a text, found none, and llama.cpp would take one of the others; "
            "name one as eos_token in tokenizer_config.json"
        )
    found = gguf_metadata(tokenizer)
    check_llama_cpp(found)
    for key in ("tokens", "token_type", "scores"):
        if PREFIX + key in found:
            found[PREFIX + key] = found[PREFIX + key][:n_rows]
    rest = max(0, n_rows - tokenizer.vocab_size)
    found[PREFIX + "tokens"] = [*found[PREFIX + "tokens"], *(f"[PAD{n_rows - rest + i}]" for i in range(rest))]
    twice = next((text for text, n in Counter(found[PREFIX + "tokens"]).items() if n > 1), None)
    if twice is not None:
        raise TokenizerError(
            f"gguf: {twice!r:.40}: expected once, got it twice: rows that are no token are called [PADn] in a file"
        )
    for key, value in (("token_type", UNUSED), ("scores", 0.0)):
        if PREFIX + key in found:
            old = found[PREFIX + key]
            found[PREFIX + key] = np.concatenate((old, np.full(rest, value, old.dtype)))
    ends = [number for number in tokenizer.stop_ids if number != tokenizer.eos_id]
    turn = tokenizer.end_id if tokenizer.end_id in ends else None
    return {
        **found,
        **({} if turn is None else {PREFIX + "eot_token_id": turn}),
        PREFIX + "add_bos_token": tokenizer.bos_id is not None,
    }


def check_llama_cpp(found: dict[str, Any]) -> None:
    """Raise TokenizerError for a vocabulary that a file can hold and llama.cpp would read differently."""
    kind = found[PREFIX + "model"]
    other = other_in_llama_cpp(found[PREFIX + "pre"])
    if other:
        warn(f"gguf: {PREFIX}pre: llama.cpp splits {other} in another way than {found[PREFIX + 'pre']!r} was made")
    has_bytes = bool((found[PREFIX + "token_type"] == BYTE).any())
    if kind == "t5" and has_bytes:
        raise TokenizerError(
            "gguf: expected Unigram pieces without bytes, got bytes for what has no piece: llama.cpp would give the "
            "unknown token instead; train a tokenizer of kind bpe"
        )
    if kind == "llama" and not has_bytes:
        raise TokenizerError(
            "gguf: expected bytes for characters without a piece, found none, and llama.cpp can't do without"
        )
    if kind == "llama" and (PREFIX + "precompiled_charsmap" in found or found[PREFIX + "remove_extra_whitespaces"]):
        raise TokenizerError(
            "gguf: expected SentencePiece's BPE to take a text as it is, got one that rewrites characters or spaces; "
            "llama.cpp does not"
        )
    if kind == "bert":
        raise TokenizerError("gguf: expected a tokenizer of a decoder, got BERT's WordPiece, which drops characters")


def check_tokenizer(metadata: dict[str, Any], tokenizer: Tokenizer, at: str) -> None:
    """Raise TokenizerError unless the metadata read back give the tokenizer's ids, for a sample and for the texts of
    its tokens, and its roles."""
    again = from_text(*source_of(metadata, at))
    ordinary = [number for number in range(tokenizer.vocab_size) if number not in tokenizer.control]
    texts = [SAMPLE] + [tokenizer.decode(ordinary[at : at + 64]) for at in range(0, len(ordinary), 64)]
    for text, expected, got in zip(texts, tokenizer.encode_batch(texts), again.encode_batch(texts), strict=True):
        if got != expected:
            place = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), 0)
            raise TokenizerError(
                f"gguf: {text[:40]!r}: expected {len(expected)} ids, at {place} {expected[place : place + 3]}, got "
                f"{len(got)}, {got[place : place + 3]}, from what a file can hold of this tokenizer"
            )
    for role in ("bos", "eos", "pad"):
        if again.special.get(role) != tokenizer.special.get(role):
            raise TokenizerError(
                f"gguf: {role}: expected id {tokenizer.special.get(role)}, got {again.special.get(role)} from the file"
            )
