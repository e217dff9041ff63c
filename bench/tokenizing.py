"""Megabytes a second of tokenizing and of learning a tokenizer: fledge beside tiktoken, tokenizers and rustbpe.

Encoding: 10 MB of English books and 10 MB in many languages with the published cl100k and r50k vocabularies, a
document at a time, each library by its quickest call. The bar: at least 0.9 of tiktoken. Training: byte-level BPE of
8,192 ids under GPT-2's split pattern from 4 MB of books. The texts and vocabularies are read from FLEDGE_DATA (default
../shared/data).
"""

from __future__ import annotations

import functools
import gzip
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import clock, run

DATA = Path(os.environ.get("FLEDGE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
MEGABYTE = 1_000_000
VOCABULARIES = {"cl100k": ("cl100k_base", "llama3"), "r50k": ("r50k_base", "gpt2")}
TEXTS = {"english": "text_classic_books/books.jsonl.gz", "many": "text_udhr/udhr2.jsonl.gz"}
N_IDS = 8192


def documents(name: str, n_bytes: int) -> list[str]:
    """Texts of `n_bytes` in all; a smaller set is read again from its beginning."""
    with gzip.open(DATA / TEXTS[name], "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    texts = [max((value for value in row.values() if isinstance(value, str)), key=len) for row in rows]
    found: list[str] = []
    left = n_bytes
    while left > 0:
        for text in texts:
            found.append(text if len(text.encode()) <= left else text.encode()[:left].decode("utf-8", "ignore"))
            left -= len(text.encode())
            if left <= 0:
                break
    return found


def measured(work: Callable[[], None], megabytes: float, threads: int) -> Iterator[float]:
    work()
    yield 0.0
    while True:
        began = clock(threads)
        work()
        yield megabytes / (clock(threads) - began)


def encode_tiktoken(vocabulary: str, text: str, threads: int) -> Iterator[float]:
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    from fledge.text.pattern import PATTERNS

    file, pattern = VOCABULARIES[vocabulary]
    ranks = load_tiktoken_bpe(str(DATA / f"conf_tokenizers/tiktoken/{file}.tiktoken"))
    encoding = tiktoken.Encoding("bench", pat_str=PATTERNS[pattern], mergeable_ranks=ranks, special_tokens={})
    texts = documents(text, 10 * MEGABYTE)
    yield from measured(lambda: [encoding.encode_ordinary(one) for one in texts] and None, 10, threads)


def encode_fledge(vocabulary: str, text: str, threads: int) -> Iterator[float]:
    from fledge.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(DATA / f"conf_tokenizers/tiktoken/{VOCABULARIES[vocabulary][0]}.tiktoken")
    texts = documents(text, 10 * MEGABYTE)
    yield from measured(lambda: [tokenizer.encode_array(one) for one in texts] and None, 10, threads)


def encode_tokenizers(vocabulary: str, text: str, threads: int) -> Iterator[float]:
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    from fledge.text.tokenizer import Tokenizer

    plain = Tokenizer.load(DATA / f"conf_tokenizers/tiktoken/{VOCABULARIES[vocabulary][0]}.tiktoken").plain
    texts = documents(text, 10 * MEGABYTE)
    yield from measured(lambda: [plain.encode_batch_fast([one]) for one in texts] and None, 10, threads)


def train_fledge(threads: int) -> Iterator[float]:
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    from fledge.text.train import train_bpe

    texts = documents("english", 4 * MEGABYTE)
    yield from measured(lambda: train_bpe(texts, N_IDS, special=()) and None, 4, threads)


def train_tokenizers(threads: int) -> Iterator[float]:
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    texts = documents("english", 4 * MEGABYTE)

    def train() -> None:
        learner = tokenizers.Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=N_IDS, show_progress=False, initial_alphabet=alphabet)
        learner.train_from_iterator(texts, trainer)

    yield from measured(train, 4, threads)


def train_rustbpe(threads: int) -> Iterator[float]:
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    import rustbpe

    from fledge.text.pattern import GPT2

    texts = documents("english", 4 * MEGABYTE)
    train = lambda: rustbpe.Tokenizer().train_from_iterator(iter(texts), N_IDS, pattern=GPT2)  # noqa: E731
    yield from measured(train, 4, threads)


ENCODERS = {"tiktoken": encode_tiktoken, "fledge": encode_fledge, "tokenizers": encode_tokenizers}
TRAINERS = {"tokenizers-train": train_tokenizers, "fledge-train": train_fledge, "rustbpe-train": train_rustbpe}


def tables() -> dict[str, dict[str, Callable[[int], Iterator[float]]]]:
    """Table -> peers, whose names hold what they encode."""
    found: dict[str, dict[str, Callable[[int], Iterator[float]]]] = {"tokenize_train": TRAINERS}
    for vocabulary in VOCABULARIES:
        for text in TEXTS:
            key = f"{vocabulary}_{text}"
            peers = {f"{name}-{key}": functools.partial(work, vocabulary, text) for name, work in ENCODERS.items()}
            found[f"tokenize_{key}"] = peers
    return found


if __name__ == "__main__":
    everything = tables()
    if "--peer" in sys.argv:
        run(__file__, {name: peer for peers in everything.values() for name, peer in peers.items()}, "", "", "")
    else:
        wanted = sys.argv[1:] or list(everything)  # names of tables
        for table in wanted:
            peers = everything[table]
            run(__file__, peers, next(iter(peers)), table, "megabytes (10^6) of UTF-8 a second")
