"""Guesses that chance accepts: answers over many seeds are distributed as the model says, to a chi-square test."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fledge.engine import sampling as sampling_module
from fledge.engine.config import EngineConfig
from fledge.engine.core import Engine
from fledge.engine.rejection import Odds, residual
from fledge.engine.request import Request, Sampling
from fledge.engine.speculate import DraftModel, LookupDrafter
from fledge.engine.stub import StubRunner
from fledge.errors import ConfigError
from tests.engine.stub_engine import TOKENIZER

V, LENGTH, SEEDS = 3, 4, 1500
THEIRS = np.log([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.3, 0.6, 0.1]])
GUESSED = np.log([[0.2, 0.2, 0.6], [0.6, 0.2, 0.2], [0.2, 0.4, 0.4]])
SETTINGS = [{}, {"temperature": 0.6}, {"temperature": 1.5, "top_k": 2}]


class Table(StubRunner):
    """A model of three words, whose next one depends on the last alone."""

    def __init__(self, table):
        super().__init__(V, n_slots=4, context_tokens=32)
        self.table = table.astype(np.float32)

    def logits_after(self, context):
        return self.table[context[-1]]


def answers(drafter, accept, n=SEEDS, **settings):
    """(the answers of seeds 0… to the prompt 0, share of guesses accepted)."""
    config = EngineConfig(n_slots=4, max_waiting=n, draft_accept=accept, draft_tokens=2)
    engine = Engine(Table(THEIRS), TOKENIZER, config, drafter=drafter)
    asked = [Request(f"{n}", (0, 1, 0), Sampling(LENGTH, seed=n, **settings)) for n in range(n)]
    done = engine.complete(asked)
    return [one.token_ids for one in done], engine.totals["accepted_tokens"] / max(1, engine.totals["draft_tokens"])


def law(temperature=1.0, top_k=V):
    """The probability of each answer, from the table itself."""
    rows = np.exp(THEIRS / temperature)
    for row in rows:
        row[np.argsort(row)[: V - top_k]] = 0.0
    rows /= rows.sum(1, keepdims=True)
    words = itertools.product(range(V), repeat=LENGTH)
    return {ids: math.prod(rows[a, b] for a, b in itertools.pairwise((0, *ids))) for ids in words}


def excess(found, expected):
    """Chi-square's distance from its mean, in standard deviations; answers seldom expected count as one."""
    n, cells, seldom = len(found), [], [0.0, 0.0]
    for ids, p in expected.items():
        count = sum(one == ids for one in found)
        if n * p < 5:
            seldom = [seldom[0] + count, seldom[1] + n * p]
        else:
            cells.append((count, n * p))
    if seldom[1] > 1:
        cells.append(tuple(seldom))
    elif seldom[0] > 10:
        return math.inf
    chi = sum((count - mean) ** 2 / mean for count, mean in cells)
    free = len(cells) - 1
    return (chi - free) / math.sqrt(2 * free)


def drafter_of(kind):
    return LookupDrafter() if kind == "lookup" else DraftModel(Table(GUESSED), rejection=True)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", ["model", "lookup"])
def test_answers_are_distributed_as_the_model_says(kind, settings):
    found, accepted = answers(drafter_of(kind), "rejection", **settings)
    assert excess(found, law(**settings)) < 4
    assert 0.1 < accepted < 0.95


def test_without_the_residual_they_are_not(monkeypatch):
    """The control: a rejected guess is followed by a plain sample."""
    monkeypatch.setattr(sampling_module, "residual", lambda p, q: Odds(np.arange(V), p))
    assert excess(answers(drafter_of("model"), "rejection")[0], law()) > 7


def test_with_the_odds_of_another_draft_they_are_not(monkeypatch):
    """The control: guesses that were drawn by one distribution are checked by another."""

    def token(self, choice, logits, position):
        choice.odds.append(Odds(np.arange(V), np.full(V, 1 / V)))
        return choice.sampler.guess(logits, position)[0]

    monkeypatch.setattr(DraftModel, "token", token)
    assert excess(answers(drafter_of("model"), "rejection")[0], law()) > 7


def test_as_many_are_accepted_as_the_distributions_share_and_more_than_are_equal():
    """A guess that is checked is accepted with probability Σ min(p, q)."""
    p, q = np.exp(THEIRS), np.exp(GUESSED)
    shared = np.minimum(p, q).sum(1)
    _, chance = answers(drafter_of("model"), "rejection")
    _, equal = answers(DraftModel(Table(GUESSED)), "equal")
    assert shared.min() - 0.03 < chance < shared.max() and equal < chance - 0.02


def test_equal_is_the_default_and_greedy_answers_are_the_same_either_way():
    plain = [answers(None, "equal", 200, temperature=heat)[0] for heat in (0.0, 1.0)]
    assert answers(DraftModel(Table(GUESSED)), EngineConfig().draft_accept, 200)[0] == plain[1]
    assert answers(drafter_of("model"), "rejection", 200, temperature=0.0)[0] == plain[0]
    assert answers(drafter_of("model"), "rejection", 200)[0] != plain[1]


def test_a_residual_is_what_the_guess_left_over():
    rest = residual(np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6]))
    assert rest.ids.tolist() == [0, 1] and rest.p == pytest.approx([0.75, 0.25])
    same = residual(np.array([0.5, 0.5]), np.array([0.5, 0.5]))
    assert same.p.tolist() == [0.5, 0.5]


def test_what_goes_not_together_is_refused():
    with pytest.raises(ConfigError, match="expected equal or rejection, got 'always'"):
        EngineConfig(draft_accept="always")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rejection does not go with deterministic"):
        EngineConfig(draft_accept="rejection", deterministic=True)
