"""Intervals agree with theory where there is one."""

from __future__ import annotations

import math
import random

import pytest

from fledge.evals.score import change_score, mean_score, ratio_score


def test_the_interval_of_a_mean_is_about_two_standard_errors_each_way():
    chosen = random.Random(0)
    values = [chosen.gauss(10, 3) for _ in range(400)]
    score = mean_score(values, 0)
    mean = sum(values) / 400
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 400)
    assert score.value == pytest.approx(mean)
    assert score.interval[0] == pytest.approx(mean - 1.96 * deviation / 20, abs=0.03)
    assert score.interval[1] == pytest.approx(mean + 1.96 * deviation / 20, abs=0.03)


def test_the_interval_covers_the_truth_nineteen_times_in_twenty():
    chosen = random.Random(1)
    inside = 0
    for seed in range(40):
        weights = [chosen.uniform(1, 9) for _ in range(60)]
        totals = [weight * chosen.gauss(2, 0.5) for weight in weights]
        low, high = ratio_score(totals, weights, seed).interval
        inside += low <= 2 <= high
    assert 34 <= inside <= 40


def test_a_ratio_is_of_sums_not_of_ratios():
    assert ratio_score([1, 90], [1, 9], 0).value == 9.1


def test_equal_ratios_have_an_interval_of_no_width():
    low, high = ratio_score([2, 4, 8], [1, 2, 4], 0).interval
    assert low == high == 2


def test_a_paired_change_is_narrower_than_the_figures_it_is_between():
    chosen = random.Random(2)
    before = [chosen.uniform(1, 50) for _ in range(100)]
    after = [value - 0.5 + chosen.gauss(0, 0.1) for value in before]
    change = change_score(after, before, [1.0] * 100, 0)
    assert change.value == pytest.approx(-0.5, abs=0.05)
    assert change.interval[1] < -0.4
    low, high = mean_score(after, 0).interval
    assert high - low > 20 * (change.interval[1] - change.interval[0])


def test_one_document_has_no_interval_and_none_no_score():
    assert ratio_score([3], [2], 0).interval is None
    with pytest.raises(ValueError, match="above 0"):
        ratio_score([], [], 0)


def test_the_seed_decides_the_interval():
    assert ratio_score([1, 2, 4], [1, 1, 1], 7) == ratio_score([1, 2, 4], [1, 1, 1], 7)
    assert ratio_score([1, 2, 4, 9, 5], [1] * 5, 7) != ratio_score([1, 2, 4, 9, 5], [1] * 5, 8)
