"""llama2.c's vocabulary file (`tokenizer.bin`) as a Tokenizer with the ids of its `encode`.

The file: int32 length of the longest token; then for each token float32 score, int32 length, its bytes (spaces as
spaces). Encoding there: a dummy space before the text, each character its token or else its UTF-8 bytes as ids 3..258,
then again and again the neighbours whose joined token has the highest score are joined, leftmost first.
Here each way to split a token in two tokens is a merge, in order of score; where scores tie, the longer left part
first, which grows runs from the left as llama2.c does.
Source: karpathy/llama2.c, run.c, `build_tokenizer` and `encode`.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from fledge.errors import TokenizerError
from fledge.log import warn
from fledge.text.model_check import check_splits
from fledge.text.special_tokens import special_entries
from fledge.text.tokenizer import Tokenizer, from_text
from fledge.text.tokenizer_file import demand_file

MAX_TOKENS = 1 << 20
MAX_TOKEN_BYTES = 1024
FIRST_BYTE = 3  # ids 0, 1, 2 are unk, BOS, EOS; then the 256 bytes
N_FIXED = FIRST_BYTE + 256
LOWEST_SCORE = -1e10  # llama2.c joins nothing at or below this
HEAD = struct.Struct("<fi")


def from_llama2c(path: str | Path) -> Tokenizer:
    """The Tokenizer of a llama2.c vocabulary: kind "sentencepiece-bpe", BOS 1, EOS 2, both ending an answer (llama2.c
    separates texts by BOS). Raises TokenizerError for a damaged file."""
    path = Path(path)
    scores, tokens = read_tokens(path)
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = merges_by_score(tokens, scores, vocab, str(path))
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "fuse_unk": False,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }
    tree = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special_entries(tuple(tokens[:FIRST_BYTE]), 0),
        "normalizer": {"type": "Prepend", "prepend": " "},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoder_steps()},
        "model": model,
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "stop_tokens": ["<s>"],
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    return from_text(json.dumps(tree, ensure_ascii=False, indent=1), config)


def decoder_steps() -> list[dict[str, Any]]:
    """Bytes joined to characters, then the dummy space taken away."""
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return [{"type": "ByteFallback"}, {"type": "Fuse"}, strip]


def read_tokens(path: Path) -> tuple[list[float], list[str]]:
    """Scores and tokens by id, the fixed ones under their usual names. Raises TokenizerError."""
    try:
        if demand_file(path).stat().st_size > 64 << 20:
            raise TokenizerError(f"{path}: expected at most 64 MiB, got {path.stat().st_size} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: can't be read ({error.strerror or type(error).__name__})") from None
    scores: list[float] = []
    tokens: list[str] = []
    at = 4
    while at < len(data) and len(tokens) <= MAX_TOKENS:
        number = len(tokens)
        if at + HEAD.size > len(data):
            raise TokenizerError(f"{path}: token {number}: expected score and length, got the end of the file")
        score, length = HEAD.unpack_from(data, at)
        at += HEAD.size
        if not 0 <= length <= min(MAX_TOKEN_BYTES, len(data) - at) or not math.isfinite(score):
            raise TokenizerError(f"{path}: token {number}: length {length} or score {score}: not a llama2.c vocabulary")
        tokens.append(token_name(number, data[at : at + length], path))
        scores.append(score)
        at += length
    if not N_FIXED <= len(tokens) <= MAX_TOKENS:
        raise TokenizerError(f"{path}: expected {N_FIXED}..{MAX_TOKENS} tokens, got {len(tokens)}; not a llama2.c file")
    twice = [token for token, n in Counter(tokens).items() if n > 1]
    if twice:
        raise TokenizerError(f"{path}: expected each token once, got {twice[0]!r:.40} twice")
    return scores, tokens


def token_name(number: int, data: bytes, path: Path) -> str:
    if number < FIRST_BYTE:
        return ("<unk>", "<s>", "</s>")[number]
    if number < N_FIXED:
        return f"<0x{number - FIRST_BYTE:02X}>"
    try:
        return data.decode("utf-8") or f"<unused {number}>"
    except UnicodeDecodeError:
        raise TokenizerError(f"{path}: token {number}: expected UTF-8, got {data[:16]!r}") from None


def merges_by_score(tokens: list[str], scores: list[float], vocab: dict[str, int], at: str) -> list[list[str]]:
    """Every split of a token in two tokens, best first."""
    check_splits(map(len, tokens), at)
    ranked = []
    joined: Counter[float] = Counter()
    for number in range(N_FIXED, len(tokens)):
        token, score = tokens[number], scores[number]
        cuts = [k for k in range(1, len(token)) if is_text(token[:k], vocab) and is_text(token[k:], vocab)]
        if not cuts or score <= LOWEST_SCORE:
            continue
        joined[score] += len(set(token)) > 1  # a run of one character is joined from the left whatever its rank
        ranked += [(-score, -k, number) for k in cuts]
    if max(joined.values(), default=0) > 1:
        warn(f"{at}: several tokens have the same score; where their joins compete, ids may differ from llama2.c's")
    ranked.sort()
    return [[tokens[number][:-minus_k], tokens[number][-minus_k:]] for _, minus_k, number in ranked]


def is_text(part: str, vocab: dict[str, int]) -> bool:
    """Whether a part is a token that text can become: special tokens and bytes are not joined."""
    return vocab.get(part, 0) >= N_FIXED
