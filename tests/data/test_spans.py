"""T5's span corruption: the paper's example, its numbers, its inverse, and its distribution."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fledge.data.denoise import prefix_split, span_corruption
from fledge.data.spans import (
    SpansConfig,
    corrupted_lengths,
    noise_mask,
    sentinel_ids,
    span_counts,
    text_tokens,
    with_sentinels,
)
from fledge.errors import ConfigError, DataError
from fledge.text.extend import extended, sentinels
from tests.data.corrupted import chi_square, wordpiece

SENTINELS = np.arange(999, 899, -1)  # <extra_id_0> has the highest id


def reassembled(source: np.ndarray, target: np.ndarray) -> list[int]:
    """The text again, by reading: each sentinel of the input is looked up in the target. Written from figure 2."""
    spans: dict[int, list[int]] = {}
    for token in target.tolist():
        if token in SENTINELS:
            spans[token] = []
            last = token
        else:
            spans[last].append(token)
    return [t for token in source.tolist() for t in (spans[token] if token in SENTINELS else [token])]


def test_the_example_of_the_paper():
    """Figure 2: Thank you [for inviting] me to your party [last] week ."""
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week", "."]
    mask = np.array([word in ("for", "inviting", "last") for word in words])
    source, target = with_sentinels(np.arange(len(words)), mask, SENTINELS)
    read = lambda ids: " ".join(words[i] if i < 99 else f"<{'XYZ'[999 - i]}>" for i in ids.tolist())  # noqa: E731
    assert read(source) == "Thank you <X> me to your party <Y> week ."
    assert read(target) == "<X> for inviting <Y> last <Z>"


@pytest.mark.parametrize("n", [2, 3, 7, 50, 568])
@pytest.mark.parametrize("config", [SpansConfig(), SpansConfig(0.5, 1.0), SpansConfig(0.6, 10.0)], ids=str)
def test_input_and_target_reassemble_the_text(n, config):
    ids = np.random.default_rng(n).integers(0, 800, n)
    for number in range(20):
        mask = noise_mask(n, config, number)
        if int((np.diff(mask.astype(int)) == 1).sum()) >= 99:
            continue
        source, target = with_sentinels(ids, mask, SENTINELS)
        assert reassembled(source, target) == ids.tolist()
        assert reassembled(source[::-1], target) != ids.tolist() or n < 4  # the control
        taken, spans = span_counts(n, config)
        assert mask.sum() == taken and len(source) == n - taken + spans and len(target) == taken + spans
        assert not mask[0] and mask[-1]


def test_a_text_that_begins_with_a_span_or_ends_without_reassembles_too():
    ids = np.arange(10)
    for mask in ([1, 1, 0, 0, 1, 0, 0, 1, 1, 0], [1] * 9 + [0], [0] * 10, [1] * 10, [1, 0] * 5):
        source, target = with_sentinels(ids, np.array(mask, bool), SENTINELS)
        assert reassembled(source, target) == ids.tolist()


def test_512_tokens_take_568_of_text_and_114_of_target():
    """The published sizes of T5's pre-training (context 512, targets 114)."""
    assert text_tokens(512, SpansConfig()) == (568, 114)
    for source in (16, 64, 100, 512, 1024):
        n, target = text_tokens(source, SpansConfig())
        assert corrupted_lengths(n, SpansConfig()) == (source, target)
        assert corrupted_lengths(n + 1, SpansConfig())[0] > source


def test_a_corrupted_segment_fills_its_row_and_ends_with_eos():
    tokenizer = extended(wordpiece(), sentinels())
    n, wanted = text_tokens(64, SpansConfig())
    corrupt = span_corruption(tokenizer, SpansConfig())
    ids = np.random.default_rng(0).integers(10, 100, n)
    end, first = tokenizer.special["sep"], tokenizer.id_of("<extra_id_0>")
    lengths = set()
    for number in range(50):
        source, target = corrupt(ids, number)
        lengths.add((len(source), len(target)))
        assert source[-1] == target[-1] == end and target[0] == first
        marks = source[source >= first - 99]
        assert marks.tolist() == list(range(first, first - len(marks), -1))  # ids fall
    assert lengths == {(64, wanted)}


def test_every_cut_into_runs_is_as_likely():
    """8 tokens, 4 taken in 2 spans: 3 · 3 masks."""
    found = Counter(tuple(noise_mask(8, SpansConfig(0.5, 2.0), n).tolist()) for n in range(4500))
    assert len(found) == 9
    counts = np.array(list(found.values()))
    assert chi_square(counts, np.full(9, 1 / 9)) < 26.12  # p = 0.001, 8 degrees
    assert chi_square(counts, np.append(np.full(8, 0.1), 0.2)) > 26.12  # the control


def test_spans_have_the_mean_length_and_the_text_the_rate():
    masks = np.array([noise_mask(568, SpansConfig(), n) for n in range(50)])
    assert masks.mean() == pytest.approx(85 / 568)
    spans = (np.diff(masks.astype(int), axis=1) == 1).sum(1)
    assert set(spans) == {28}
    shares = masks[:, 50:500].mean(0)
    assert abs(shares.mean() - 0.15) < 0.01 and shares.std() < 0.08  # every place is as likely


def test_the_key_decides():
    assert np.array_equal(noise_mask(100, SpansConfig(), 1, 2), noise_mask(100, SpansConfig(), 1, 2))
    assert not np.array_equal(noise_mask(100, SpansConfig(), 1, 2), noise_mask(100, SpansConfig(), 1, 3))


def test_a_prefix_and_the_rest_are_the_text():
    corrupt, ids, end = prefix_split(wordpiece()), np.arange(10, 16), wordpiece().special["sep"]
    cuts = Counter()
    for number in range(2000):
        source, target = corrupt(ids, number)
        assert [*source[:-1], *target[:-1]] == ids.tolist() and source[-1] == target[-1] == end
        cuts[len(source) - 1] += 1
    assert sorted(cuts) == [1, 2, 3, 4, 5]
    assert chi_square(np.array(list(cuts.values())), np.full(5, 0.2)) < 18.47  # p = 0.001, 4 degrees


def test_what_cannot_be_is_refused():
    with pytest.raises(DataError, match="at most 4 spans"):
        with_sentinels(np.arange(20), np.arange(20) % 2 == 1, SENTINELS[:5])
    with pytest.raises(ConfigError, match="expected sentinels"):
        sentinel_ids(wordpiece())
    with pytest.raises(ConfigError, match="at least 4"):
        text_tokens(3, SpansConfig())
    for wrong in ({"rate": 0}, {"rate": 1}, {"mean_span": 0.5}):
        with pytest.raises(ConfigError, match="spans"):
            SpansConfig(**wrong)
