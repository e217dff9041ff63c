"""Which known hashes a document holds, and whose they are: as Python's own sets and dictionaries tell it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fledge.data.overlap import Filter, Overlap

hashes = st.integers(0, 40).map(lambda n: n * 0x9E3779B97F4A7C15 % 2**64) | st.sampled_from([0, 1, 2**64 - 1, 2**63])
arrays = st.lists(hashes, max_size=30)


def array(values: list[int]) -> np.ndarray:
    return np.array(values, np.uint64)


@given(st.lists(arrays.map(lambda values: sorted(set(values))), max_size=5), arrays)
def test_known_hashes_are_found_with_their_place_and_owners(texts, document):
    overlap = Overlap([array(values) for values in texts])
    known = sorted(set().union(*texts)) if texts else []
    assert overlap.known.tolist() == known
    assert [places.tolist() for places in overlap.places] == [[known.index(v) for v in values] for values in texts]
    at, places = overlap.find(array(document))
    wanted = [(n, known.index(value)) for n, value in enumerate(document) if value in known]
    assert list(zip(at.tolist(), places.tolist(), strict=True)) == wanted
    own = np.unique(places)
    counts = {n: sum(known[place] in values for place in own.tolist()) for n, values in enumerate(texts)}
    found, shared = overlap.shared(own)
    assert dict(zip(found.tolist(), shared.tolist(), strict=True)) == {n: c for n, c in counts.items() if c}


def test_many_hashes_are_found_among_many():
    draw = np.random.default_rng(0)
    known, others = draw.integers(0, 2**64, 50_000, np.uint64), draw.integers(0, 2**64, 50_000, np.uint64)
    overlap = Overlap([np.unique(known)])
    at, places = overlap.find(np.concatenate([others, known]))
    assert np.array_equal(at, np.arange(50_000, 100_000)) and np.array_equal(overlap.known[places], known)


def test_a_filter_lets_all_that_are_known_through_and_few_others():
    draw = np.random.default_rng(1)
    known, others = draw.integers(0, 2**64, 20_000, np.uint64), draw.integers(0, 2**64, 20_000, np.uint64)
    chosen = Filter(known)
    assert len(chosen.find(known)) == 20_000
    assert 0 < len(chosen.find(others)) < 20_000 / 8
