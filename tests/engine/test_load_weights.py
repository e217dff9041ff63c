"""Other weights in a running engine: every packed copy, nothing of the old ones, a stated rule for who runs."""

from __future__ import annotations

import copy

import pytest
import torch

from fledge.engine.config import EngineConfig
from fledge.engine.core import Engine
from fledge.engine.request import Request, Sampling
from fledge.engine.runner import Runner, copied, weight_places
from fledge.errors import CheckpointError
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.init import initialise
from fledge.model.transformer import Transformer, build
from fledge.nn.linear import PackedLinear
from fledge.nn.native.linear import NativeLinear
from tests.engine.stub_engine import TOKENIZER, drain, joined, said

PROMPT = tuple(TOKENIZER.encode("weights that were packed and are replaced"))
NAMES = ("llama", "gpt2", "mixtral")


def model_of(name: str, seed: int) -> Transformer:
    more = {"experts": 3, "experts_per_token": 2} if name == "mixtral" else {}
    shape = ShapeConfig(name, width=32, layers=2, heads=4, context_tokens=128, vocab_size=TOKENIZER.vocab_size, **more)
    model = initialise(build(family(name).build(shape), "cpu"), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def engine_of(model: Transformer) -> Engine:
    return Engine(Runner(copied(model), 3), TOKENIZER, EngineConfig(3))


def asked(name: str = "r", n_prompt: int = len(PROMPT)) -> Request:
    sampling = Sampling(max_tokens=12, ignore_eos=True, seed=3, logprobs=0)
    return Request(name, PROMPT[:n_prompt], sampling, prompt_logprobs=True)


def figures(engine: Engine) -> list[float]:
    (done,) = engine.complete([asked()])
    return [one.logprob for one in (*done.prompt_logprobs[1:], *done.logprobs)]


@pytest.mark.parametrize("name", NAMES)
def test_new_weights_answer_as_an_engine_that_was_made_of_them(name):
    old, new = model_of(name, 1), model_of(name, 2)
    engine = engine_of(old)
    before = figures(engine)
    engine.load_weights(new.state_dict(), "2")
    after = figures(engine)
    assert after == figures(engine_of(new)) and after != before
    engine.load_weights(old.state_dict(), "3")
    assert figures(engine) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_packed_copy_that_is_forgotten_would_be_noticed(name, monkeypatch):
    """The control: each packed copy in turn, and a weight that is none."""
    old, new = model_of(name, 1), model_of(name, 2)
    expected = figures(engine_of(new))
    modules = Runner(copied(old)).model.named_modules()
    packed = [path for path, one in modules if isinstance(one, PackedLinear | NativeLinear)]
    for path in [*packed, "embedding"]:
        engine = engine_of(old)

        def forgetful(model: Transformer, path: str = path) -> dict[str, torch.Tensor]:
            places = weight_places(model)
            return {k: copy.deepcopy(v) if k.startswith(f"{path}.") else v for k, v in places.items()}

        monkeypatch.setattr("fledge.engine.runner.weight_places", forgetful)
        engine.load_weights(new.state_dict(), "2")
        monkeypatch.undo()
        if path.endswith("output") and new.output is None:
            continue  # a view of the embedding: nothing of its own
        assert figures(engine) != expected, path


def test_every_weight_of_the_model_has_a_place_and_every_place_is_in_the_packed_model():
    for name in NAMES:
        model = model_of(name, 1)
        places = weight_places(Runner(copied(model)).model)
        assert {k: v.shape for k, v in places.items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_weights_of_another_model_are_refused_and_nothing_changes(change):
    engine = engine_of(model_of("llama", 1))
    before, state = figures(engine), model_of("llama", 2).state_dict()
    name = sorted(state)[3]
    if change == "missing":
        del state[name]
    elif change == "unknown":
        state["decoder.surprise"] = torch.zeros(2)
    else:
        state[name] = state[name][:-1]
    with pytest.raises(CheckpointError, match="surprise" if change == "unknown" else name):
        engine.load_weights(state, "2")
    assert figures(engine) == before


def test_who_has_begun_is_told_and_who_only_waits_is_answered_by_the_new_weights():
    new = model_of("llama", 2)
    engine = engine_of(model_of("llama", 1))
    for i in range(4):
        engine.submit(asked(f"r{i}", 30 + i))
    engine.step()
    engine.step()
    engine.load_weights(new.state_dict(), "2")
    events = drain(engine)
    for i in range(3):
        assert joined(events, f"r{i}")[2] == "error"
    assert joined(events, "r3") == said(engine_of(new).complete([asked("r3", 33)])[0])
    assert engine.counters()["blocks_used"] == 0


def test_what_the_old_weights_computed_is_found_no_more():
    engine = engine_of(model_of("llama", 1))
    plain = Request("r", PROMPT, Sampling(max_tokens=4))
    engine.complete([plain])
    engine.load_weights(model_of("llama", 2).state_dict(), "2")
    assert engine.counters()["blocks_cached"] == 0
    engine.complete([plain])
    assert engine.counters()["prefix_hits_total"] == 0
    engine.complete([plain])
    assert engine.counters()["prefix_hits_total"] == 1  # the control
