"""Cleaning: megabytes a second of each step, and how right near-duplicates, languages and personal data are.

    python bench/clean.py speed             each step on 4 MB of English books and web text, one core, CPU time
    python bench/clean.py near-duplicates   recall by Jaccard similarity beside theory; real text beside all pairs
    python bench/clean.py languages         accuracy on documents and questions that no profile was made of

Each keeps its table in bench/results/clean_NAME.json. Texts are read from FLEDGE_DATA (default ../shared/data).
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import keep

from fledge.data.cleaning.cleaner import STEPS
from fledge.data.cleaning.config import CleanConfig, ContaminationConfig, LanguageConfig, NearDuplicatesConfig
from fledge.data.cleaning.language import identify
from fledge.data.cleaning.minhash import NearDuplicates, bands_and_rows, chance_found, jaccard
from fledge.data.document import Document

DATA = Path(os.environ.get("FLEDGE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
ROUNDS = 3
MEGABYTE = 1_000_000
DOCUMENT_WORDS = 500


def rows(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def documents(n_bytes: int) -> list[Document]:
    """Web text, then books in parts of about 3,000 characters, `n_bytes` in all."""
    texts = [row["text"] for row in rows("text_wiki_c4_demo/c4_demo.jsonl.gz")]
    books = (row["text"] for row in rows("text_classic_books/books.jsonl.gz"))
    parts = (book[at : at + 3000] for book in books for at in range(0, len(book), 3000))
    found, left = [], n_bytes
    for number, text in enumerate(itertools.chain(texts, parts)):
        found.append(Document(str(number), text))
        left -= found[-1].n_bytes
        if left < 0:
            return found
    return found


def speed() -> None:
    """MB/s of each step alone, and documents a second of signing near-duplicates."""
    texts = documents(4 * MEGABYTE)
    megabytes = sum(document.n_bytes for document in texts) / MEGABYTE
    evaluations = tuple(sorted((DATA / "bench_icl").glob("*.jsonl.gz")))
    config = CleanConfig(
        language=LanguageConfig(keep=("en",)), contamination=ContaminationConfig(evaluations=evaluations)
    )
    table = {}
    for name, make in STEPS.items():
        step = make(getattr(config, name))
        observe = getattr(step, "observe", None) if getattr(step, "observes", False) else None
        if observe:
            table[f"{name}, observing"] = measured(lambda observe=observe: [observe(d) for d in texts], megabytes)
            step = make(getattr(config, name))  # what was observed several times is no boilerplate
            for document in texts:
                step.observe(document)  # type: ignore[attr-defined]
            step.settle()  # type: ignore[attr-defined]
        table[name] = measured(lambda step=step: [step(d) for d in texts], megabytes)
        print(f"{name:<24}{table[name]['median']:8.1f} MB/s", flush=True)
    near = NearDuplicates(NearDuplicatesConfig())
    table["near_duplicates, signing"] = measured(lambda: [near.add(d.text) for d in texts], megabytes)
    per_second = table["near_duplicates, signing"]["median"] / megabytes * len(texts)
    near = NearDuplicates(NearDuplicatesConfig())
    for document in texts:
        near.add(document.text)
    began = time.process_time()
    clusters = near.clusters(lambda number: texts[number].text)
    facts = {"documents": len(texts), "signed_documents_per_second": round(per_second), "duplicates": len(clusters)}
    facts |= {"clusters_seconds": round(time.process_time() - began, 3), "compared": near.compared}
    facts |= {"state_bytes_per_document": near.keys[0].nbytes + 8}
    keep(
        "clean_speed",
        {"unit": "megabytes (10^6) of UTF-8 a second of CPU time", "rounds": ROUNDS, "results": table, **facts},
    )


def measured(work: Callable[[], object], megabytes: float) -> dict[str, float]:
    figures = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        figures.append(megabytes / (time.process_time() - began))
    return {
        "median": round(statistics.median(figures), 2),
        "low": round(min(figures), 2),
        "high": round(max(figures), 2),
    }


def near_duplicates() -> None:
    """Pairs planted at several similarities; then 600 real documents, half of them edited copies, beside all pairs."""
    config = NearDuplicatesConfig()
    bands, rows_of_band = bands_and_rows(config)
    draw = np.random.Generator(np.random.PCG64(3))
    table = []
    for wanted in (0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95):
        similarities, candidates, dropped, right = [], 0, 0, 0
        for _ in range(400):
            pair = planted_pair(draw, wanted)
            near = NearDuplicates(config)
            for text in pair:
                near.add(text)
            similarity = jaccard(*(near.shingles(text) for text in pair))
            similarities.append(similarity)
            candidates += bool((near.keys[0] == near.keys[1]).any())
            dropped += bool(near.clusters(pair.__getitem__))
            right += similarity >= config.threshold
        theory = statistics.mean(chance_found(s, bands, rows_of_band) for s in similarities)
        row = {"jaccard": round(statistics.mean(similarities), 3), "theory": round(theory, 4)}
        row |= {"candidates": candidates / 400, "at_threshold": right / 400, "dropped": dropped / 400}
        table.append(row)
        print(row, flush=True)
    facts = {"bands": bands, "rows": rows_of_band, "threshold": config.threshold, "pairs": 400}
    keep("clean_near_duplicates", {**facts, "planted": table, "real": beside_all_pairs(config)})


def planted_pair(draw: np.random.Generator, similarity: float) -> tuple[str, str]:
    """Two texts of 500 words that share a stretch of words such that about that share of their shingles is common."""
    shared = round(DOCUMENT_WORDS * 2 * similarity / (1 + similarity))
    words = [f"w{n}" for n in draw.integers(0, 10**6, 2 * DOCUMENT_WORDS - shared)]
    return " ".join(words[:DOCUMENT_WORDS]), " ".join(words[DOCUMENT_WORDS - shared :])


def beside_all_pairs(config: NearDuplicatesConfig) -> dict[str, Any]:
    """Recall and precision of the pairs' clusters against exact Jaccard of all pairs of sets."""
    draw = np.random.Generator(np.random.PCG64(4))
    texts = [document.text for document in documents(MEGABYTE)][:300]
    texts += [edited(text, draw) for text in texts]
    near = NearDuplicates(config)
    for text in texts:
        near.add(text)
    found = near.clusters(texts.__getitem__)
    sets = [near.shingles(text) for text in texts]
    first = list(range(len(texts)))
    for a, b in itertools.combinations(range(len(texts)), 2):
        if len(sets[a]) and len(sets[b]) and jaccard(sets[a], sets[b]) >= config.threshold and first[a] != first[b]:
            old, new = max(first[a], first[b]), min(first[a], first[b])
            first = [new if root == old else root for root in first]
    exact = {number: root for number, root in enumerate(first) if root != number}
    both = len(found.keys() & exact.keys())
    facts = {"documents": len(texts), "exact": len(exact), "found": len(found), "compared": near.compared}
    pairs = len(texts) * (len(texts) - 1) // 2
    return facts | {"all_pairs": pairs, "recall": both / len(exact), "precision": both / len(found)}


def edited(text: str, draw: np.random.Generator) -> str:
    """The text with up to a tenth of its words, anywhere, replaced by another of its words."""
    words = text.split()
    count = int(draw.uniform(0, 0.1) * len(words))
    for place in draw.integers(0, max(1, len(words)), count):
        words[place] = words[int(draw.integers(0, len(words)))]
    return " ".join(words)


def languages() -> None:
    """Share of documents, sentences and questions whose language is told, by set."""
    table = {}
    for name, (code, texts) in labelled().items():
        right = sum(identify(text)[0] == code for text in texts)
        characters = statistics.median(map(len, texts))
        table[name] = {"n": len(texts), "median_characters": characters, "accuracy": round(right / len(texts), 4)}
        print(f"{name:<24}{table[name]}", flush=True)
    keep("clean_languages", {"results": table}, quiet=True)


def labelled() -> dict[str, tuple[str, list[str]]]:
    """Texts of one language by set: none of them is of the declaration that the profiles were made of."""
    found: dict[str, tuple[str, list[str]]] = {}
    for code in ("ar", "de", "en", "es", "hi", "ru", "vi", "zh"):
        [row] = rows(f"bench_xquad/xquad.{code}.json.gz")
        paragraphs = [p for article in row["data"] for p in article["paragraphs"]]
        found[f"xquad {code}"] = (code, [p["context"] for p in paragraphs])
        found[f"xquad {code} questions"] = (code, [q["question"] for p in paragraphs for q in p["qas"]])
    names = {"finnish": "fi", "french": "fr", "german": "de", "portuguese": "pt", "swedish": "sv", "english-kjv": "en"}
    for row in rows("text_nltk_genesis/genesis.jsonl.gz"):
        name = row["id"].partition("/")[2].removesuffix(".txt")
        if name in names:
            words = row["text"].split()
            parts = [" ".join(words[at : at + 50]) for at in range(0, len(words) - 50, 50)]
            found[f"genesis {name}"] = (names[name], parts)
    for name, code in (("text_ud_fr/fr_gsd-ud-dev.txt.gz", "fr"), ("text_ud_ja/ja_gsd-ud-dev.txt.gz", "ja")):
        with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
            found[f"ud {code} sentences"] = (code, [line for line in file.read().splitlines() if len(line) > 20])
    found["tang poems"] = ("zh", ["\n".join(map(str, row.values())) for row in rows("text_zh_poetry/tang.jsonl.gz")])
    return found


TABLES = {"speed": speed, "near-duplicates": near_duplicates, "languages": languages}

if __name__ == "__main__":
    for asked in sys.argv[1:] or TABLES:
        TABLES[asked]()
