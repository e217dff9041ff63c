"""Training a tokenizer: byte-level BPE by Hugging Face's trainer, deterministic, over an iterator of texts."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from fledge import config as fields
from fledge.errors import ConfigError, DataError
from fledge.lineage import write_card
from fledge.log import Progress, say
from fledge.text import pattern, tokenizer_file
from fledge.text.config import TokenizerTrainConfig
from fledge.text.documents import read_documents, total_bytes
from fledge.text.special_tokens import SPECIAL_TOKENS
from fledge.text.tokenizer import Tokenizer, byte_bpe, byte_level, characters, check_unicode, guarded

LONG_RUN = re.compile(r"\S{1000}|\s{1000}")  # the trainer takes quadratic time over one word
LONGEST_TOKEN = 128  # characters: a longer one is a ruler of dashes or somebody's base64
LEAST_COUNT = 2  # a pair seen once is no regularity


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    pattern_name: str = "gpt2",
    special: tuple[str, ...] = SPECIAL_TOKENS,
    n_bytes: int = 0,
) -> Tokenizer:
    """Byte-level BPE of `vocab_size` ids in all (256 bytes, merges, then the `special` tokens) under a published split
    pattern. Equal texts give an equal tokenizer. Fewer ids come out where the texts have no more pairs to merge.

    Memory is bounded by the number of distinct words, not by the texts. `n_bytes`: how much text to expect, for the
    progress bar. Raises ConfigError if the bytes and special tokens alone need more ids. Source: Sennrich et al. 2016.
    """
    if pattern_name not in pattern.PATTERNS:
        raise ConfigError(f"pattern: expected one of {', '.join(pattern.PATTERNS)}, got {pattern_name!r:.40}")
    n_ordinary = vocab_size - len(special)
    if n_ordinary < 256:
        raise ConfigError(
            f"vocab_size: expected at least {256 + len(special)} (the bytes and special tokens), got {vocab_size}"
        )
    trainer = trainers.BpeTrainer(
        vocab_size=n_ordinary,
        min_frequency=LEAST_COUNT,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=LONGEST_TOKEN,
    )
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizer(pattern_name)
    guarded(lambda: learner.train_from_iterator(in_short_runs(counted(texts, n_bytes)), trainer))
    model = json.loads(learner.to_str())["model"]
    merges = [list(tokenizer_file.split_merge(merge) or ()) for merge in model["merges"]]
    return byte_bpe(model["vocab"], merges, pattern_name, special)


def pre_tokenizer(pattern_name: str) -> pre_tokenizers.PreTokenizer:
    if pattern_name == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Split(tokenizers.Regex(pattern.PATTERNS[pattern_name]), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def counted(texts: Iterable[str], n_bytes: int) -> Iterator[str]:
    """The texts, with progress for people."""
    progress = Progress("read text, bytes", n_bytes) if n_bytes else None
    done = 0
    for text in texts:
        check_unicode(text)
        yield text
        done += len(text.encode()) if progress else 0
        if progress:
            progress.update(min(done, n_bytes - 1))
    if progress:
        progress.close()


def in_short_runs(texts: Iterable[str]) -> Iterator[str]:
    """The texts with words of thousands of characters cut: each piece is a text of its own."""
    for text in texts:
        start = 0
        for run in LONG_RUN.finditer(text):
            yield text[start : run.end()]
            start = run.end()
        yield text[start:]


def train_tokenizer(config: TokenizerTrainConfig, json: bool = False) -> dict[str, Any]:
    """`fledge tokenizer train`: write the tokenizer's folder with its card; gives its figures."""
    began = time.monotonic()
    with_special = config.kind != "characters" if config.special_tokens is None else config.special_tokens
    special = SPECIAL_TOKENS if with_special else ()
    seen = Seen()
    if config.kind == "bytes":
        tokenizer = byte_level(special)
    elif config.kind == "characters":
        alphabet: set[str] = set()
        for text in seen.texts(config):
            alphabet.update(text)
        seen.demand(config.text)
        tokenizer = characters("".join(alphabet), special)
    else:
        expected = min(total_bytes(config.text), config.limit_bytes or 1 << 62)
        tokenizer = train_bpe(seen.texts(config), config.vocab_size, config.pattern, special, expected)
        seen.demand(config.text)
        if tokenizer.vocab_size < config.vocab_size:
            say(f"the text has too few pairs for {config.vocab_size} ids; the tokenizer has {tokenizer.vocab_size}")
    facts = {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_digest": tokenizer.digest,
        "documents": seen.n_documents,
        "bytes": seen.n_bytes,
    }
    out = Path(config.out)
    tokenizer.save(out)
    names = ("tokenizer.json", "tokenizer_config.json")
    strangers = tuple(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file() and p.name not in names)
    card = write_card(out, "tokenizer", config=fields.to_dict(config), facts=facts, skip=strangers)
    result = {**facts, "out": str(out), "digest": card["digest"], "seconds": round(time.monotonic() - began, 3)}
    if not json:
        source = f"{seen.n_documents} documents, {seen.n_bytes} bytes"
        print(f"{out}: {tokenizer.kind}, {tokenizer.vocab_size} ids, from {source}")
    return result


class Seen:
    """Counts of the documents that went by."""

    def __init__(self) -> None:
        self.n_documents = 0
        self.n_bytes = 0

    def texts(self, config: TokenizerTrainConfig) -> Iterator[str]:
        for document in read_documents(config.text, "train", config.limit_bytes):
            self.n_documents += 1
            self.n_bytes += document.n_bytes
            yield document.text

    def demand(self, path: Path) -> None:
        """Raises DataError if there was no text at all."""
        if not self.n_bytes:
            raise DataError(f"{path}: expected text to learn from, found none; check the path")
