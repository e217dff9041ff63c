"""Containment by word 5-shingles equals counting them with Python's own sets."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.data.shingles import HeldOutShingles

texts = st.lists(st.sampled_from(["a", "b", "c", "d,", "e.", "f_g", "H", "1"]), max_size=25).map(" ".join)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


@given(st.lists(texts, min_size=1, max_size=4), st.lists(texts, max_size=5))
def test_containment_equals_counting_with_sets(held_out, training):
    looked_up = HeldOutShingles({f"v{n}": text.encode() for n, text in enumerate(held_out)})
    for n, text in enumerate(training):
        looked_up.see(f"t{n}", text.encode())
    everything = set().union(*map(shingles, training)) if training else set()
    for n, text in enumerate(held_out):
        found, own = looked_up.containment(f"v{n}"), shingles(text)
        if not own:
            assert found.share == 0
            continue
        shared = [len(own & shingles(other)) for other in training]
        assert found.share == pytest.approx(len(own & everything) / len(own))
        assert found.closest_share == pytest.approx(max(shared, default=0) / len(own))
        if max(shared, default=0):
            assert found.closest == f"t{shared.index(max(shared))}"


def test_a_text_spread_over_two_documents_is_contained_though_neither_holds_most_of_it():
    words = [f"word{n}" for n in range(60)]
    looked_up = HeldOutShingles({"v": " ".join(words).encode()})
    looked_up.see("first", " ".join(words[:32]).encode())
    looked_up.see("second", " ".join(words[28:]).encode())
    found = looked_up.containment("v")
    assert found.share == 1
    assert found.closest_share == 0.5


def test_chinese_is_compared_character_by_character():
    looked_up = HeldOutShingles({"v": "床前明月光疑是地上霜".encode()})
    looked_up.see("t", "又見床前明月光，疑是".encode())
    assert looked_up.containment("v").share == pytest.approx(3 / 6)
