"""Our sampling steps against transformers' logits processors, on the same logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as reference

from fledge.engine.request import Sampling
from fledge.engine.sampling import Sampler, truncate

VOCAB = 3000
PROMPT = [5, 17, 17, 2999, 0, 40]
ANSWER = [17, 8, 8, 8]


def rows() -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [(random.standard_normal(VOCAB) * scale).astype(np.float32) for scale in (0.5, 2, 4, 8)]


def ours(row: np.ndarray, **settings) -> dict[int, float]:
    """Token -> probability after every step."""
    sampling = Sampling(**settings)
    sampler = Sampler(sampling, 0, PROMPT, [1, 2], VOCAB)
    for token in ANSWER:
        sampler.accept(token)
    scores = sampler.penalise(row).astype(np.float64)
    ids, values = truncate((scores - scores.max()) / sampling.temperature, sampling)
    weights = np.exp(values)
    return dict(zip(ids.tolist(), (weights / weights.sum()).tolist(), strict=True))


def theirs(row: np.ndarray, *processors) -> dict[int, float]:
    history = torch.tensor([PROMPT + ANSWER])
    scores = torch.from_numpy(row)[None].clone()
    for processor in processors:
        scores = processor(history, scores)
    probabilities = scores.double().softmax(-1)[0]
    return {int(i): float(probabilities[i]) for i in probabilities.nonzero()[:, 0]}


def assert_equal(one: dict[int, float], two: dict[int, float]) -> None:
    one = {token: p for token, p in one.items() if p > 0}
    assert one.keys() == two.keys()
    assert max(abs(one[token] - two[token]) for token in one) < 1e-6


CASES = {
    "temperature": (dict(temperature=0.7), [reference.TemperatureLogitsWarper(0.7)]),
    "top_k": (dict(top_k=40), [reference.TopKLogitsWarper(40)]),
    "top_p": (dict(top_p=0.9), [reference.TopPLogitsWarper(0.9)]),
    "min_p": (dict(min_p=0.05), [reference.MinPLogitsWarper(0.05)]),
    "typical_p": (dict(typical_p=0.6), [reference.TypicalLogitsWarper(0.6)]),
    "typical_p, little": (dict(typical_p=0.05), [reference.TypicalLogitsWarper(0.05)]),
    "repetition": (dict(repetition_penalty=1.3), [reference.RepetitionPenaltyLogitsProcessor(1.3)]),
    "bias": (
        dict(logit_bias=((7, 4.5), (2999, -3.0))),
        [reference.SequenceBiasLogitsProcessor([[[7], 4.5], [[2999], -3.0]])],
    ),
    "min_tokens": (
        dict(min_tokens=8),
        [reference.MinNewTokensLengthLogitsProcessor(len(PROMPT), 8, [1, 2], device="cpu")],
    ),
    "all": (
        dict(
            logit_bias=((7, 4.5), (17, 3.0)),
            repetition_penalty=1.2,
            min_tokens=8,
            temperature=1.4,
            top_k=200,
            top_p=0.8,
            min_p=0.02,
            typical_p=0.9,
        ),
        [
            reference.SequenceBiasLogitsProcessor([[[7], 4.5], [[17], 3.0]]),
            reference.RepetitionPenaltyLogitsProcessor(1.2),
            reference.MinNewTokensLengthLogitsProcessor(len(PROMPT), 8, [1, 2], device="cpu"),
            reference.TemperatureLogitsWarper(1.4),
            reference.TopKLogitsWarper(200),
            reference.TopPLogitsWarper(0.8),
            reference.MinPLogitsWarper(0.02),
            reference.TypicalLogitsWarper(0.9),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_step_gives_the_distribution_of_transformers(name):
    settings, processors = CASES[name]
    for row in rows():
        assert_equal(ours(row, **settings), theirs(row, *processors))


def test_another_order_gives_another_distribution():
    # the control: temperature after top-p and min-p is not what we do
    settings, processors = CASES["all"]
    swapped = [*processors[:3], *processors[4:], processors[3]]
    with pytest.raises(AssertionError):
        for row in rows():
            assert_equal(ours(row, **settings), theirs(row, *swapped))


def test_log_probabilities_are_torchs_log_softmax():
    from fledge.engine.sampling import token_logprob

    for row in rows():
        expected = torch.from_numpy(row).log_softmax(0)
        one = token_logprob(row, 123, 20)
        assert one.logprob == pytest.approx(float(expected[123]), abs=2e-6)
        values, ids = expected.topk(20)
        assert [token for token, _ in one.top] == ids.tolist()
        assert [value for _, value in one.top] == pytest.approx(values.tolist(), abs=2e-6)
