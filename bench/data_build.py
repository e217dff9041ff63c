"""Megabytes a second from text to shards: `fledge data build` beside the bare tokenizer on the same text.

The text: 100 MB of JSON lines made from the real texts in FLEDGE_DATA (default ../shared/data) with a fixed seed:
books, web pages, declarations in 388 languages, poems, essays; paragraphs shuffled, so that documents differ.
`tokenizer`: every document encoded, nothing else done, in as many threads as the build; `one thread`: in one.
`build`: reading, hashing, holding out, looking for near-duplicates, writing the corpus, tokenising, writing shards
and cards. `shards`: the second half of it alone, from a corpus that is there. The bar: build at 0.8 of the
tokenizer's speed or more. Then the peak memory of the command.

`python bench/data_build.py [MEGABYTES] [THREADS …] [--rounds N]`; as given: 100 1 2, 3 rounds.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import clock, compare, keep, peer_process, ratio, summary

DATA = Path(os.environ.get("FLEDGE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
SCRATCH = Path(tempfile.gettempdir()) / "fledge-bench-data-build"
SETS = (
    "text_classic_books/books.jsonl.gz",
    "text_wiki_c4_demo/c4_demo.jsonl.gz",
    "text_udhr/udhr2.jsonl.gz",
    "text_zh_poetry/tang.jsonl.gz",
    "ctx_pg_essays",
)
N_IDS = 8192
DOCUMENT_PARAGRAPHS = 12


def paragraphs() -> list[str]:
    found: list[str] = []
    for name in SETS:
        files = sorted((DATA / name).glob("*.jsonl.gz")) if (DATA / name).is_dir() else [DATA / name]
        for file in files:
            with gzip.open(file, "rt", encoding="utf-8") as lines:
                for line in lines:
                    text = max((value for value in json.loads(line).values() if isinstance(value, str)), key=len)
                    found += [part for part in text.split("\n\n") if part.strip()]
    return found


def source(megabytes: int) -> Path:
    """The text as JSON lines, made once."""
    path = SCRATCH / f"text-{megabytes}.jsonl"
    if not path.exists():
        SCRATCH.mkdir(exist_ok=True)
        draw, known, done = random.Random(0), paragraphs(), 0
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            while done < megabytes * 1_000_000:
                text = "\n\n".join(draw.sample(known, draw.randint(1, 2 * DOCUMENT_PARAGRAPHS)))
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                done += len(text.encode())
        os.replace(f"{path}.new", path)
    return path


def tokenizer() -> Path:
    """Byte-level BPE of 8,192 ids from 4 MB of the text's beginning, made once."""
    from fledge.text.documents import read_documents
    from fledge.text.train import train_bpe

    folder = SCRATCH / "tokenizer"
    if not (folder / "tokenizer_config.json").exists():
        train_bpe([document.text for document in read_documents(source(4))], N_IDS).save(folder)
    return folder


def measured(work: Callable[[], None], megabytes: int, threads: int) -> Iterator[float]:
    yield 0.0
    while True:
        began = clock(threads)
        work()
        yield megabytes / (clock(threads) - began)


def tokenizer_alone(megabytes: int, threads: int, in_one: bool = False) -> Iterator[float]:
    from fledge.data.in_threads import grouped, in_threads
    from fledge.text.documents import read_documents
    from fledge.text.tokenizer import Tokenizer

    texts = [document.text for document in read_documents(source(megabytes))]
    call = Tokenizer.load(tokenizer()).encode_array
    call(texts[0])

    def work() -> None:
        for _ in in_threads(lambda group: [call(text) for text in group], groups, 1 if in_one else threads):
            pass

    groups = list(grouped(texts, len, 1 << 18))
    yield from measured(work, megabytes, threads)


def building(whole: bool, megabytes: int, threads: int) -> Iterator[float]:
    from fledge.data.build import build
    from fledge.data.config import BuildConfig

    out = Path(tempfile.mkdtemp(dir=SCRATCH)) / "out"
    text, words = str(source(megabytes)), str(tokenizer())
    config = BuildConfig(out, text, words, threads=threads)

    def work() -> None:
        if whole:
            shutil.rmtree(out, ignore_errors=True)
        build(config, json=True)

    if whole:
        yield from measured(work, megabytes, threads)
        return
    from fledge.data import build as stages

    build(BuildConfig(out, text, threads=threads), json=True)
    card = stages.finished(out)
    assert card is not None
    yield from measured(lambda: stages.build_shards(config, words, card) and None, megabytes, threads)


PEERS = {
    "tokenizer": tokenizer_alone,
    "one thread": functools.partial(tokenizer_alone, in_one=True),
    "build": functools.partial(building, True),
    "shards": functools.partial(building, False),
}


def peak_megabytes(megabytes: int, threads: int) -> float:
    """The most memory that the command held, Python and libraries included."""
    out = tempfile.mkdtemp(dir=SCRATCH)
    words = ["-m", "fledge", "data", "build", "--json", "--source", str(source(megabytes)), "--out", f"{out}/out"]
    words += ["--tokenizer", str(tokenizer()), "--threads", str(threads)]
    process = os.posix_spawn(sys.executable, [sys.executable, *words], os.environ)
    _, status, usage = os.wait4(process, 0)
    shutil.rmtree(out)
    assert status == 0, "the build failed"
    return usage.ru_maxrss / 1000


def main(numbers: list[int], rounds: int) -> None:
    megabytes, threads = (numbers or [100])[0], numbers[1:] or [1, 2]
    source(megabytes)
    tokenizer()
    os.environ["BENCH_MEGABYTES"] = str(megabytes)
    results: dict[str, object] = {}
    for n in threads:
        figures = compare(__file__, list(PEERS), n, rounds)
        table: dict[str, object] = dict(summary(figures, "tokenizer"))
        table["build / one thread"] = ratio(figures, "build", "one thread")
        table["peak megabytes of the command"] = round(peak_megabytes(megabytes, n), 1)
        results[f"{n} thread{'s' if n > 1 else ''}"] = table
    unit = "megabytes (10^6) of UTF-8 a second"
    clocks = "CPU time at one thread, wall at more"
    keep("data_build", {"unit": unit, "clock": clocks, "megabytes": megabytes, "rounds": rounds, "results": results})
    shutil.rmtree(SCRATCH)


if __name__ == "__main__":
    words = sys.argv[1:]
    if "--peer" in words:
        name, threads = words[words.index("--peer") + 1], int(words[words.index("--threads") + 1])
        megabytes = int(os.environ["BENCH_MEGABYTES"])
        peer_process({name: functools.partial(PEERS[name], megabytes)}, name, threads)
    else:
        rounds = int(words[words.index("--rounds") + 1]) if "--rounds" in words else 3
        plain = words[: words.index("--rounds")] if "--rounds" in words else words
        main([int(word) for word in plain], rounds)
