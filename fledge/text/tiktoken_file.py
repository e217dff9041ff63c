"""tiktoken's vocabulary (`.tiktoken`, Llama 3's `tokenizer.model`) as tokenizer.json and configuration.

The file: a line for each token, its bytes in base64 and its rank, which is its id. tiktoken takes a word that is a
token whole, else it joins the neighbours whose joined bytes have the lowest rank. Each token has one last join:
whatever stands around it, the bytes of a token are joined in the same order as on their own, or it would not come out.
So the last join of each token alone, listed by rank, gives equal ids in the `tokenizers` library.
Source: openai/tiktoken, tiktoken/_educational.py, `bpe_encode`; special tokens from tiktoken_ext/openai_public.py and
meta-llama/llama3, llama/tokenizer.py.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from pathlib import Path
from typing import Any

from fledge.errors import TokenizerError
from fledge.text import pattern
from fledge.text.byte_alphabet import CHARACTER_OF
from fledge.text.model_check import check_splits
from fledge.text.vocab_files import bpe_tree, entries, lines_of, plain_config

LINE = re.compile(r"([A-Za-z0-9+/]+={0,2}) ([0-9]{1,9})")
MAX_TOKEN_BYTES = 1024
END = "<|endoftext|>"
LLAMA3 = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|reserved_special_token_2|>", "<|reserved_special_token_3|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|reserved_special_token_4|>", "<|eot_id|>"),
    *(f"<|reserved_special_token_{number}|>" for number in range(5, 251)),
)
CL100K = {END: 100257, "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}
# Number of ranks -> split pattern, special tokens: the files don't say either.
PUBLISHED: dict[int, tuple[str, dict[str, int]]] = {
    50256: ("gpt2", {END: 50256}),
    100256: ("llama3", {**CL100K, "<|endofprompt|>": 100276}),
    128000: ("llama3", {token: 128000 + place for place, token in enumerate(LLAMA3)}),
    199998: ("o200k", {END: 199999, "<|endofprompt|>": 200018}),
    151643: ("qwen2", {END: 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}),
}


def is_tiktoken(path: Path) -> bool:
    """Whether a file begins as tiktoken's do."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    return LINE.fullmatch(head.partition(b"\n")[0].decode("latin-1").removesuffix("\r")) is not None


def read_tiktoken(
    path: Path,
    pattern_name: str | None = None,
    special: dict[str, int] | None = None,
    config: dict[str, Any] | None = None,
) -> tuple[str, dict[str, Any]]:
    """tokenizer.json's text and the configuration. `pattern_name` and `special` (token -> id) are known for published
    vocabularies, by their size. Raises TokenizerError for a damaged file, or an unknown one if nothing is told."""
    ranks = read_ranks(path)
    known_pattern, known_special = PUBLISHED.get(len(ranks), (None, {}))
    pattern_name = pattern_name or known_pattern
    if pattern_name not in pattern.PATTERNS:
        raise TokenizerError(
            f"{path}: expected a published vocabulary, or a split pattern of {', '.join(pattern.PATTERNS)}; "
            f"got {len(ranks)} ranks and {pattern_name!r:.40}"
        )
    check_splits(map(len, ranks), str(path))
    special = known_special if special is None else special
    vocab = {"".join(CHARACTER_OF[byte] for byte in token): rank for token, rank in ranks.items()}
    tree = bpe_tree(vocab, merges_of(ranks), pattern.pre_tokenizer_of(pattern_name), entries(special, True), True)
    begin = next((token for token in ("<|begin_of_text|>", END) if token in special), None)
    end = next((token for token in ("<|end_of_text|>", END) if token in special), None)
    roles = {key: token for key, token in (("bos_token", begin), ("eos_token", end)) if token}
    return json.dumps(tree, ensure_ascii=False, indent=1), plain_config({**roles, **(config or {})})


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token -> rank in order of rank. Raises TokenizerError unless every byte, token and rank is there once."""
    ranks: dict[bytes, int] = {}
    taken: set[int] = set()
    for number, line in enumerate(lines_of(path), 1):
        if not line:
            continue
        parts = LINE.fullmatch(line)
        try:
            token = base64.b64decode(parts[1], validate=True) if parts else b""
        except binascii.Error:
            token = b""
        if parts is None or not 1 <= len(token) <= MAX_TOKEN_BYTES:
            raise TokenizerError(f"{path}, line {number}: expected a token in base64 and its rank, got {line[:40]!r}")
        rank = int(parts[2])
        if token in ranks or rank in taken:
            raise TokenizerError(f"{path}, line {number}: expected each token and rank once, got {line[:40]!r} again")
        ranks[token] = rank
        taken.add(rank)
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise TokenizerError(f"{path}: expected a token for every byte, none for {missing[0]}; the file is damaged")
    if max(taken) >= 2 * len(ranks) + 1024:
        raise TokenizerError(f"{path}: expected ranks below {2 * len(ranks) + 1024}, got {max(taken)}")
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def merges_of(ranks: dict[bytes, int]) -> list[list[str]]:
    """The last join of each token that its bytes lead to, by rank, in GPT-2's alphabet."""
    found = []
    for token in ranks:
        cuts = [cut for cut in range(1, len(token)) if token[:cut] in ranks and token[cut:] in ranks]
        parts = [token[: cuts[0]], token[cuts[0] :]] if len(cuts) == 1 else joined(token, ranks) if cuts else []
        if len(parts) == 2:
            found.append(["".join(CHARACTER_OF[byte] for byte in part) for part in parts])
    return found


def joined(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """A token's bytes after every join, lowest rank first, but for the one that would make the token itself."""
    parts = [token[i : i + 1] for i in range(len(token))]
    none = len(ranks) * 4 + 4096  # above every rank
    while len(parts) > 2:
        pairs = [ranks.get(left + right, none) for left, right in zip(parts, parts[1:], strict=False)]
        best = min(pairs)
        if best == none:
            break
        place = pairs.index(best)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def write_tiktoken(ranks: dict[bytes, int]) -> str:
    """The text of a `.tiktoken` file. `ranks`: token bytes -> id."""
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ordered)
