"""A `PieceModel` as tokenizer.json and configuration, and the other way round.

BPE there joins the neighbours whose joined piece has the highest score; so here each way to split a piece in two pieces
is a merge, in order of score. The normalizer of the file is as close as the `tokenizers` library comes for others who
read it; this package goes by the rules in the configuration (`sentencepiece_text.py`).
"""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import asdict
from typing import Any

from fledge.errors import TokenizerError
from fledge.text.model_check import check_splits
from fledge.text.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE_MARK,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    PieceModel,
)
from fledge.text.sentencepiece_text import KEY, TextRules, rules_of_model

TEXT_TYPES = (NORMAL, USER_DEFINED, UNUSED)  # pieces that a text can be cut in
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
ROLES = (("unk", "unk_id"), ("bos", "bos_id"), ("eos", "eos_id"), ("pad", "pad_id"))


def tree_of(model: PieceModel, at: str) -> tuple[str, dict[str, Any]]:
    """The text of a tokenizer.json, and a configuration. Raises TokenizerError for a model that contradicts itself."""
    check(model, at)
    pieces = model.pieces
    added = []
    for number, piece in enumerate(pieces):
        special = piece.type in (CONTROL, UNKNOWN)
        if special or piece.type == USER_DEFINED:
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
            added.append({"id": number, "content": piece.text, **flags})
    tree = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers(model)},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders(model)},
        "model": bpe(model) if model.kind == "bpe" else unigram(model),
    }
    named = {f"{role}_token": getattr(model, name) for role, name in ROLES}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key: pieces[number].text for key, number in named.items() if 0 <= number < len(pieces)},
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        KEY: {
            **asdict(rules_of_model(model)),
            "unk_surface": model.unk_surface,
            "unused": [number for number, piece in enumerate(pieces) if piece.type == UNUSED],
        },
    }
    return json.dumps(tree, ensure_ascii=False, indent=1), config


def check(model: PieceModel, at: str) -> None:
    """Raises TokenizerError unless every piece is there once and byte pieces are complete where bytes are wanted."""
    if model.whitespace_is_suffix:
        raise TokenizerError(f"{at}: treat_whitespace_as_suffix: expected false, got true; not supported")
    seen: dict[str, int] = {}
    for number, piece in enumerate(model.pieces):
        if seen.setdefault(piece.text, number) != number:
            raise TokenizerError(f"{at}: {piece.text!r:.40}: expected once, got it as {seen[piece.text]} and {number}")
        if not math.isfinite(piece.score):
            raise TokenizerError(f"{at}: piece {number}: expected a finite score, got {piece.score}")
    if not 0 <= model.unk_id < len(model.pieces):
        raise TokenizerError(f"{at}: unk_id: expected 0..{len(model.pieces) - 1}, got {model.unk_id}")
    missing = [byte for byte in range(256) if model.byte_fallback and f"<0x{byte:02X}>" not in seen]
    if missing:
        raise TokenizerError(f"{at}: byte_fallback: expected 256 byte pieces, none for byte {missing[0]}")


def bpe(model: PieceModel) -> dict[str, Any]:
    check_splits((len(piece.text) for piece in model.pieces), "sentencepiece")
    vocab = {piece.text: number for number, piece in enumerate(model.pieces)}
    scores = {piece.text: piece.score for piece in model.pieces if piece.type in TEXT_TYPES}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": model.pieces[model.unk_id].text,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges_by_score(scores, vocab),
    }


def merges_by_score(scores: dict[str, float], vocab: dict[str, int]) -> list[list[str]]:
    """Every split of a piece in two pieces, the highest score of the whole first, then the longer left part: that makes
    runs of one character grow from the left, as the original does."""
    ranked = []
    for whole, score in scores.items():
        for cut in range(1, len(whole)):
            if whole[:cut] in scores and whole[cut:] in scores:
                ranked.append((-score, -cut, vocab[whole], whole))
    return [[whole[:-cut], whole[-cut:]] for _, cut, _, whole in sorted(ranked)]


def unigram(model: PieceModel) -> dict[str, Any]:
    best = max((piece.score for piece in model.pieces if piece.type == NORMAL), default=0.0)

    def score(piece: Piece) -> float:
        # a user-defined piece outweighs what it could be cut in
        return len(piece.text.encode()) * best - 0.1 if piece.type == USER_DEFINED else piece.score

    vocab = [[piece.text, score(piece)] for piece in model.pieces]
    return {"type": "Unigram", "unk_id": model.unk_id, "vocab": vocab, "byte_fallback": model.byte_fallback}


def normalizers(model: PieceModel) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode()})
    if model.remove_extra_whitespaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    mark = SPACE_MARK if model.escape_whitespaces else " "
    if model.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": mark})
    if model.escape_whitespaces:
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": mark})
    return steps


def decoders(model: PieceModel) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if model.escape_whitespaces:
        steps.append({"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "})
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if model.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return steps


def model_of(
    tree: dict[str, Any],
    config: dict[str, Any],
    rules: TextRules,
    charsmap: bytes,
    roles: dict[str, int],
    tokens: tuple[str | None, ...],
) -> PieceModel:
    """The PieceModel that gives the same ids as a tokenizer.json of kind unigram or sentencepiece-bpe under `rules`.
    `roles` gives the ids of unk, bos, eos and pad, `tokens` what each id is. BPE pieces get scores in the order of
    their first merge. Raises TokenizerError for ids with gaps, or no token for the unknown."""
    model, kept = tree["model"], config.get(KEY) or {}
    flags = {entry["id"]: entry.get("special") is True for entry in tree.get("added_tokens") or []}
    unused = set(kept.get("unused") or ())
    if "unk" not in roles:
        raise TokenizerError("sentencepiece: expected a token for the unknown, found none; SentencePiece needs one")
    scores = scores_of(model)
    pieces = []
    for number, text in enumerate(tokens):
        if text is None:
            raise TokenizerError(f"sentencepiece: expected ids without gaps, got none for {number}")
        kind = UNUSED if number in unused else NORMAL
        if number in flags:
            kind = CONTROL if flags[number] else USER_DEFINED
        elif model.get("byte_fallback") and BYTE_PIECE.fullmatch(text):
            kind = BYTE
        if number == roles["unk"]:
            kind = UNKNOWN
        pieces.append(Piece(text, scores.get(text, 0.0) if kind in (NORMAL, UNUSED) else 0.0, kind))
    return PieceModel(
        pieces=tuple(pieces),
        kind="bpe" if model["type"] == "BPE" else "unigram",
        byte_fallback=bool(model.get("byte_fallback")),
        unk_id=roles["unk"],
        bos_id=roles.get("bos", -1),
        eos_id=roles.get("eos", -1),
        pad_id=roles.get("pad", -1),
        unk_surface=str(kept.get("unk_surface", PieceModel.unk_surface)),
        charsmap=charsmap,
        **asdict(rules),
    )


def scores_of(model: dict[str, Any]) -> dict[str, float]:
    """Piece -> score: Unigram's own; of BPE minus the rank of the piece's first merge, single characters last."""
    if model["type"] == "Unigram":
        return {text: float(score) for text, score in model["vocab"]}
    rank: dict[str, int] = {}
    for merge in model["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        rank.setdefault(left + right, len(rank))
    return {text: -float(rank.get(text, len(rank) + number)) for text, number in model["vocab"].items()}
