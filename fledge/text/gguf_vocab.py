"""The vocabulary inside a GGUF file as tokenizer.json and configuration, and the metadata of ours for such a file.

Source: ggml, docs/gguf.md, "Tokenizer"; llama.cpp, convert_hf_to_gguf.py and src/llama-vocab.cpp, for how a model's
pieces are laid down and what its `tokenizer.ggml.pre` stands for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fledge.errors import TokenizerError
from fledge.log import warn
from fledge.text.gguf_file import GgufFile
from fledge.text.gguf_patterns import REFUSED, SPACES_MARKED, SPLITS, Split, pre_tokenizer_of
from fledge.text.sentencepiece_model import SPACE_MARK, Piece, PieceModel
from fledge.text.sentencepiece_tree import tree_of
from fledge.text.vocab_files import bert_source, bpe_tree, entries, plain_config

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # token types, SentencePiece's
ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "pad": "padding",
    "cls": "cls",
    "mask": "mask",
    "sep": "seperator",
}
READERS = ("gpt2", "gemma4", "llama", "t5", "bert")
UNREAD = {
    "rwkv": "it takes the longest match in a trie of bytes",
    "plamo2": "it cuts by costs of suffixes",
    "hybriddna": "it is for DNA",
    "none": "the file has no vocabulary",
    "no_vocab": "the file has no vocabulary",
}


def read_gguf(path: str | Path) -> tuple[str, dict[str, Any]]:
    """tokenizer.json's text and the configuration (with the chat template, if any) of a GGUF file's vocabulary: kinds
    gpt2, gemma4, llama, bert and t5. Raises TokenizerError."""
    with GgufFile(path) as file:
        return source_of(file.metadata, str(path))


def source_of(metadata: dict[str, Any], at: str) -> tuple[str, dict[str, Any]]:
    """The same from metadata."""
    kind = metadata.get(PREFIX + "model")
    tokens = metadata.get(PREFIX + "tokens")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise TokenizerError(f"{at}: {PREFIX}tokens: expected a list of tokens, found none; the file has no vocabulary")
    n = len(tokens)
    types = numbers(metadata, "token_type", n, "iu", at)
    readers = dict(zip(READERS, (read_bpe, read_bpe, read_pieces, read_pieces, read_wordpiece), strict=True))
    if kind not in readers:
        why = f"; {UNREAD[kind]}" if isinstance(kind, str) and kind in UNREAD else ""
        raise TokenizerError(f"{at}: {PREFIX}model: expected one of {', '.join(readers)}, got {kind!r:.40}{why}")
    ids = role_ids(metadata, n, at)
    text, config = readers[str(kind)](metadata, tokens, types, ids, at)
    config = {**{f"{role}_token": tokens[i] for role, i in ids.items() if kind != "bert"}, **config}
    template = metadata.get("tokenizer.chat_template")
    config = {**config, "chat_template": template} if isinstance(template, str) else config
    spells_it = isinstance(template, str) and "bos_token" in template
    if kind != "bert" and metadata.get(PREFIX + "add_bos_token") is False and not spells_it:
        config["bos_token"] = None  # the file names one, and says that no text begins with it (Qwen's)
    return text, config


def numbers(metadata: dict[str, Any], key: str, n: int, kinds: str, at: str) -> list[Any] | None:
    """A number for each token, or None if the file has none. Raises TokenizerError for another length or type."""
    found = metadata.get(PREFIX + key)
    if found is None:
        return None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in kinds or len(found) != n:
        raise TokenizerError(f"{at}: {PREFIX}{key}: expected {n} numbers, got {type(found).__name__}; damaged")
    values: list[Any] = found.tolist()
    return values


def role_ids(metadata: dict[str, Any], n: int, at: str) -> dict[str, int]:
    """Role -> id. Raises TokenizerError for an id outside the vocabulary."""
    found = {}
    for role, name in ROLES.items():
        number = metadata.get(f"{PREFIX}{name}_token_id")
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < n:
            raise TokenizerError(f"{at}: {PREFIX}{name}_token_id: expected 0..{n - 1}, got {number!r:.20}")
        found[role] = number
    return found


def read_bpe(
    metadata: dict[str, Any], tokens: list[str], types: list[int] | None, ids: dict[str, int], at: str
) -> tuple[str, dict[str, Any]]:
    merges = metadata.get(PREFIX + "merges")
    if not isinstance(merges, list):
        raise TokenizerError(f"{at}: {PREFIX}merges: expected a list, found none; the file has half a vocabulary")
    vocab: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if vocab.setdefault(token, number) != number:
            raise TokenizerError(f"{at}: {token!r:.40}: expected once, got it as {vocab[token]} and {number}")
    added = typed_entries(tokens, types)
    # some merges hold a token with a space in it, which is a space of the byte alphabet's own (U+0120) everywhere else
    pairs = [merge.split(" ") for merge in merges]
    pre = "gemma4" if metadata[PREFIX + "model"] == "gemma4" else metadata.get(PREFIX + "pre")
    if pre in SPACES_MARKED:
        tree = marked_tree(vocab, pairs, added, tokens[ids["unk"]] if "unk" in ids else None)
    else:
        split = split_of(pre, at)
        tree = bpe_tree(vocab, pairs, pre_tokenizer_of(split), added, split.whole)
    return json.dumps(tree, ensure_ascii=False, indent=1), plain_config({})


def split_of(pre: Any, at: str) -> Split:
    """How a file with this `tokenizer.ggml.pre` splits a text. Raises TokenizerError with the reason if it is not
    supported."""
    if pre is None:
        warn(f"{at}: {PREFIX}pre: expected the name of a split pattern, found none; texts are split as llama.cpp does")
        pre = "default"
    found = SPLITS.get(pre) if isinstance(pre, str) else None
    if found is not None:
        return found
    if isinstance(pre, str) and pre in REFUSED:
        raise TokenizerError(f"{at}: {PREFIX}pre: {pre!r} is not supported: {REFUSED[pre]}")
    known = ", ".join(sorted((*SPLITS, *SPACES_MARKED)))
    raise TokenizerError(f"{at}: {PREFIX}pre: expected one of {known}; got {pre!r:.40}; use the model's tokenizer.json")


def marked_tree(
    vocab: dict[str, int], merges: list[list[str]], added: list[dict[str, Any]], unknown: str | None
) -> dict[str, Any]:
    """tokenizer.json of Gemma 4's BPE: characters with spaces as U+2581, bytes for what is no token, lines apart."""
    lines = {"type": "Split", "pattern": {"Regex": r"\n+"}, "behavior": "Isolated", "invert": False}
    tree = bpe_tree(vocab, merges, lines, added)
    tree["model"] |= {"unk_token": unknown, "fuse_unk": True, "byte_fallback": "<0x00>" in vocab}
    tree["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    back = {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}
    tree["decoder"] = {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    return tree


def typed_entries(tokens: list[str], types: list[int] | None) -> list[dict[str, Any]]:
    """`added_tokens` for control and user-defined tokens."""
    found: list[dict[str, Any]] = []
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        found += entries({tokens[i]: i for i, value in enumerate(types or ()) if value == kind}, special)
    return sorted(found, key=lambda entry: entry["id"])


def read_pieces(
    metadata: dict[str, Any], tokens: list[str], types: list[int] | None, ids: dict[str, int], at: str
) -> tuple[str, dict[str, Any]]:
    """SentencePiece's two kinds: "llama" is its BPE, "t5" its Unigram."""
    scores = numbers(metadata, "scores", len(tokens), "f", at)
    if scores is None or types is None:
        raise TokenizerError(f"{at}: {PREFIX}scores and token_type: expected one a token, found none; damaged")
    unigram = metadata[PREFIX + "model"] == "t5"
    charsmap = metadata.get(PREFIX + "precompiled_charsmap")
    unknown = ids.get("unk", types.index(UNKNOWN) if UNKNOWN in types else 0)
    model = PieceModel(
        pieces=tuple(Piece(*piece) for piece in zip(tokens, scores, types, strict=True)),
        kind="unigram" if unigram else "bpe",
        byte_fallback="<0x00>" in tokens,
        unk_id=unknown,
        bos_id=ids.get("bos", -1),
        eos_id=ids.get("eos", -1),
        pad_id=ids.get("pad", -1),
        charsmap=charsmap.tobytes() if isinstance(charsmap, np.ndarray) else b"",
        add_dummy_prefix=metadata.get(PREFIX + "add_space_prefix", True) is not False,
        remove_extra_whitespaces=metadata.get(PREFIX + "remove_extra_whitespaces", unigram) is True,
    )
    return tree_of(model, at)


def read_wordpiece(
    metadata: dict[str, Any], tokens: list[str], types: list[int] | None, ids: dict[str, int], at: str
) -> tuple[str, dict[str, Any]]:
    """BERT's: there a piece that begins a word has U+2581 before it, and one that goes on has nothing."""
    found = []
    for number, token in enumerate(tokens):
        if types is not None and types[number] != NORMAL or token.startswith("[") and token.endswith("]"):
            found.append(token)
        else:
            found.append(token[1:] if token.startswith(SPACE_MARK) else "##" + token)
    roles: dict[str, Any] = {f"{role}_token": found[number] for role, number in ids.items()}
    for key, told in (("lowercase", "do_lower_case"), ("strip_accents", "strip_accents")):
        value = metadata.get(f"{PREFIX}normalizer.{key}")
        roles |= {told: value} if isinstance(value, bool) else {}
    return bert_source(found, roles, at)
