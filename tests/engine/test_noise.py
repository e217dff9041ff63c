"""The counter-based noise behind a seed's meaning."""

from __future__ import annotations

import numpy as np
import pytest

from fledge.engine.noise import contenders, gumbel, mix, position_key, sequence_key, uniform
from fledge.nn.native import library


def test_mix_is_the_published_splitmix64():
    # the first outputs of SplitMix64 from state 1234567 (Vigna's reference implementation)
    golden, state, outputs = 0x9E3779B97F4A7C15, 1234567, []
    for _ in range(5):
        state = (state + golden) % 2**64
        outputs.append(mix(state))
    assert outputs == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_the_vector_form_gives_the_words_of_the_scalar_form():
    key, ids = sequence_key(7, 0), np.array([0, 1, 2, 31_999])
    words = [mix((key + int(i) * 0x9E3779B97F4A7C15) % 2**64) >> 11 for i in ids]
    assert uniform(key, ids).tolist() == [max(word, 0.5) * 2.0**-53 for word in words]


def test_uniform_values_are_inside_the_open_interval_and_flat():
    values = np.concatenate([uniform(position_key(1, p), np.arange(1000)) for p in range(100)])
    assert values.min() > 0.0 and values.max() < 1.0
    counts = np.histogram(values, bins=100, range=(0, 1))[0]
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 160  # 99 degrees of freedom: 148 at 0.001; deterministic, so it can't flicker


def test_an_outcome_of_the_hash_that_is_zero_gives_finite_noise(monkeypatch):
    ids = np.zeros(1, dtype=np.int64)
    assert uniform(0, ids)[0] == 2.0**-54  # the word 0 maps to itself
    assert np.isfinite(gumbel(0, ids)).all()


@pytest.mark.parametrize("other", [(8, 0, 5), (7, 1, 5), (7, 0, 6), (-7, 0, 5), (2**63 - 1, 0, 5)])
def test_seed_choice_and_position_each_give_unrelated_noise(other):
    def noise(seed, choice, position):
        return gumbel(position_key(sequence_key(seed, choice), position), np.arange(5000))

    one, two = noise(7, 0, 5), noise(*other)
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.05
    assert np.corrcoef(one, noise(7, 0, 5))[0, 1] > 0.999  # the control


def test_neighbouring_positions_share_no_shifted_noise():
    # keys that were consecutive elements of one sequence would give position p+1 the noise of p, one id further
    one = gumbel(position_key(sequence_key(7, 0), 5), np.arange(5000))
    for position in (4, 6):
        two = gumbel(position_key(sequence_key(7, 0), position), np.arange(5000))
        for shift in (1, 2):
            assert abs(np.corrcoef(one[shift:], two[:-shift])[0, 1]) < 0.05
            assert abs(np.corrcoef(one[:-shift], two[shift:])[0, 1]) < 0.05


def test_gumbel_noise_has_the_gumbel_mean_and_variance():
    values = np.concatenate([gumbel(position_key(2, p), np.arange(1000)) for p in range(200)])
    assert abs(values.mean() - 0.5772157) < 0.01
    assert abs(values.var() - np.pi**2 / 6) < 0.03


def test_the_winner_is_always_among_the_contenders():
    assert library.build() is not None, "a C++ compiler is needed here"
    chance, kept = np.random.default_rng(0), 0.0
    for number in range(600):
        n = int(chance.choice([1, 5, 100, 1000, 32_000] if number < 30 else [1000]))
        scores = (chance.normal(size=n) * chance.choice([0, 0.1, 1, 5, 30])).astype(np.float32)
        scores[chance.random(n) < chance.choice([0, 0.3])] = -np.inf
        scores[chance.integers(n)] = 0
        temperature, best, key = float(chance.choice([1e-100, 0.3, 1, 2, 100])), int(scores.argmax()), number
        ids = contenders(scores, best, temperature, key)
        values = (scores.astype(np.float64) - float(scores[best])) / temperature
        winner = int((values + gumbel(key, np.arange(n))).argmax())
        assert ids[(values[ids] + gumbel(key, ids)).argmax()] == winner
        kept += len(ids) / n
    assert kept / 600 < 0.1  # the control: not all are kept


def test_without_the_kernels_all_contend(monkeypatch):
    monkeypatch.setenv("FLEDGE_NATIVE", "0")
    assert len(contenders(np.zeros(50, np.float32), 0, 1.0, 1)) == 50
