"""Megabytes a second of tokenizing and of learning a tokenizer: fledge beside tiktoken, tokenizers and rustbpe.

Encoding: 10 MB of English books and 10 MB in many languages with the published cl100k and r50k vocabularies, a
document at a time, each library by its quickest call. The bar: at least 0.9 of tiktoken. `languages`: the same of
fledge and tiktoken under three split patterns (o200k's with cl100k's vocabulary) on 2 MB each of six kinds of text.
Training: byte-level BPE of 8,192 ids under GPT-2's split pattern from 4 MB of books; `kinds`: three kinds from 10 MB
(or one by its name).
The texts and vocabularies are read from FLEDGE_DATA (default ../shared/data).
"""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import RESULTS, clock, compare, keep, peer_process, run, summary

DATA = Path(os.environ.get("FLEDGE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
MEGABYTE = 1_000_000
VOCABULARIES = {
    "cl100k": ("cl100k_base", "llama3"),
    "r50k": ("r50k_base", "gpt2"),
    "o200k": ("cl100k_base", "o200k"),
}
TEXTS = {
    "english": "text_classic_books/books.jsonl.gz",
    "many": "text_udhr/udhr2.jsonl.gz",
    "chinese": "text_zh_poetry/tang.jsonl.gz",
    "japanese": "text_ja_wagahai/wagahaiwa_nekodearu.txt.gz",
    "french": "text_ud_fr/fr_gsd-ud-dev.txt.gz",
    "code": "",  # Python's own library
}
N_IDS = 8192
UNIT = "megabytes (10^6) of UTF-8 a second"


def documents(name: str, n_bytes: int) -> list[str]:
    """Texts of `n_bytes` in all; a smaller set is read again from its beginning."""
    texts = texts_of(name)
    found: list[str] = []
    left = n_bytes
    while left > 0:
        for text in texts:
            found.append(text if len(text.encode()) <= left else text.encode()[:left].decode("utf-8", "ignore"))
            left -= len(text.encode())
            if left <= 0:
                break
    return found


def texts_of(name: str) -> list[str]:
    if name == "code":
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        return [file.read_text(encoding="utf-8", errors="ignore") for file in files]
    with gzip.open(DATA / TEXTS[name], "rt", encoding="utf-8") as file:
        if not TEXTS[name].endswith(".jsonl.gz"):
            return [file.read()]
        rows = [json.loads(line) for line in file]
    return [max((value for value in row.values() if isinstance(value, str)), key=len) for row in rows]


def measured(work: Callable[[], None], megabytes: float, threads: int) -> Iterator[float]:
    work()
    yield 0.0
    while True:
        began = clock(threads)
        work()
        yield megabytes / (clock(threads) - began)


def tiktoken_call(vocabulary: str) -> Callable[[str], object]:
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    from fledge.text.pattern import PATTERNS

    file, pattern = VOCABULARIES[vocabulary]
    ranks = load_tiktoken_bpe(str(DATA / f"conf_tokenizers/tiktoken/{file}.tiktoken"))
    encoding = tiktoken.Encoding("bench", pat_str=PATTERNS[pattern], mergeable_ranks=ranks, special_tokens={})
    return encoding.encode_ordinary


def fledge_call(vocabulary: str) -> Callable[[str], object]:
    from fledge.text.tiktoken_file import read_tiktoken
    from fledge.text.tokenizer import from_text

    file, pattern = VOCABULARIES[vocabulary]
    tokenizer = from_text(*read_tiktoken(DATA / f"conf_tokenizers/tiktoken/{file}.tiktoken", pattern))
    assert tokenizer.quick is not None, "tiktoken is not used"
    return tokenizer.encode_array


CALLS = {"tiktoken": tiktoken_call, "fledge": fledge_call}


def encode(library: str, vocabulary: str, text: str, threads: int) -> Iterator[float]:
    call = CALLS[library](vocabulary)
    texts = documents(text, 10 * MEGABYTE)
    yield from measured(lambda: [call(one) for one in texts] and None, 10, threads)


def encode_languages(library: str, vocabulary: str, threads: int) -> Iterator[float]:
    """A figure for each text of TEXTS in turn, again and again."""
    call = CALLS[library](vocabulary)
    texts = {name: documents(name, 2 * MEGABYTE) for name in TEXTS}
    turns = [measured(lambda some=some: [call(one) for one in some] and None, 2, threads) for some in texts.values()]
    for turn in turns:
        next(turn)
    yield 0.0
    for turn in itertools.cycle(turns):
        yield next(turn)


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


ENCODERS = {
    "tiktoken": functools.partial(encode, "tiktoken"),
    "fledge": functools.partial(encode, "fledge"),
    "tokenizers": encode_tokenizers,
}
LANGUAGES = {
    f"{library}-{vocabulary}": functools.partial(encode_languages, library, vocabulary)
    for vocabulary in VOCABULARIES
    for library in CALLS
}
TRAINERS = {"tokenizers-train": train_tokenizers, "fledge-train": train_fledge, "rustbpe-train": train_rustbpe}


KINDS = {
    "bpe": ("train_bpe", {"special": ()}),
    "wordpiece": ("train_wordpiece", {}),
    "unigram": ("train_unigram", {"special": ()}),
}


def train_kind(library: str, kind: str, threads: int) -> Iterator[float]:
    """Megabytes of a 10 MB corpus a CPU second that a kind is learnt from; `sentencepiece` knows unigram alone."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    texts = documents("english", 10 * MEGABYTE)
    work = {"fledge": learn_fledge, "tokenizers": learn_tokenizers, "sentencepiece": learn_sentencepiece}[library]
    yield 0.0
    while True:
        began = clock(threads)
        work(kind, texts)
        yield 10 / (clock(threads) - began)


def learn_fledge(kind: str, texts: list[str]) -> None:
    from fledge.text import learners, train

    name, options = KINDS[kind]
    getattr(train if kind == "bpe" else learners, name)(texts, N_IDS, **options)


def learn_tokenizers(kind: str, texts: list[str]) -> None:
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    if kind == "bpe":
        learner = tokenizers.Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=N_IDS, show_progress=False, initial_alphabet=alphabet)
    elif kind == "wordpiece":
        learner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        learner.normalizer = normalizers.BertNormalizer(lowercase=False)
        learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=N_IDS, show_progress=False, special_tokens=["[UNK]"])
    else:
        learner = tokenizers.Tokenizer(models.Unigram())
        learner.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=N_IDS, show_progress=False, special_tokens=["<unk>"], unk_token="<unk>"
        )
    learner.train_from_iterator(texts, trainer)


def learn_sentencepiece(kind: str, texts: list[str]) -> None:
    import io

    import sentencepiece

    lines = (line for text in texts for line in text.splitlines() if line)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=io.BytesIO(), vocab_size=N_IDS, model_type=kind, num_threads=1,
        minloglevel=2,
    )  # fmt: skip


KIND_PEERS = {
    f"{library}-{kind}": functools.partial(train_kind, library, kind)
    for kind in KINDS
    for library in ("tokenizers", "fledge", *(("sentencepiece",) if kind == "unigram" else ()))
}


def measure_languages(rounds: int = 9) -> None:
    """Both libraries on every text in one run for each pattern; kept as one table."""
    results = {}
    for vocabulary in VOCABULARIES:
        base, ours = f"tiktoken-{vocabulary}", f"fledge-{vocabulary}"
        figures = compare(__file__, [base, ours], 1, rounds * len(TEXTS))
        for place, text in enumerate(TEXTS):
            shares = {name: values[place :: len(TEXTS)] for name, values in figures.items()}
            results[f"{vocabulary} {text}"] = summary(shares, base)
    keep("tokenize_languages", {"unit": UNIT, "clock": "CPU time, one thread", "rounds": rounds, "results": results})


def measure_kinds(kinds: list[str], rounds: int = 7) -> None:
    """Each kind against its peers; kinds that are not measured now keep their last figures."""
    path = RESULTS / "tokenize_kinds.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {}
    for kind in kinds:
        names = [name for name in KIND_PEERS if name.endswith(f"-{kind}")]
        figures = summary(compare(__file__, names, 1, rounds), f"tokenizers-{kind}")
        results |= {name: {**row, "rounds": rounds} for name, row in figures.items()}
    keep("tokenize_kinds", {"unit": UNIT, "clock": "CPU time, one thread", "results": results})


def tables() -> dict[str, dict[str, Callable[[int], Iterator[float]]]]:
    """Table -> peers, whose names hold what they encode."""
    found: dict[str, dict[str, Callable[[int], Iterator[float]]]] = {"tokenize_train": TRAINERS}
    for vocabulary in ("cl100k", "r50k"):
        for text in ("english", "many"):
            key = f"{vocabulary}_{text}"
            peers = {f"{name}-{key}": functools.partial(work, vocabulary, text) for name, work in ENCODERS.items()}
            found[f"tokenize_{key}"] = peers
    return found


if __name__ == "__main__":
    everything = tables()
    if "--peer" in sys.argv:
        peers = {name: peer for table in everything.values() for name, peer in table.items()}
        words = sys.argv
        name, threads = words[words.index("--peer") + 1], int(words[words.index("--threads") + 1])
        peer_process({**peers, **LANGUAGES, **KIND_PEERS}, name, threads)
    for table in sys.argv[1:] if "--peer" not in sys.argv else ():  # names of tables and kinds, "languages", "kinds"
        if table == "languages":
            measure_languages()
        elif table == "kinds" or table in KINDS:
            measure_kinds([table] if table in KINDS else list(KINDS))
        else:
            run(__file__, everything[table], next(iter(everything[table])), table, UNIT)
