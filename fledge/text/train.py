"""Training a tokenizer: the verb, and byte-level BPE by Hugging Face's trainer, deterministic, over texts."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from fledge import config as fields
from fledge.errors import CheckpointError, ConfigError, DataError
from fledge.lineage import (
    CARD,
    check_writable,
    fsync_folder,
    make_folder,
    refuse_other_artefact,
    refuse_without_card,
    rename,
    sha256_file,
    sha256_json,
    verify,
    write_card,
)
from fledge.log import say, warn
from fledge.text import pattern, tokenizer_file
from fledge.text.chat import FORMATS, with_format
from fledge.text.config import TokenizerTrainConfig
from fledge.text.documents import CORPUS, read_documents, refuse_inside, total_bytes
from fledge.text.learners import train_unigram, train_wordpiece, train_words
from fledge.text.model_check import split_merge
from fledge.text.special_tokens import BOS, EOS, PAD, SPECIAL_TOKENS
from fledge.text.tokenizer import Tokenizer, byte_bpe, byte_level, characters
from fledge.text.training_text import feed

RECIPE = 3  # raised when the same config and text would give another tokenizer
KIND = "tokenizer"
OURS = ("tokenizer.json", tokenizer_file.CONFIG, tokenizer_file.TEMPLATE)  # what a folder of ours holds
LONGEST_TOKEN = 128  # characters: a longer one is a ruler of dashes or somebody's base64
BUDGET = 4 << 30  # bytes of text; memory goes by its distinct words
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

    Memory is bounded by the number of distinct words, and these by a budget of text, beyond which a sample is learnt
    from. `n_bytes`: how much text to expect, for that and for the progress bar. Raises ConfigError if the bytes and
    special tokens alone need more ids. Source: Sennrich et al. 2016.
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
    feed(learner, trainer, texts, BUDGET, n_bytes)
    model = json.loads(learner.to_str())["model"]
    merges = [list(split_merge(merge) or ()) for merge in model["merges"]]
    return byte_bpe(model["vocab"], merges, pattern_name, special)


def pre_tokenizer(pattern_name: str) -> pre_tokenizers.PreTokenizer:
    if pattern_name == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Split(tokenizers.Regex(pattern.PATTERNS[pattern_name]), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train_tokenizer(config: TokenizerTrainConfig, json: bool = False) -> dict[str, Any]:
    """`fledge tokenizer train`: write the tokenizer's folder with its card, or reuse the one that the same text and
    settings made; gives its figures. Raises ConfigError where a tokenizer stands that has no card."""
    began = time.monotonic()
    refuse_inside(config.text, config.out)
    check_writable(config.out)
    refuse_other_artefact(config.out, KIND)
    refuse_without_card(config.out, OURS, "tokenizer train")
    card = finished(config)
    reused = card is not None
    if card is None:
        card = write(config)
    facts = {key: value for key, value in card["facts"].items() if key != "inputs"}
    result = {**facts, "out": str(config.out), "reused": reused, "digest": card["digest"]}
    result["seconds"] = round(time.monotonic() - began, 3)
    if not json:
        source = f"{facts['documents']} documents, {facts['bytes']} bytes"
        again = " (already there)" if reused else ""
        print(f"{config.out}: {facts['kind']}, {facts['vocab_size']} ids, from {source}{again}")
    return result


def finished(config: TokenizerTrainConfig) -> dict[str, Any] | None:
    """The card, if the folder holds whole what this text under this config gives; else None."""
    if not (config.out / CARD).is_file():
        return None
    try:
        card = verify(config.out)
    except CheckpointError as error:
        warn(f"{error}; training again")
        return None
    if card["kind"] != KIND or "inputs" not in card["facts"]:
        return None
    seen = Seen()
    for _ in seen.texts(config) if learns(config) else ():
        pass
    return card if card["facts"]["inputs"] == inputs_of(config, seen) else None


def write(config: TokenizerTrainConfig) -> dict[str, Any]:
    """Learn the tokenizer and write its folder; gives the card."""
    seen = Seen()
    tokenizer = with_format(learn(config, seen), config.chat.format)
    facts = {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_digest": tokenizer.digest,
        "documents": seen.n_documents,
        "bytes": seen.n_bytes,
        "inputs": inputs_of(config, seen),
    }
    corpus = config.text / CORPUS
    parents = {"corpus": sha256_file(corpus)} if learns(config) and corpus.is_file() else {}
    with tempfile.TemporaryDirectory(prefix=".new-", dir=make_folder(config.out)) as scratch:
        tokenizer.save(scratch)
        card = write_card(scratch, KIND, parents, fields.to_dict(config), facts)
        place(Path(scratch), config.out)
    return card


def place(made: Path, out: Path) -> None:
    """Move a tokenizer's files to where they belong, the card first: killed meanwhile, it says what is missing, and the
    same command writes all again."""
    for name in (CARD, *OURS):
        if (made / name).exists():
            rename(made / name, out / name)
        else:
            (out / name).unlink(missing_ok=True)  # of another tokenizer, that would be read
    fsync_folder(out)


def learn(config: TokenizerTrainConfig, seen: Seen) -> Tokenizer:
    """The tokenizer that `config` asks for; `seen` counts the text that it is learnt from."""
    special = special_tokens(config)
    if config.kind == "bytes":
        return byte_level(special)
    if config.kind == "characters":
        alphabet: set[str] = set()
        for text in seen.texts(config):
            alphabet.update(text)
        seen.demand(config.text)
        return characters("".join(alphabet), special)
    expected = min(total_bytes(config.text), config.limit_bytes or 1 << 62)
    texts, size = seen.texts(config), config.vocab_size
    if config.kind == "wordpiece":
        tokenizer = train_wordpiece(texts, size, config.lowercase, special, expected)
    elif config.kind == "unigram":
        tokenizer = train_unigram(texts, size, config.lossless, special, expected)
    elif config.kind == "word":
        tokenizer = train_words(texts, size, special, expected)
    else:
        tokenizer = train_bpe(texts, size, config.pattern, special, expected)
    seen.demand(config.text)
    if tokenizer.vocab_size < size:
        say(f"the text has too few regularities for {size} ids; the tokenizer has {tokenizer.vocab_size}")
    return tokenizer


def special_tokens(config: TokenizerTrainConfig) -> tuple[str, ...]:
    """Those that are put behind the ids that are learnt: ours, or BOS, EOS, padding and the chat format's own."""
    if config.chat.format:
        return tuple(dict.fromkeys((BOS, EOS, PAD, *FORMATS[config.chat.format].needs)))
    usual = config.kind not in ("characters", "wordpiece")
    wanted = usual if config.special_tokens is None else config.special_tokens
    return SPECIAL_TOKENS if wanted else ()


def learns(config: TokenizerTrainConfig) -> bool:
    """Whether this kind of tokenizer depends on the text."""
    return config.kind != "bytes"


def inputs_of(config: TokenizerTrainConfig, seen: Seen) -> str:
    """Digest of all that the tokenizer depends on: the text that was read and the settings, not where they stand."""
    settings = {key: value for key, value in fields.to_dict(config).items() if key not in ("text", "out")}
    return sha256_json({"recipe": RECIPE, "settings": settings, "text": seen.digest})


class Seen:
    """Counts of the documents that went by, and a digest of them."""

    def __init__(self) -> None:
        self.n_documents = 0
        self.n_bytes = 0
        self.content = hashlib.sha256()

    @property
    def digest(self) -> str:
        return self.content.hexdigest()

    def texts(self, config: TokenizerTrainConfig) -> Iterator[str]:
        for document in read_documents(config.text, "train", config.limit_bytes, config.reading):
            self.n_documents += 1
            self.n_bytes += document.n_bytes
            self.content.update(document.sha256.encode())
            yield document.text

    def demand(self, path: Path) -> None:
        """Raises DataError if there was no text at all."""
        if not self.n_bytes:
            raise DataError(f"{path}: expected text to learn from, found none; check the path")
