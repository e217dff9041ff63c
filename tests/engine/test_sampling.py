"""From logits to a token: the order, the truncations, the penalties, the sampled distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.engine.request import Sampling
from fledge.engine.sampling import Sampler, highest, token_logprob, truncate
from fledge.errors import EngineError

VOCAB = 7


def sampler(history=(), stop_ids=(), choice=0, vocab_size=VOCAB, **settings) -> Sampler:
    return Sampler(Sampling(**settings), choice, history, stop_ids, vocab_size)


def logits(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def draws(row: np.ndarray, n: int, **settings) -> np.ndarray:
    one = sampler(vocab_size=len(row), **settings)
    return np.array([one.choose(row, position) for position in range(n)])


def test_greedy_takes_the_lowest_id_among_equals():
    assert sampler(temperature=0.0).choose(logits(1, 3, 2, 3, 3, 0, 0), 5) == 1


def test_the_sampled_distribution_is_the_softmax():
    row = np.log(np.array([0.35, 0.25, 0.15, 0.1, 0.08, 0.05, 0.02])).astype(np.float32) + 3
    n = 20_000
    for temperature in (1.0, 0.7, 1.6):
        counts = np.bincount(draws(row, n, temperature=temperature, seed=11), minlength=VOCAB)
        weights = np.exp(row.astype(float) / temperature)
        assert chi_square(counts, n * weights / weights.sum()) < 22.5  # 6 degrees of freedom: 22.46 at 0.001
        wrong = np.roll(weights, 1)
        assert chi_square(counts, n * wrong / wrong.sum()) > 1000  # the control


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_truncated_sampling_gives_the_renormalised_distribution_and_nothing_else():
    row = np.log(np.array([0.35, 0.25, 0.15, 0.1, 0.08, 0.05, 0.02])).astype(np.float32)
    counts = np.bincount(draws(row, 10_000, top_k=3, seed=5), minlength=VOCAB)
    assert counts[3:].sum() == 0
    assert chi_square(counts[:3], 10_000 * np.array([0.35, 0.25, 0.15]) / 0.75) < 13.9  # 2 degrees: 13.8 at 0.001


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others():
    row = np.zeros(1000, dtype=np.float32)
    one = draws(row, 50, seed=1)
    assert (one == draws(row, 50, seed=1)).all()
    assert (one != draws(row, 50, seed=2)).sum() > 45
    other_choice = sampler(vocab_size=1000, seed=1, choice=1)
    assert sum(other_choice.choose(row, p) != one[p] for p in range(50)) > 45


def test_a_seed_gives_these_tokens_for_ever():
    # recorded once: a change of the hash changes every published sample and must be a decision
    assert draws(np.zeros(1000, dtype=np.float32), 6, seed=1234).tolist() == [144, 411, 695, 210, 674, 783]


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 5e-324}, {"temperature": 1e-30}])
def test_the_narrowest_settings_are_greedy_even_with_ties(settings):
    row = logits(1, 3, 2, 3, 3, 0, 0)
    wanted = {1, 3, 4} if "temperature" in settings else {1}
    assert {sampler(seed=seed, **settings).choose(row, 9) for seed in range(30)} <= wanted


def test_top_k_keeps_exactly_k_and_the_lowest_ids_among_equals():
    ids, values = truncate(np.array([0.0, -1, -1, 0, -1, -2, -1]), Sampling(top_k=4))
    assert ids.tolist() == [0, 1, 2, 3] and values.tolist() == [0, -1, -1, 0]


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    scores = np.log(np.array([0.1, 0.5, 0.05, 0.25, 0.1])) - math.log(0.5)
    edges = ((0.4, [1]), (0.49999, [1]), (0.50001, [1, 3]), (0.74999, [1, 3]), (0.8, [1, 3, 0]), (0.9, [1, 3, 0, 4]))
    for top_p, kept in edges:
        assert truncate(scores, Sampling(top_p=top_p))[0].tolist() == sorted(kept), top_p


def test_top_p_of_equals_keeps_the_lowest_ids_and_no_more_than_it_needs():
    assert truncate(np.zeros(1024), Sampling(top_p=0.25))[0].tolist() == list(range(256))


def test_top_p_counts_the_mass_that_top_k_left():
    scores = np.log(np.array([0.4, 0.3, 0.2, 0.1])) - math.log(0.4)
    assert truncate(scores, Sampling(top_p=0.55))[0].tolist() == [0, 1]
    assert truncate(scores, Sampling(top_k=2, top_p=0.55))[0].tolist() == [0]  # 0.4 / 0.7 is 0.571


def test_min_p_compares_with_the_likeliest():
    scores = np.log(np.array([0.5, 0.26, 0.24])) - math.log(0.5)
    assert truncate(scores, Sampling(min_p=0.5))[0].tolist() == [0, 1]
    assert truncate(scores, Sampling(min_p=1.0))[0].tolist() == [0]


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.integers(1, 50))
def test_the_highest_are_those_of_a_stable_sort(values, n):
    n = min(n, len(values))
    wanted = sorted(range(len(values)), key=lambda i: (-values[i], i))[:n]
    edge = values[wanted[-1]]
    assert highest(np.array(values), n, edge).tolist() == sorted(wanted)


def test_the_penalties_follow_their_formulas():
    one = sampler(history=[0, 1], repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    for token in (2, 2, 3):
        one.accept(token)
    got = one.penalise(logits(4, -4, 4, -4, 1, 0, 0))
    # prompt tokens: repetition alone; answer tokens: repetition, then presence, then frequency times the count
    assert got.tolist() == [2, -8, 2 - 0.5 - 0.5, -8 - 0.5 - 0.25, 1, 0, 0]


def test_the_bias_comes_before_the_repetition_penalty():
    one = sampler(history=[0], repetition_penalty=2.0, logit_bias=((0, 3.0), (6, -100.0)))
    assert one.penalise(logits(1, 0, 0, 0, 0, 0, 0)).tolist() == [2, 0, 0, 0, 0, 0, -100]


def test_penalties_never_write_into_the_logits_they_were_given():
    row = logits(1, 2, 3, 4, 5, 6, 7)
    sampler(history=[0], repetition_penalty=2.0, logit_bias=((1, 9.0),), temperature=0.0).choose(row, 0)
    assert row.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_stop_tokens_are_away_before_min_tokens_and_back_after():
    one = sampler(stop_ids=[6], min_tokens=2, temperature=0.0)
    row = logits(0, 0, 5, 0, 0, 0, 9)
    chosen = []
    for position in range(4):
        chosen.append(one.choose(row, position))
        one.accept(chosen[-1])
    assert chosen == [2, 2, 6, 6]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1.0}, {"repetition_penalty": 1.5}])
def test_logits_that_are_not_finite_are_an_error(bad, settings):
    with pytest.raises(EngineError, match="finite"):
        sampler(**settings).choose(logits(0, 0, bad, 0, 0, 0, 0), 3)


def test_banned_logits_of_minus_infinity_are_no_error():
    assert sampler(seed=3).choose(logits(-math.inf, -math.inf, 2, *[-math.inf] * 4), 3) == 2


def test_token_logprob_is_the_log_softmax_by_hand():
    row = logits(0, 0, math.log(2), 0, 0, 0, 0)  # probabilities 1/8, 1/8, 2/8, …
    one = token_logprob(row, 1, 3)
    assert one.token_id == 1 and one.logprob == pytest.approx(math.log(1 / 8), abs=1e-6)
    assert [token for token, _ in one.top] == [2, 0, 1]
    assert one.top[0][1] == pytest.approx(math.log(2 / 8), abs=1e-6)
    assert token_logprob(row, 1, 0).top == ()


def test_alternatives_stay_inside_the_tokenizers_vocabulary_and_the_normaliser_does_not():
    row = logits(0, 0, 0, 0, 0, 0, math.log(2))
    one = token_logprob(row, 0, 3, n_known=6)
    assert [token for token, _ in one.top] == [0, 1, 2]
    assert one.logprob == pytest.approx(math.log(1 / 8), abs=1e-6)
