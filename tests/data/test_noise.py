"""BART's five noises: each undone from what it drew, each at its rate."""

from __future__ import annotations

import numpy as np
import pytest

from fledge.data.noise import NoiseConfig, infill_spans, infilled, noised
from fledge.data.sentences import sentence_bounds, sentence_marks
from fledge.errors import ConfigError
from tests.data.corrupted import chi_square, story, wordpiece

MASK = 9999
NONE = {"infill": 0.0, "permute": 0.0}


def text(n: int = 30) -> np.ndarray:
    return np.array(wordpiece().encode(story(3, n)))


def spoilt(ids: np.ndarray, number: int = 0, **config: float) -> np.ndarray:
    return noised(ids, MASK, sentence_marks(wordpiece()), NoiseConfig(**{**NONE, **config}), "test", number)


def test_without_noise_the_text_is_the_text():
    assert np.array_equal(spoilt(text()), text())


@pytest.mark.parametrize("mean", [0.5, 3.0, 8.0])
@pytest.mark.parametrize("n", [1, 2, 10, 200])
def test_infilling_is_undone_by_its_spans(n, mean):
    ids = np.arange(n)
    for number in range(40):
        starts, lengths = infill_spans(n, 0.3, mean, number)
        assert lengths.sum() == round(0.3 * n) and (starts + lengths <= n).all()
        assert (np.diff(starts) >= lengths[:-1]).all()
        out = infilled(ids, starts, lengths, MASK)
        spans = iter([ids[a : a + k].tolist() for a, k in zip(starts.tolist(), lengths.tolist(), strict=True)])
        again = [token for place in out.tolist() for token in (next(spans) if place == MASK else [place])]
        assert again == ids.tolist() and next(spans, None) is None


def test_spans_are_of_poisson_lengths_with_empty_ones_among_them():
    lengths = np.concatenate([infill_spans(2000, 0.3, 3.0, number)[1][:-1] for number in range(40)])  # the last is cut
    shares = np.exp(-3.0) * np.array([1, 3, 4.5, 4.5, 3.375, 2.025, 1.0125])
    shares = np.append(shares, 1 - shares.sum())
    counts = np.bincount(np.minimum(lengths, 7), minlength=8)
    assert counts.sum() > 5000 and counts[0] > 200
    assert chi_square(counts, shares) < 24.32  # p = 0.001, 7 degrees
    wrong = np.bincount(np.minimum(np.maximum(lengths, 1), 7), minlength=8)
    assert chi_square(wrong, shares) > 24.32  # the control: without empty spans


def test_spans_begin_anywhere():
    starts = np.concatenate([infill_spans(100, 0.3, 3.0, number)[0] for number in range(600)])
    counts = np.histogram(starts, bins=5, range=(0, 100))[0]
    assert chi_square(counts, np.full(5, 0.2)) < 40  # the ends are not favoured: spans within a text vary together


@pytest.mark.parametrize("noise", ["mask", "delete"])
def test_tokens_are_masked_and_deleted_at_their_rate(noise):
    ids = np.concatenate([text(200)] * 3)
    n = hit = 0
    for number in range(8):
        out = spoilt(ids, number, **{noise: 0.2})
        n += len(ids)
        hit += len(ids) - len(out) if noise == "delete" else int((out == MASK).sum())
        if noise == "mask":
            assert np.array_equal(out[out != MASK], ids[out != MASK])
    counts = np.array([n - hit, hit])
    assert chi_square(counts, np.array([0.8, 0.2])) < 10.83 < chi_square(counts, np.array([0.77, 0.23]))


def test_what_deletion_leaves_stands_in_order():
    ids = np.arange(500) + 10
    out = spoilt(ids, delete=0.3)
    assert (np.diff(out) > 0).all() and 300 < len(out) < 400
    assert len(spoilt(ids[:1], delete=0.9)) == 1


def test_sentences_change_places_and_stay_whole():
    ids, marks = text(), sentence_marks(wordpiece())

    def sentences(of: np.ndarray) -> list[tuple[int, ...]]:
        bounds = sentence_bounds(of, marks, len(of))
        return [tuple(of[a:b].tolist()) for a, b in zip(bounds, bounds[1:], strict=False)]

    moved = sum(sentences(spoilt(ids, n, permute=1.0)) != sentences(ids) for n in range(10))
    assert moved == 10 and len(sentences(ids)) == 30
    assert all(sorted(sentences(spoilt(ids, n, permute=1.0))) == sorted(sentences(ids)) for n in range(10))


def test_a_rotated_document_goes_on_in_a_circle():
    ids = np.arange(20)
    firsts = set()
    for number in range(200):
        out = spoilt(ids, number, rotate=1.0)
        assert np.array_equal(np.roll(out, int(out[0])), ids)
        firsts.add(int(out[0]))
    assert firsts == set(range(20))
    half = np.mean([spoilt(ids, number, rotate=0.5)[0] == 0 for number in range(2000)])
    assert abs(half - 0.525) < 0.04  # 0.5 as it is, and one in twenty of the rest


def test_noises_combine_and_the_key_decides():
    ids = text(60)
    both = {"infill": 0.3, "permute": 1.0, "delete": 0.1, "mask": 0.1, "rotate": 1.0}
    out = spoilt(ids, 1, **both)
    assert np.array_equal(out, spoilt(ids, 1, **both)) and not np.array_equal(out, spoilt(ids, 2, **both))
    assert len(out) < len(ids) and (out == MASK).sum() > 10


def test_impossible_noise_is_refused():
    for wrong in ({"infill": 1.0}, {"delete": -0.1}, {"permute": 2.0}, {"mean_span": 0.0}):
        with pytest.raises(ConfigError, match="noise"):
            NoiseConfig(**wrong)
