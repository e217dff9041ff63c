"""Signatures estimate Jaccard similarity, bands find pairs as theory has it, clusters equal comparing all pairs."""

from __future__ import annotations

import gzip
import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.data.cleaning.config import NearDuplicatesConfig
from fledge.data.cleaning.minhash import NearDuplicates, bands_and_rows, chance_found, jaccard, minima, permutations
from fledge.errors import ConfigError
from tests.data.folders import essay


def shingle_set(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[at : at + 5]) for at in range(len(words) - 4)}


def clusters_by_hand(texts: list[str], threshold: float) -> dict[int, int]:
    """First document of each connected part, by comparing all pairs of Python sets."""
    sets = [shingle_set(text) for text in texts]
    first = list(range(len(texts)))
    for a, b in itertools.combinations(range(len(texts)), 2):
        union = sets[a] | sets[b]
        if sets[a] and sets[b] and len(sets[a] & sets[b]) >= threshold * len(union):
            old, new = max(first[a], first[b]), min(first[a], first[b])
            first = [new if root == old else root for root in first]
    return {number: root for number, root in enumerate(first) if number != root}


def changed(text: str, share: float, seed: int) -> str:
    """The text with a share of its words, side by side, replaced."""
    words = text.split()
    count = round(share * len(words))
    return " ".join([*essay(seed, count).split(), *words[count:]])


def clusters(texts: list[str], **options) -> dict[int, int]:
    near = NearDuplicates(NearDuplicatesConfig(**options))
    for text in texts:
        near.add(text)
    return near.clusters(lambda number: texts[number])


def test_clusters_equal_comparing_all_pairs():
    draw = random.Random(7)
    texts = [essay(n, 120) for n in range(20)]
    texts += [changed(texts[draw.randrange(20)], draw.choice([0.02, 0.05, 0.3, 0.6]), 1000 + n) for n in range(40)]
    texts += [changed(texts[30], 0.05, 5000), "too short", "too short", texts[3]]
    by_hand = clusters_by_hand(texts, 0.8)
    assert clusters(texts) == by_hand
    assert len(by_hand) > 10
    assert clusters(texts, threshold=0.3) != by_hand  # the control


def test_of_real_text_the_same_pairs_are_found_as_by_comparing_all(data_file):
    """Web text with edited copies planted in it."""
    with gzip.open(data_file("text_wiki_c4_demo") / "c4_demo.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"].lower() for line in file][:70]
    texts = [" ".join(word for word in text.split() if word.isalpha()) for text in texts]
    long = [text for text in texts if len(text.split()) > 60]
    texts += [changed(text, 0.04, n) for n, text in enumerate(long[:15])]
    texts += [changed(text, 0.25, n) for n, text in enumerate(long[:15])]
    assert clusters(texts) == clusters_by_hand(texts, 0.8)


def test_a_signature_agrees_as_often_as_jaccard_says():
    multipliers, offsets = permutations(4096)
    hashes = np.random.Generator(np.random.PCG64(1)).integers(0, 2**64, 1500, np.uint64)
    a, b = hashes[:1000], hashes[500:]
    same = np.mean(minima(a, multipliers, offsets) == minima(b, multipliers, offsets))
    assert jaccard(np.sort(a), np.sort(b)) == pytest.approx(1 / 3)
    assert same == pytest.approx(1 / 3, abs=4 * (1 / 3 * 2 / 3 / 4096) ** 0.5)


@pytest.mark.parametrize("similarity", [0.5, 0.65, 0.8])
def test_pairs_are_looked_at_as_often_as_theory_says(similarity):
    config = NearDuplicatesConfig()
    bands, rows = bands_and_rows(config)
    draw = np.random.Generator(np.random.PCG64(2))
    multipliers, offsets = permutations(bands * rows)
    shared = round(2 * 300 * similarity / (1 + similarity))
    hits = 0
    for _ in range(300):
        hashes = draw.integers(0, 2**64, 600 - shared, np.uint64)
        a, b = (minima(part, multipliers, offsets) for part in (hashes[:300], hashes[300 - shared :]))
        hits += bool((a == b).reshape(bands, rows).all(axis=1).any())
    expected = chance_found(shared / (600 - shared), bands, rows)
    assert hits / 300 == pytest.approx(expected, abs=4 * max(0.003, expected * (1 - expected) / 300) ** 0.5)


@given(st.floats(0.3, 0.95), st.sampled_from([64, 128, 256]))
def test_bands_find_a_pair_at_the_threshold_with_the_chance_asked_for(threshold, n):
    bands, rows = bands_and_rows(NearDuplicatesConfig(threshold=threshold, permutations=n))
    assert bands * rows <= n
    assert chance_found(threshold, bands, rows) >= 0.99
    assert chance_found(threshold, n // (rows + 1), rows + 1) < 0.99


def test_a_recall_that_the_permutations_cannot_give_is_refused():
    with pytest.raises(ConfigError, match="near_duplicates.recall.*raise permutations or lower recall"):
        bands_and_rows(NearDuplicatesConfig(threshold=0.1, permutations=16, recall=0.999))


def test_state_is_a_few_bytes_a_document():
    near = NearDuplicates(NearDuplicatesConfig())
    near.add(essay(1))
    assert near.keys[0].nbytes == 8 * near.bands <= 176
