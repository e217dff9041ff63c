"""The engine on a real model: what it says is what one full pass over the finished text says."""

from __future__ import annotations

import pytest
import torch

from fledge.batch import OneDocument, one_document
from fledge.engine.config import EngineConfig
from fledge.engine.core import Engine
from fledge.engine.request import Request, Sampling
from fledge.engine.runner import Runner, copied
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.init import initialise
from fledge.model.transformer import Transformer, build
from fledge.text.tokenizer import byte_level
from tests.engine.stub_engine import drain, joined, said

TOKENIZER = byte_level()
PROMPT = tuple(TOKENIZER.encode("The engine and one full pass agree."))


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request) -> Transformer:
    shape = ShapeConfig(request.param, width=32, layers=2, heads=4, context_tokens=128, vocab_size=TOKENIZER.vocab_size)
    model = initialise(build(family(request.param).build(shape), "cpu"), 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    return model.eval()


def engine_of(model: Transformer, n_slots: int = 4, prefill_chunk: int = 512) -> Engine:
    return Engine(Runner(copied(model), n_slots), TOKENIZER, EngineConfig(n_slots, prefill_chunk))


def asked(name: str, **settings) -> Request:
    return Request(name, PROMPT, Sampling(**{"max_tokens": 40, "ignore_eos": True, **settings}), prompt_logprobs=True)


@torch.no_grad()
def full_pass(model: Transformer, ids: tuple[int, ...]) -> torch.Tensor:
    return model(one_document(torch.tensor([ids])), OneDocument())[0].log_softmax(-1)


@pytest.mark.parametrize("prefill_chunk", [7, 512])
def test_log_probabilities_are_those_of_one_full_pass(model, prefill_chunk):
    request = asked("r", logprobs=3, seed=5, temperature=0.8)
    (completion,) = engine_of(model, prefill_chunk=prefill_chunk).complete([request])
    ids = PROMPT + completion.token_ids
    expected = full_pass(model, ids)
    got = [*completion.prompt_logprobs[1:], *completion.logprobs]
    assert len(got) == len(ids) - 1
    for i, one in enumerate(got):
        assert one.token_id == ids[i + 1]
        assert one.logprob == pytest.approx(float(expected[i, one.token_id]), abs=1e-4)
        assert all(value == pytest.approx(float(expected[i, token]), abs=1e-4) for token, value in one.top)
    shifted = [abs(one.logprob - float(expected[i + 1, one.token_id])) for i, one in enumerate(got[:-1])]
    assert max(shifted) > 1  # the control: logits of the wrong place


def test_greedy_takes_the_argmax_of_one_full_pass(model):
    (completion,) = engine_of(model).complete([asked("r", temperature=0.0)])
    expected = full_pass(model, PROMPT + completion.token_ids)[len(PROMPT) - 1 : -1]
    assert expected.argmax(-1).tolist() == list(completion.token_ids)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"seed": 3}, {"seed": 4, "top_p": 0.9, "top_k": 50}])
def test_company_changes_no_token_of_a_real_model(model, settings):
    alone = said(engine_of(model, n_slots=1).complete([asked("r", **settings)])[0])
    engine = engine_of(model, prefill_chunk=16)
    for i in range(3):
        engine.submit(Request(f"c{i}", PROMPT[: 5 + 9 * i], Sampling(max_tokens=20 + i, seed=i)))
    events = engine.step() + engine.step()
    engine.submit(asked("r", **settings))
    events += drain(engine)
    assert joined(events, "r") == alone


def test_a_slot_holds_nothing_of_its_last_answer(model):
    engine = engine_of(model, n_slots=1)
    fresh = said(engine.complete([asked("r", seed=8)])[0])
    engine.complete([Request("other", PROMPT[::-1] * 2, Sampling(max_tokens=30))])
    assert said(engine.complete([asked("r", seed=8)])[0]) == fresh
