"""Figures of written texts: those of sacrebleu and rouge-score by their public calls, and published examples."""

from __future__ import annotations

import math

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from fledge.errors import ConfigError
from fledge.evals.text_scores import check_metrics, signatures, text_scores
from tests.data.corrupted import story

RIGHT = [story(n, 1 + n % 3) for n in range(30)]
WRITTEN = [text if n % 4 else story(n + 1, 1 + n % 2) for n, text in enumerate(RIGHT)]


def test_figures_are_those_of_the_packages_own_calls():
    found = text_scores(WRITTEN, RIGHT)
    assert found["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(WRITTEN, [RIGHT]).score, abs=1e-9)
    assert found["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(WRITTEN, [RIGHT]).score, abs=1e-9)
    rows = [RougeScorer(["rouge1", "rougeL"]).score(a, b) for a, b in zip(RIGHT, WRITTEN, strict=True)]
    for name in ("rouge1", "rougeL"):
        assert found[name].value == pytest.approx(sum(row[name].fmeasure for row in rows) / 30)
    assert found["exact"].value == sum(a == b for a, b in zip(WRITTEN, RIGHT, strict=True)) / 30
    for score in found.values():
        low, high = score.interval
        assert score.n == 30 and low < score.value < high
    swapped = text_scores(RIGHT, WRITTEN)  # the control: BLEU is not the same both ways
    assert abs(swapped["bleu"].value - found["bleu"].value) > 0.1


def test_published_examples():
    # Papineni et al. 2002, example 2: modified unigram precision 2/7, of bigrams 0; here without the brevity penalty
    the = ["the the the the the the the"] * 2
    bleu = sacrebleu.metrics.BLEU(tokenize="none", smooth_method="none").corpus_score(
        the, [["the cat is on the mat"] * 2]
    )
    assert (bleu.counts[0], bleu.totals[0]) == (4, 14)
    # Lin 2004, section 3: LCS of "police killed the gunman" and "police kill the gunman" is 3 of 4, of "the gunman kill
    # police" 2 of 4; ROUGE-2 is the same for both of his candidates
    right = ["police killed the gunman"] * 2
    found = text_scores(["police kill the gunman", "the gunman kill police"], right, ("rouge",))
    assert found["rougeL"].value == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert found["rouge2"].value == pytest.approx(1 / 3)


def test_equal_texts_are_at_the_top_and_others_at_the_bottom():
    top, bottom = text_scores(RIGHT, RIGHT), text_scores(["0"] * 30, RIGHT)
    for name, most in {"exact": 1, "bleu": 100, "chrf": 100, "rouge1": 1, "rouge2": 1, "rougeL": 1}.items():
        assert math.isclose(top[name].value, most, abs_tol=1e-6) and bottom[name].value < 0.01 * most


def test_only_what_is_asked_for_is_computed_and_told_how(monkeypatch):
    assert list(text_scores(WRITTEN, RIGHT, ("chrf",))) == ["exact", "chrf"]
    told = signatures(("bleu", "chrf", "rouge"))
    assert "tok:13a" in told["bleu"] and "nc:6" in told["chrf"] and sacrebleu.__version__ in told["chrf"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "rouge_score" else name)
    check_metrics(("bleu",))
    with pytest.raises(ConfigError, match="metrics: rouge needs rouge_score"):
        check_metrics(("bleu", "rouge"))
