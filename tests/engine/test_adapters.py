"""Many adapters beside one base: each answer is its merged model's, shared with no other, through load and unload."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fledge.compress.quantize import quantize, uniform
from fledge.engine import scheduler
from fledge.engine.config import EngineConfig
from fledge.engine.core import Engine
from fledge.engine.load import load_engine
from fledge.engine.loaded import load
from fledge.engine.request import BeamSearch, Request, Sampling
from fledge.engine.runner import Runner
from fledge.engine.speculate import LookupDrafter
from fledge.errors import CheckpointError, ConfigError, RequestError
from fledge.model.folder import load_model, save_model
from fledge.model.quantization import INT8
from fledge.nn.native.library import build
from fledge.text.tokenizer import byte_level
from fledge.tune.attach import tune
from fledge.tune.config import TuneConfig
from fledge.tune.folder import save_adapter
from tests.compress.tiny import tiny
from tests.engine.stub_engine import drain, joined
from tests.tune.theirs import random_adapters

HOWS = {
    "lora": TuneConfig("lora", 4, 16),
    "dora": TuneConfig("lora", 3, 8, dora=True, targets=("ffn.down", "attention.qkv.q")),
    "ia3": TuneConfig("ia3"),
}
PROMPT = tuple(byte_level().encode("the cat sat on a mat and the cat sat"))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base and three adapters beside it."""
    build()
    folder = tmp_path_factory.mktemp("adapters")
    save_model(tiny("llama"), folder / "base", byte_level())
    for seed, (name, how) in enumerate(HOWS.items()):
        write(folder / "base", folder / name, how, seed)
    return folder


def write(base: Path, folder: Path, how: TuneConfig, seed: int) -> None:
    tuned = random_adapters(tune(load_model(base), how, seed), seed)
    save_adapter(tuned, folder, how, base, byte_level())


def engine_beside(place: Path, names: tuple[str, ...] = (), drafter=None, **config: object) -> Engine:
    n_slots = int(config.setdefault("n_slots", 4))  # type: ignore[call-overload]
    runner = Runner(load_model(place / "base"), n_slots, folder=place / "base")
    engine = Engine(runner, byte_level(), EngineConfig(**config), drafter=drafter)  # type: ignore[arg-type]
    for name in names:
        engine.load_adapter(name, str(place / name))
    return engine


def asked(name: str, adapter: str = "", prompt: tuple[int, ...] = PROMPT, **settings: object) -> Request:
    sampling = Sampling(**{"max_tokens": 12, "ignore_eos": True, "seed": 7, **settings})
    return Request(name, prompt, sampling, adapter=adapter)


def merged_answer(place: Path, name: str, **settings: object) -> tuple[int, ...]:
    """The tokens of the folder served by itself: the adapter in the weights."""
    model = load(place / (name or "base"))
    return model.complete(PROMPT, **{"max_tokens": 12, "ignore_eos": True, "seed": 7, **settings})[0].token_ids


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_answer_of_a_mixed_batch_is_that_of_its_merged_model(place, temperature):
    engine = engine_beside(place, tuple(HOWS))
    names = ["", *HOWS]
    answers = engine.complete([asked(f"r{n}", n, temperature=temperature) for n in names])
    wanted = [merged_answer(place, name, temperature=temperature) for name in names]
    assert [one.token_ids for one in answers] == wanted
    assert len(set(wanted)) == len(wanted)  # the control: they differ


def test_a_beam_search_is_of_its_adapter_alone(place):
    engine, names = engine_beside(place, tuple(HOWS)), ["", *HOWS]
    plain = Sampling(8, n=2)
    searches = [replace(asked(f"s{name}", name), sampling=plain, search=BeamSearch(3)) for name in names]
    found = engine.complete([*searches, asked("other", "lora")])
    wanted = [one for name in names for one in load_engine(str(place / (name or "base"))).complete(
        [replace(asked("s"), sampling=plain, search=BeamSearch(3))])]  # fmt: skip
    assert [one.token_ids for one in found[:-1]] == [one.token_ids for one in wanted]
    assert [one.score for one in found[:-1]] == pytest.approx([one.score for one in wanted], abs=1e-4)
    assert len({one.token_ids for one in wanted[::2]}) == len(names)  # the control: they differ
    engine.unload_adapter("ia3")
    assert not engine.shelf.holders.total()


def test_adapters_share_no_blocks_of_cache_with_the_base_or_each_other(place):
    engine = engine_beside(place, ("lora", "ia3"))
    for name in ("", "lora", "ia3"):
        engine.complete([asked("r", name)])
        assert engine.counters()["prefix_hits_total"] == 0
    engine.complete([asked("r", "lora")])
    assert engine.counters()["prefix_hits_total"] == 1


def test_an_adapter_that_keys_forget_would_be_noticed(place, monkeypatch):
    monkeypatch.setattr(scheduler.Scheduler, "facts", lambda self, choice: (choice.request.tenant, self.version, ""))
    with pytest.raises(AssertionError):
        test_adapters_share_no_blocks_of_cache_with_the_base_or_each_other(place)


def test_guesses_change_no_answer_of_an_adapter(place):
    plain = engine_beside(place, ("lora",)).complete([asked("r", "lora", temperature=0, max_tokens=24)])
    guessing = engine_beside(place, ("lora",), LookupDrafter(), draft="lookup", draft_tokens=4)
    (answer,) = guessing.complete([asked("r", "lora", temperature=0, max_tokens=24)])
    assert answer.token_ids == plain[0].token_ids and guessing.totals["draft_tokens"] > 0


def test_an_answer_that_began_ends_with_its_adapter_whatever_is_loaded_meanwhile(place, tmp_path):
    write(place / "base", tmp_path / "new", HOWS["lora"], 99)
    old, new = merged_answer(place, "lora"), merged_answer(tmp_path, "new")
    engine = engine_beside(place, ("lora",))
    engine.submit(asked("begun", "lora"))
    engine.step()
    engine.load_adapter("lora", str(tmp_path / "new"))
    assert len(engine.runner.adapters.known) == 2
    engine.submit(asked("next", "lora"))
    events = drain(engine)
    assert joined(events, "begun") != joined(events, "next")
    tokens = {name: tuple(t for e in events if e.request_id == name for t in e.token_ids) for name in ("begun", "next")}
    assert tokens["next"] == new and old[len(old) - len(tokens["begun"]) :] == tokens["begun"]
    assert len(engine.runner.adapters.known) == 1  # the old one went with its last answer


def test_an_unloaded_adapter_is_refused_and_forgotten_with_its_last_answer(place):
    engine = engine_beside(place, ("lora",))
    engine.submit(asked("begun", "lora"))
    engine.step()
    engine.unload_adapter("lora")
    with pytest.raises(RequestError, match="none is loaded") as refused:
        engine.submit(asked("late", "lora"))
    assert (refused.value.param, refused.value.code) == ("model", "model_not_found")
    assert drain(engine)[-1].finish_reason == "length"
    assert not engine.runner.adapters.known and not engine.shelf.holders
    with pytest.raises(RequestError, match="expected the name of one that is loaded"):
        engine.unload_adapter("lora")


def test_what_cannot_stand_beside_the_base_changes_nothing(place, tmp_path):
    engine = engine_beside(place, ("lora",))
    save_model(tiny("llama", noise=0.2), tmp_path / "base", byte_level())
    write(tmp_path / "base", tmp_path / "other", HOWS["lora"], 1)
    write(place / "base", tmp_path / "prefix", TuneConfig("prefix", virtual_tokens=3), 1)
    for folder, kind, message in (
        (tmp_path / "other", CheckpointError, "trained beside other weights"),
        (tmp_path / "prefix", ConfigError, "got virtual tokens"),
        (tmp_path / "nothing", CheckpointError, "expected an adapter folder"),
    ):
        with pytest.raises(kind, match=message):
            engine.load_adapter("lora", str(folder))
    (answer,) = engine.complete([asked("r", "lora")])
    assert answer.token_ids == merged_answer(place, "lora")
    with pytest.raises(CheckpointError, match="unload those first"):
        engine.load_weights({}, "next")


def test_lora_beside_whole_numbers_is_what_its_folder_gives(tmp_path):
    build()
    model = tiny("llama")
    quantize(model, uniform(model, INT8))
    save_model(model, tmp_path / "base", byte_level())
    write(tmp_path / "base", tmp_path / "lora", HOWS["lora"], 1)
    engine = engine_beside(tmp_path, ("lora",))
    assert engine.runner.compiled is not None
    answers = engine.complete([asked("a"), asked("b", "lora")])
    assert [one.token_ids for one in answers] == [merged_answer(tmp_path, ""), merged_answer(tmp_path, "lora")]
    assert answers[0].token_ids != answers[1].token_ids  # the control


def test_a_loaded_model_writes_and_talks_with_an_adapter(place):
    model, alone = load(place / "base"), load(place / "lora")
    model.load_adapter("tuned", place / "lora")
    asked = {"max_tokens": 12, "temperature": 0}
    assert model.chat("say 2", adapter="tuned", **asked) == alone.chat("say 2", **asked)
    assert model.generate("the cat", adapter="tuned", **asked) == alone.generate("the cat", **asked)
    assert "".join(model.stream("the cat", adapter="tuned", **asked)) == alone.generate("the cat", **asked)
    assert model.chat("say 2", **asked) == load(place / "base").chat("say 2", **asked) != alone.chat("say 2", **asked)
    model.unload_adapter("tuned")
    with pytest.raises(RequestError, match="none is loaded"):
        model.generate("the cat", adapter="tuned", **asked)
    with pytest.raises(ConfigError, match="expected a base that is a model folder, got one that has an adapter"):
        load(place / "lora").load_adapter("more", place / "lora")
