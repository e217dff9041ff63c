"""Guesses at next tokens, beside a search through the whole document."""

from __future__ import annotations

import random

import pytest

from fledge.engine.config import EngineConfig
from fledge.engine.load import load_engine
from fledge.engine.request import Request, Sampling
from fledge.engine.speculate import PromptLookup
from fledge.errors import CheckpointError, ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import save_model
from fledge.model.init import initialise
from fledge.model.transformer import build
from fledge.text.tokenizer import byte_level
from tests.engine.stub_engine import request, stub_engine


def searched(ids, n, longest=4, shortest=2):
    """The tokens behind the latest earlier place where the most of the last tokens stand."""
    for length in range(longest, shortest - 1, -1):
        for end in range(len(ids) - 1, length - 1, -1):
            if ids[end - length : end] == ids[-length:]:
                return ids[end : end + n]
    return []


def test_a_guess_is_what_followed_the_same_tokens_last():
    lookup = PromptLookup([1, 2, 3, 9, 1, 2, 3, 8, 5, 1, 2, 3])
    assert lookup.guess(3) == [8, 5, 1]
    assert lookup.guess(1) == [8]
    lookup.add(7)
    assert lookup.guess(3) == []


def test_guesses_are_those_of_a_search():
    chance, found = random.Random(1), 0
    for _ in range(200):
        ids = [chance.randrange(4) for _ in range(chance.randrange(40))]
        lookup = PromptLookup(ids)
        for _ in range(10):
            assert lookup.guess(5) == searched(lookup.ids, 5)
            found += bool(lookup.guess(5))
            lookup.add(chance.randrange(4))
    assert found > 500  # the control: there was something to find


class Guesses:
    """A drafter whose guesses are right with some probability: the engine must not mind."""

    def __init__(self, truth, right, seed):
        self.truth, self.right, self.chance = truth, right, random.Random(seed)

    def guess(self, choices, n):
        guesses = []
        for choice in choices:
            said = self.truth[choice.request.id, choice.index]
            ahead = said[len(choice.answer) : len(choice.answer) + n]
            guesses.append([t if self.chance.random() < self.right else self.chance.randrange(250) for t in ahead])
        return guesses


REQUESTS = [
    request("greedy", "one two three", temperature=0.0, max_tokens=40),
    request("sampled", "four five", temperature=1.3, seed=5, max_tokens=33, n=3, logprobs=2),
    request("penalised", "six", temperature=0.7, repetition_penalty=1.4, frequency_penalty=0.5, min_tokens=9),
    request("stops", "seven", temperature=1.0, seed=3, max_tokens=60, stop=("e", "zz")),
    request("measured", "eight nine ten", temperature=1.0, seed=9, prompt_logprobs=True, logprobs=0),
]


def answers(drafter=None, **settings):
    engine = stub_engine(**settings)
    engine.drafter = drafter
    done = engine.complete(REQUESTS)
    assert engine.scheduler.pool.n_held == 0
    return done, engine.counters()


@pytest.mark.parametrize("right", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("settings", [{}, {"n_slots": 1}, {"n_slots": 8, "prefill_chunk": 16, "n_blocks": 14}])
def test_answers_are_the_same_with_guesses_right_or_wrong(right, settings):
    plain, _ = answers(**settings)
    truth = {(one.request_id, one.index): list(one.token_ids) for one in plain}
    guessed, counters = answers(Guesses(truth, right, seed=1), **settings)
    assert guessed == plain
    assert counters["draft_tokens_total"] > 0
    share = counters["accepted_tokens_total"] / counters["draft_tokens_total"]
    assert share > 0.9 if right == 1.0 else 0.2 < share < 0.7 if right else share < 0.05


def test_right_guesses_save_steps_and_a_drafter_that_raises_is_let_go():
    plain, before = answers()
    truth = {(one.request_id, one.index): list(one.token_ids) for one in plain}
    _, after = answers(Guesses(truth, 1.0, seed=1))
    assert after["steps_total"] < 0.6 * before["steps_total"]
    broken, _ = answers(Guesses({}, 1.0, seed=1))  # KeyError
    assert broken == plain


def test_an_answer_cut_by_its_length_is_not_guessed_beyond_it():
    done = stub_engine().complete([request("one", max_tokens=1, temperature=0.0)])
    engine = stub_engine()
    engine.drafter = Guesses({("one", 0): [1, 2, 3]}, 1.0, seed=1)
    assert engine.complete([request("one", max_tokens=1, temperature=0.0)]) == done


@pytest.mark.parametrize("draft", ["lookup", "layers:1", "same"])
def test_a_model_guesses_for_itself_and_says_the_same(draft, tmp_path):
    """Loaded as a user loads it; the compiled kernels give equal bits for any rows."""
    tokenizer = byte_level()
    config = family("llama").build(ShapeConfig(width=32, layers=2, heads=2, context_tokens=128, vocab_size=300))
    save_model(initialise(build(config, "cpu"), 3), tmp_path, tokenizer=tokenizer)
    asked = [
        Request(f"{n}", tuple(tokenizer.encode("again and again and again")), Sampling(60, temperature=heat, seed=n))
        for n, heat in enumerate((0.0, 0.2, 1.0))
    ]
    plain = load_engine(str(tmp_path), EngineConfig(n_slots=2)).complete(asked)
    name = str(tmp_path) if draft == "same" else draft
    engine = load_engine(str(tmp_path), EngineConfig(n_slots=2, draft=name))
    assert engine.complete(asked) == plain
    counters = engine.counters()
    assert counters["draft_tokens_total"] > 10
    if draft == "same":
        assert counters["accepted_tokens_total"] > 0.9 * counters["draft_tokens_total"]


@pytest.mark.parametrize("draft", ["layers:0", "layers:2", "layers:x", "nowhere"])
def test_a_draft_that_can_not_be_is_refused(draft, tmp_path):
    config = family("llama").build(ShapeConfig(width=32, layers=2, heads=2, context_tokens=128, vocab_size=300))
    save_model(initialise(build(config, "cpu"), 3), tmp_path, tokenizer=byte_level())
    with pytest.raises((ConfigError, CheckpointError), match="layers|nowhere"):
        load_engine(str(tmp_path), EngineConfig(draft=draft))
