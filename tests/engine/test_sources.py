"""A request's source: encoded once, kept while an answer reads it, for one tenant; and what can't be asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fledge.batch import OneDocument, one_document
from fledge.cli.main import main
from fledge.data.denoise import prefix_split
from fledge.engine.config import EngineConfig
from fledge.engine.core import Engine
from fledge.engine.load import load_drafter
from fledge.engine.loaded import Model, load
from fledge.engine.request import Event, Request, Sampling
from fledge.engine.runner import Runner, copied
from fledge.engine.source import framed
from fledge.errors import ConfigError, RequestError
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import save_model
from fledge.model.init import initialise
from fledge.model.transformer import Transformer, build
from fledge.recipes.objective import started
from fledge.text.tokenizer import Tokenizer, from_text
from tests.engine.stub_engine import TOKENIZER, drain, joined, stub_engine

CONTEXT = 48
SOURCE = tuple(TOKENIZER.encode("Read this, then write."))
OTHER = tuple(TOKENIZER.encode("Another text."))


def tiny(seed: int = 5) -> Transformer:
    """A random T5 whose every parameter is drawn."""
    shape = ShapeConfig("t5", width=32, layers=2, heads=4, context_tokens=CONTEXT, vocab_size=TOKENIZER.vocab_size)
    model = initialise(build(family("t5").build(shape), "cpu"), seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.6)
    return model.eval()


def engine_of(n_slots: int = 3, **config: object) -> Engine:
    return Engine(Runner(copied(tiny()), n_slots), TOKENIZER, EngineConfig(n_slots=n_slots, **config))


def asked(name: str, source: tuple[int, ...] = SOURCE, tenant: str = "", **settings: object) -> Request:
    sampling = Sampling(**{"max_tokens": 8, "ignore_eos": True, **settings})
    return Request(name, (), sampling, tenant, source_ids=source)


def encoded(engine: Engine) -> list[int]:
    """Notes the length of every source that the encoder reads."""
    lengths: list[int] = []
    model = engine.runner.model
    model.encoder.register_forward_hook(lambda module, given, out: lengths.append(out.shape[1]))
    return lengths


def test_a_source_is_encoded_once_for_the_answers_that_read_it_and_kept_no_longer():
    engine = engine_of(4)
    lengths = encoded(engine)
    for request in (asked("a", n=2), asked("b", seed=3), asked("c", OTHER)):
        engine.submit(request)
    engine.step()
    assert lengths == [len(SOURCE), len(OTHER)] and len(engine.runner.cache.sources) == 2
    engine.cancel("a")
    engine.step()
    assert len(engine.runner.cache.sources) == 2  # another still reads it
    engine.cancel("b")
    assert len(engine.runner.cache.sources) == 1
    drain(engine)
    assert not engine.runner.cache.sources and not engine.scheduler.readers.counts
    assert engine.counters()["prompt_tokens_total"] == 2 * len(SOURCE) + len(OTHER)


def test_tenants_share_no_source():
    engine = engine_of()
    lengths = encoded(engine)
    engine.submit(asked("a", tenant="one"))
    engine.submit(asked("b", tenant="two"))
    drain(engine)
    assert lengths == [len(SOURCE)] * 2


def test_requests_may_come_at_any_time_and_sources_that_wait_for_the_encoder_take_turns():
    engine = engine_of(3, prefill_chunk=len(SOURCE) + 1)
    alone = {
        name: engine_of(1).complete([asked(name, ids)])[0].token_ids for name, ids in (("a", SOURCE), ("c", OTHER))
    }
    lengths = encoded(engine)
    events: list[Event] = []
    engine.submit(asked("a"))
    events += engine.step()
    for request in (asked("b", SOURCE[1:]), asked("c", OTHER)):
        engine.submit(request)
    for n_read in (2, 3):  # one source a step
        events += engine.step()
        assert len(lengths) == n_read
    events += drain(engine)
    assert {name: joined(events, name)[1] for name in "ac"} == alone


def test_a_tenant_that_gets_a_place_of_a_flood_shares_no_block_with_answers_to_another_source():
    prompt = tuple(TOKENIZER.encode("begins with more than a block"))
    mine = replace(asked("mine", OTHER, "other", logprobs=0), prompt_ids=prompt)
    (alone,) = engine_of().complete([mine])
    engine = engine_of(4)
    for number in range(4):
        engine.submit(asked(f"flood{number}", tenant="flood", max_tokens=40))
    engine.step()
    engine.submit(replace(asked("first", tenant="other"), prompt_ids=prompt))
    for _ in range(2):
        engine.step()
    for again in range(2):  # beside answers to another source, then where its own blocks are known
        engine.submit(replace(mine, id=f"mine{again}"))
        events = drain_of(engine, f"mine{again}")
        assert joined(events, f"mine{again}")[1] == alone.token_ids
        assert [one.logprob for event in events for one in event.logprobs] == pytest.approx(
            [one.logprob for one in alone.logprobs], abs=1e-4
        )
    assert engine.counters()["preemptions_total"] >= 2 and engine.counters()["prefix_hits_total"] > 0


def drain_of(engine: Engine, name: str) -> list[Event]:
    """The events of one request, up to its end."""
    events: list[Event] = []
    while engine.knows(name):
        events += [event for event in engine.step() if event.request_id == name]
    return events


def test_a_source_that_cannot_be_encoded_ends_its_request_alone(monkeypatch, capsys):
    engine = engine_of()
    right = Transformer.keep_source

    def keep(self: Transformer, cache: object, name: bytes, ids: torch.Tensor) -> None:
        if len(ids) == len(OTHER):
            raise MemoryError
        right(self, cache, name, ids)

    monkeypatch.setattr(Transformer, "keep_source", keep)
    for request in (asked("a"), asked("b", OTHER)):
        engine.submit(request)
    events = drain(engine)
    assert joined(events, "a")[2] == "length" and joined(events, "b")[2] == "error"
    assert "MemoryError" in capsys.readouterr().err and not engine.runner.cache.sources


def test_stops_choices_and_seeds_are_as_of_any_answer():
    engine = engine_of()
    (whole,) = engine.complete([asked("a", seed=2, max_tokens=20)])
    stop = next(text for text in (whole.text[i : i + 2] for i in range(2, 12)) if text.isprintable())
    (cut,) = engine.complete([asked("a", seed=2, max_tokens=20, stop=(stop,))])
    assert cut.finish_reason == "stop" and cut.text == whole.text[: whole.text.index(stop)]
    two = engine.complete([asked("a", seed=2, max_tokens=20, n=2)])
    assert two[0].token_ids == whole.token_ids != two[1].token_ids
    rest = replace(asked("a", seed=2, max_tokens=12), prompt_ids=(engine.runner.start_id, *whole.token_ids[:8]))
    assert engine.complete([rest])[0].token_ids == whole.token_ids[8:]


def test_other_weights_read_a_source_anew():
    engine, other = engine_of(), tiny(6)
    (before,) = engine.complete([asked("a", temperature=0.0)])
    engine.submit(asked("b"))
    engine.step()
    engine.load_weights(other.state_dict(), "other")
    drain(engine)
    assert not engine.runner.cache.sources
    expected = Engine(Runner(copied(other), 1), TOKENIZER).complete([asked("a", temperature=0.0)])[0]
    (after,) = engine.complete([asked("a", temperature=0.0)])
    assert after.token_ids == expected.token_ids != before.token_ids


def test_what_cannot_be_asked_is_refused_by_name():
    engine = engine_of()
    for request, says in (
        (Request("r", (1, 2)), "source: expected token ids for the encoder, got none"),
        (asked("r", (TOKENIZER.vocab_size,)), "source: expected token ids in"),
        (asked("r", (1,) * (CONTEXT + 1)), f"a source of at most {CONTEXT} tokens, got {CONTEXT + 1}"),
        (asked("r", max_tokens=CONTEXT), f"at most {CONTEXT} tokens, got {CONTEXT + 1}"),
    ):
        with pytest.raises(RequestError, match=says):
            engine.submit(request)
    engine.complete([asked("r", (1,) * CONTEXT, max_tokens=CONTEXT - 1)])  # the control
    with pytest.raises(RequestError, match="this model is a decoder alone"):
        stub_engine().submit(replace(asked("r"), prompt_ids=(1,)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_model(tiny(), path, TOKENIZER)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder)


def test_a_tokenizer_s_own_frame_stands_around_a_source_and_where_it_has_none_eos_ends_it(folder):
    assert framed(TOKENIZER, SOURCE) == (*SOURCE, TOKENIZER.eos_id)
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["post_processor"] = {"type": "RobertaProcessing", "cls": ["<a>", 7], "sep": ["<b>", 9]}
    own: Tokenizer = from_text(json.dumps(tree))
    assert framed(own, SOURCE) == (7, *SOURCE, 9)


def test_a_source_is_served_as_training_reads_it():
    ids = np.array(SOURCE)
    source, target = prefix_split(TOKENIZER)(ids, 1, 2)
    n_read = len(ids) + 1 - len(target)
    assert framed(TOKENIZER, SOURCE[:n_read]) == tuple(source.tolist()) != SOURCE[:n_read]
    start = started(tiny().config).special_ids["start"]
    runner = Runner(copied(tiny()), 1)
    assert runner.start_id == start
    batch = (one_document(torch.tensor([[start, *target[:-1].tolist()]])), OneDocument())
    read = (one_document(torch.tensor(source[None])), OneDocument())
    with torch.no_grad():
        loss = tiny().loss_sum(*batch, torch.tensor(target[None]), torch.ones(1, len(target)), read)
    measured = replace(asked("r", framed(TOKENIZER, SOURCE[:n_read]), max_tokens=1), prompt_logprobs=True)
    prompt = (start, *target.tolist())
    (done,) = Engine(runner, TOKENIZER).complete([replace(measured, prompt_ids=prompt)])
    assert -sum(one.logprob for one in done.prompt_logprobs[1:]) == pytest.approx(float(loss), rel=1e-5)


def test_a_loaded_model_answers_a_text(model):
    said = model.generate("Read this, then write.", max_tokens=8, ignore_eos=True, seed=4)
    source = (*SOURCE, TOKENIZER.eos_id)
    assert said == engine_of(1).complete([asked("a", source, seed=4)])[0].text
    assert "".join(model.stream("Read this, then write.", max_tokens=8, ignore_eos=True, seed=4)) == said
    assert said != model.generate("Another text.", max_tokens=8, ignore_eos=True, seed=4)
    with pytest.raises(ConfigError, match="an encoder-decoder has no chat format"):
        model.chat("Hello")


def test_generate_prints_the_answer_alone_and_counts_the_source(folder, model, capfd):
    words = ["generate", str(folder), "--prompt", "Read this.", "--max-tokens", "8", "--seed", "4", "--ignore-eos"]
    assert main(words) == 0
    said = model.generate("Read this.", max_tokens=8, seed=4, ignore_eos=True)
    assert capfd.readouterr().out == said + "\n"
    assert main([*words, "--json", "--logprobs", "1"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["prompt_tokens"] == len(TOKENIZER.encode("Read this.")) + 1
    assert result["choices"][0]["text"] == said and len(result["choices"][0]["logprobs"]) == 8
    beams = ["generate", str(folder), "--prompt", "Read this.", "--max-tokens", "8", "--beams", "3", "--json"]
    assert main(beams) == 0
    assert json.loads(capfd.readouterr().out)["choices"][0]["score"] < 0


def test_what_a_source_has_no_meaning_for_is_refused(folder, capfd):
    base = ["generate", str(folder), "--prompt", "Hi", "--max-tokens", "4"]
    for words, says in (
        ([*base, "--prompt-logprobs", "--json"], "prompt_logprobs: expected a decoder alone"),
        (
            [*base, "--penalty-alpha", "0.6", "--top-k", "4"],
            "penalty_alpha: expected a decoder, got an encoder-decoder",
        ),
        ([*base[:3], "x" * 100, *base[4:]], f"a source of at most {CONTEXT} tokens, got 101"),
        (["chat", str(folder)], "an encoder-decoder has no chat format; fledge generate"),
    ):
        assert main(words) in (1, 2)
        assert says in capfd.readouterr().err
    runner = Runner(copied(tiny()), 1)
    with pytest.raises(ConfigError, match="expected a decoder alone"):
        load_drafter(EngineConfig(draft=str(folder)), runner, TOKENIZER)
