"""Token shards: one flat little-endian array of ids and the offset at which each document begins. Imports no torch.

A dataset folder holds `{train,val}.bin`, `{train,val}.idx.npy` (int64, one more than documents), `documents.jsonl`,
`tokenizer/` and `card.json`. A document is stored as [bos] ids … [eos] when the tokenizer has those tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from fledge.data.in_threads import grouped, in_threads
from fledge.data.token_file import REMEDY, TokenFile
from fledge.errors import CheckpointError, DataError
from fledge.lineage import read_card, sha256_file
from fledge.text.tokenizer import Tokenizer

KIND = "dataset"
SPLITS = ("train", "val")
TOKENIZER = "tokenizer"
MOST_UINT16 = 1 << 16
GROUP_CHARACTERS = 1 << 18  # of documents that a thread tokenises at once


@dataclass(frozen=True)
class Shard:
    """One split's tokens: `tokens` uint16 or uint32 [N], to be sliced, `starts` int64 [documents + 1], from 0 to N."""

    name: str
    tokens: np.ndarray | TokenFile = field(repr=False)
    starts: np.ndarray = field(repr=False)

    @property
    def n_documents(self) -> int:
        return len(self.starts) - 1

    @property
    def n_tokens(self) -> int:
        return int(self.starts[-1])

    def document(self, index: int) -> np.ndarray:
        """The ids of one document, special tokens included."""
        return self.tokens[int(self.starts[index]) : int(self.starts[index + 1])]

    def rows(self, starts: np.ndarray, n: int) -> np.ndarray:
        """The `n` ids from each of `starts` on: [len(starts), n], of the tokens' type."""
        if isinstance(self.tokens, TokenFile):
            return self.tokens.rows(starts.tolist(), n)
        return self.tokens[starts[:, None] + np.arange(n)]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the tokens and offsets themselves, read now: a changed shard has another digest (1 s a GB)."""
        digest = hashlib.sha256()
        digest.update(f"{self.name} {self.tokens.dtype.itemsize} {len(self.starts)}".encode())
        digest.update(np.ascontiguousarray(self.starts, "<i8").tobytes())
        piece = 1 << 22
        for start in range(0, len(self.tokens), piece):
            digest.update(np.ascontiguousarray(self.tokens[start : start + piece]).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """An opened dataset folder: two shards, their tokenizer, the card."""

    folder: Path
    train: Shard
    val: Shard
    tokenizer: Tokenizer
    card: dict[str, Any] = field(repr=False)

    @cached_property
    def digest(self) -> str:
        """What a run is tied to: the content of both shards and of the tokenizer, read now, not from the card."""
        whole = f"{self.train.digest} {self.val.digest} {self.tokenizer.digest}"
        return hashlib.sha256(whole.encode()).hexdigest()

    @property
    def parents(self) -> dict[str, str]:
        """Digests for the card of what is made of it."""
        return {"data": self.card["digest"]}

    def check(self) -> None:
        """Read both shards and compare them with the card. Raises DataError naming the file that was changed since."""
        for name in (f"{split}{ending}" for split in SPLITS for ending in (".bin", ".idx.npy")):
            wanted, found = self.card["files"].get(name, ""), sha256_file(self.folder / name)
            if found != wanted:
                raise DataError(
                    f"{self.folder / name}: expected SHA-256 {wanted[:12]}…, got {found[:12]}…; the file was changed "
                    f"since it was built: {REMEDY}, or train.allow_changes=true to train on it as it is"
                )


def open_shards(folder: str | Path) -> Dataset:
    """A dataset folder, whose tokens stay on disk. Raises DataError if it is unfinished, damaged or none."""
    folder = Path(folder)
    try:
        card = read_card(folder)
    except CheckpointError as error:
        raise DataError(f"{error}; run `fledge data build` for this folder") from None
    if card["kind"] != KIND:
        raise DataError(
            f"{folder}: expected a dataset with shards, got a {card['kind']}; run `fledge data build` with a tokenizer"
        )
    train, val = (open_shard(folder, split, card["facts"]) for split in SPLITS)
    return Dataset(folder, train, val, Tokenizer.load(folder / TOKENIZER), card)


def open_shard(folder: Path, split: str, facts: dict[str, Any]) -> Shard:
    path, index, dtype = folder / f"{split}.bin", folder / f"{split}.idx.npy", facts.get("dtype")
    if dtype not in ("uint16", "uint32"):
        raise DataError(f"{folder}: expected token type uint16 or uint32 in the card, got {dtype!r}; build it again")
    try:
        starts = np.load(index, allow_pickle=False)
        size = path.stat().st_size
    except (OSError, ValueError, EOFError):
        raise DataError(f"{index} and {path.name}: missing or damaged; run `fledge data build` again") from None
    if starts.ndim != 1 or starts.dtype != np.int64 or not len(starts) or starts[0] or (np.diff(starts) < 0).any():
        raise DataError(f"{index}: expected rising int64 offsets from 0; run `fledge data build` again")
    width = np.dtype(dtype).itemsize
    if size != int(starts[-1]) * width:
        raise DataError(
            f"{path}: expected {int(starts[-1]) * width} bytes, got {size}; the file is cut, run `fledge data build`"
        )
    figures = facts.get("shards")
    vocab_size = figures.get("vocab_size") if isinstance(figures, dict) else None
    if not isinstance(vocab_size, int):
        raise DataError(
            f"{folder}: expected the size of the vocabulary in the card, got {vocab_size!r}; build it again"
        )
    return Shard(split, TokenFile(path, dtype, int(starts[-1]), vocab_size), starts)


def shard_of(documents: Sequence[Sequence[int]], name: str = "memory") -> Shard:
    """A shard in memory from the ids of its documents, for tests and small experiments."""
    starts = np.cumsum([0, *(len(document) for document in documents)], dtype=np.int64)
    tokens = np.concatenate([np.zeros(0, "<u4"), *(np.asarray(document, "<u4") for document in documents)])
    return Shard(name, tokens, starts)


def token_type(vocab_size: int) -> str:
    """`uint16` where ids fit, else `uint32`."""
    return "uint16" if vocab_size <= MOST_UINT16 else "uint32"


def write_shard(
    texts: Iterable[str], tokenizer: Tokenizer, tokens_path: Path, index_path: Path, threads: int = 1
) -> list[int]:
    """Tokenise documents into a shard's two files, in their order, whichever of the `threads` did it; gives the tokens
    of each. Raises DataError on a text that the tokenizer can't encode."""
    counts: list[int] = []
    work = partial(encoded, tokenizer)
    tokenizer.encode_array("")  # makes what threads would make at the same time
    with open(tokens_path, "wb") as file:
        for _, documents in in_threads(work, grouped(texts, len, GROUP_CHARACTERS), threads):
            for ids in documents:
                file.write(ids.tobytes())
                counts.append(len(ids))
    with open(index_path, "wb") as file:
        np.save(file, np.cumsum([0, *counts], dtype=np.int64))
    return counts


def encoded(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """The ids of each text between bos and eos, of a shard's type."""
    dtype = np.dtype(token_type(tokenizer.vocab_size)).newbyteorder("<")
    before, after = (np.array([] if i is None else [i], dtype) for i in (tokenizer.bos_id, tokenizer.eos_id))
    found = []
    for text in texts:
        ids = tokenizer.encode_array(text)
        if len(ids) and int(ids.max()) >= tokenizer.vocab_size:
            raise DataError(f"tokenizer: expected ids below {tokenizer.vocab_size}, got {ids.max()}; it is damaged")
        found.append(np.concatenate([before, ids, after], dtype=dtype, casting="unsafe"))
    return found
