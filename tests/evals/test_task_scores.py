"""Scores of task heads against plain formulas and examples worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fledge.evals.task_scores import entities, entity_scores, label_scores, number_scores, ranks, span_scores


def test_label_scores_are_those_of_their_formulas():
    right = [0, 0, 0, 1, 1, 1, 1, 2, 2, 0]
    found = [0, 0, 1, 1, 1, 0, 1, 2, 0, 0]
    scores = label_scores(found, right, 3)
    assert scores["accuracy"].value == pytest.approx(0.7)
    # by hand: label 0: 3 right of 5 said and 4 true; label 1: 3 of 4 and 4; label 2: 1 of 1 and 2
    assert scores["macro_f1"].value == pytest.approx((6 / 9 + 6 / 8 + 2 / 3) / 3)
    one_hot = [np.eye(3)[values] for values in (found, right)]  # Gorodkin's covariance form
    a, b = (x - x.mean(0) for x in one_hot)
    assert scores["mcc"].value == pytest.approx((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))
    for score in scores.values():
        low, high = score.interval
        assert low <= score.value <= high and score.n == 10
    assert label_scores([1, 1], [1, 1], 2)["mcc"].value == 0.0


def test_correlations_are_those_of_plain_formulas_and_ties_share_their_rank():
    draw = np.random.default_rng(1)
    a = draw.integers(0, 6, 60).astype(float)
    b = a + draw.normal(size=60)
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    naive = [1 + sum(y < x for y in a) + (sum(y == x for y in a) - 1) / 2 for x in a]
    assert ranks(a).tolist() == naive
    scores = number_scores(a.tolist(), b.tolist())
    assert scores["pearson"].value == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert scores["spearman"].value == pytest.approx(np.corrcoef(ranks(a), ranks(b))[0, 1])
    assert number_scores((a * 7 + 1).tolist(), a.tolist())["spearman"].value == pytest.approx(1.0)
    assert number_scores([1.0] * 5, [1.0, 2, 3, 4, 5])["pearson"].value == 0.0


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("I-PER I-PER O", {("PER", 0, 2)}),
        ("I-PER I-LOC", {("PER", 0, 1), ("LOC", 1, 2)}),
        ("B-PER I-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 3)}),
        ("O O", set()),
        ("S-PER B-LOC E-LOC O", {("PER", 0, 1), ("LOC", 1, 3)}),
        ("noun O verb", {("noun", 0, 1), ("verb", 2, 3)}),
    ],
)
def test_entities_are_read_as_conll_reads_them(tags, expected):
    assert entities(tags.split()) == expected


def test_entity_scores_count_whole_entities():
    right = [["B-PER", "I-PER", "O"], ["O", "B-LOC", "O"]]
    found = [["B-PER", "O", "O"], ["O", "B-LOC", "B-LOC"]]
    scores = entity_scores(found, right)
    assert {name: scores[name].value for name in ("precision", "recall", "f1")} == pytest.approx(
        {"precision": 1 / 3, "recall": 1 / 2, "f1": 2 * 1 / (3 + 2)}
    )
    assert scores["token_accuracy"].value == pytest.approx(4 / 6)


def test_spans_are_compared_as_squad_compares_them():
    scores = span_scores(["The Cat!", "a dog ran", "", "x"], [["cat"], ["dog", "the dog sat"], [], []])
    assert scores["exact"].value == pytest.approx((1 + 0 + 1 + 0) / 4)
    assert scores["word_f1"].value == pytest.approx((1 + 2 / 3 + 1 + 0) / 4)
