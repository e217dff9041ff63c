"""However many processes share a model, and however: the tokens of one process's engine, and its log-probabilities.

Requests go side by side, begin alike, give blocks back and are read in chunks. Log-probabilities are within 1e-4 of one
process's, tokens equal but for counted ties (tests/exact/test_engine_mixes.py has both rules).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fledge.engine.config import EngineConfig
from fledge.engine.load import load_engine
from fledge.engine.request import BeamSearch, Completion, Request, Sampling
from fledge.errors import ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import parse_config, save_model
from fledge.model.init import initialise
from fledge.model.transformer import build
from fledge.parallel.config import SplitConfig
from fledge.parallel.fit import check_split, split_reasons
from tests.engine.stub_engine import TOKENIZER
from tests.exact.test_engine_mixes import MODELS, Seen, compared, mix
from tests.parallel.engines import Answered
from tests.parallel.fleet import Fleet
from tests.parallel.test_equal import told
from tests.parity.decoder_cases import CASES

SIZES: dict[str, Any] = {"width": 32, "layers": 3, "heads": 4, "context_tokens": 128}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"heads": 8, "kv_heads": 4},
    "gpt2": {},
    "mixtral": {},
    "gemma2": {"window": 20, "head_channels": 8, "layers": 4},
    "bloom": {},
    "falcon": {"kv_heads": 4},
    "gpt_bigcode": {},
    "t5": {},
}
Mesh = dict[str, int]
T2, T4, P2, P4, T2P2 = {"tensor": 2}, {"tensor": 4}, {"pipe": 2}, {"pipe": 4}, {"tensor": 2, "pipe": 2}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a random model, once; `tests.exact.test_engine_mixes` knows the model by the same name."""

    def folder(name: str) -> str:
        place = tmp_path_factory.getbasetemp() / f"shared-{name}"
        key = f"shared-{name}"
        if key not in MODELS:
            shape = ShapeConfig(name, **{**SIZES, **SHAPES[name]}, vocab_size=TOKENIZER.vocab_size)
            model = initialise(build(family(name).build(shape), "cpu"), 5)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
            save_model(model.eval(), place, TOKENIZER)
            MODELS[key] = model
        return str(place)

    return folder


def cramped(requests: list[Request], **more: Any) -> EngineConfig:
    """Blocks for the largest answer and little more, prompts read in chunks."""
    most = max(len(request.prompt_ids) + (request.sampling.max_tokens or 0) for request in requests)
    return EngineConfig(n_slots=4, cache_tokens=most + 47, prefill_chunk=16, threads=1, **more)


def shared(fleet: Fleet, mesh: Mesh, folder: str, requests: list[Request], fault: str = "", **more: Any) -> Answered:
    config = cramped(requests, parallel=SplitConfig(**mesh), **more)
    n = mesh.get("tensor", 1) * mesh.get("pipe", 1)
    answers = fleet.call(n, "tests.parallel.engines:answered", folder, requests, config, fault)
    assert [error for _, error in answers] == [None] * n, answers
    return answers[0][0]  # type: ignore[no-any-return]


def same(name: str, folder: str, requests: list[Request], got: Answered, **more: Any) -> list[Seen]:
    config = cramped(requests, **more)
    expected: list[Completion] = load_engine(folder, config).complete(requests)
    said, counters, n_blocks = got
    assert n_blocks == config.cache_tokens // 16
    assert counters["prefix_hits_total"] > 0 and counters["preemptions_total"] > 0 and counters["failed_total"] == 0
    found = [compared(f"shared-{name}", requests, expected, one, config) for one in said]
    print({"ties": [s[0] for s in found], "largest": max(s[1] for s in found), "tokens": sum(s[2] for s in found)})
    return found


@pytest.mark.parametrize(("name", "mesh"), [("llama", T2), ("gpt2", P2)], ids=told)
def test_two_processes_say_what_one_says(name, mesh, fleet: Fleet, served):
    requests = mix(name, 3)
    same(name, served(name), requests, shared(fleet, mesh, served(name), requests))


def searched(fleet: Fleet, mesh: Mesh, folder: str, fault: str = "") -> tuple[list[Completion], list[Completion]]:
    """What one process and what several find by beams that share blocks for a while."""
    sampling = Sampling(30, n=4, ignore_eos=True)
    asked = Request("a", tuple(TOKENIZER.encode("a prompt that ends")), sampling, search=BeamSearch(4))
    config = EngineConfig(n_slots=4, threads=1)
    answers = fleet.call(
        2, "tests.parallel.engines:answered", folder, [asked], replace(config, parallel=SplitConfig(**mesh)), fault
    )
    assert [error for _, error in answers] == [None] * 2, answers
    return load_engine(folder, config).complete([asked]), answers[0][0][0][0]


@pytest.mark.parametrize(("name", "mesh"), [("llama", T2), ("gpt2", P2)], ids=told)
def test_beams_are_those_of_one_process(name, mesh, fleet: Fleet, served):
    expected, got = searched(fleet, mesh, served(name))
    assert [one.token_ids for one in got] == [one.token_ids for one in expected]
    assert [one.score for one in got] == pytest.approx([one.score for one in expected], abs=1e-4)


def test_the_control_a_process_that_copies_no_blocks_finds_other_beams(fleet: Fleet, served):
    expected, got = searched(fleet, T2, served("llama"), "no copies")
    scores = [one.score for one in expected]
    assert [one.score for one in got] != pytest.approx(scores, abs=1e-4)


GRID = [
    *(("llama", mesh) for mesh in (T2, T4, P2, T2P2)),
    *(("gpt2", mesh) for mesh in (T2, T4, P2, T2P2)),
    *(("mixtral", mesh) for mesh in (T2, P2, T2P2)),
    *(("gemma2", mesh) for mesh in (T2, P4, T2P2)),
    *(("bloom", mesh) for mesh in (T4, T2P2)),
    *(("falcon", mesh) for mesh in (T2, T2P2)),
    ("t5", T2),
    ("t5", T4),
]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 11, 30])  # mixes in which answers make way for others, as `same` insists
@pytest.mark.parametrize(("name", "mesh"), GRID, ids=told)
def test_every_mesh_says_of_every_model_what_one_process_says(name, mesh, seed, fleet: Fleet, served):
    requests = mix(name, seed)
    same(name, served(name), requests, shared(fleet, mesh, served(name), requests))


def differs(name: str, mesh: Mesh, fault: str, fleet: Fleet, folder: str) -> None:
    requests = mix(name, 3)
    config = cramped(requests)
    expected = load_engine(folder, config).complete(requests)
    said, _, _ = shared(fleet, mesh, folder, requests, fault)
    with pytest.raises(AssertionError, match="apart"):
        compared(f"shared-{name}", requests, expected, said[0], config)


def test_a_rank_that_skips_its_sum_is_seen(fleet: Fleet, served):
    differs("llama", T2, "no sum", fleet, served("llama"))


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "mesh"), [("wrong slice", T2), ("wrong stage", P2), ("no sum", T2P2)], ids=told)
def test_a_planted_fault_is_seen(fault, mesh, fleet: Fleet, served):
    differs("llama", mesh, fault, fleet, served("llama"))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [T2, P2], ids=told)
@pytest.mark.parametrize("more", [{"draft": "lookup"}, {"cache_dtype": "int8"}, {"reach_tokens": 200}], ids=str)
def test_guesses_an_int8_cache_and_windows_are_those_of_one_process(more, mesh, fleet: Fleet, served):
    requests = mix("llama", 3)
    if "draft" in more:  # answers of three tokens say the same again and again, and so can be guessed
        few = ((5, 40.0), (6, 40.0), (7, 40.0))
        requests = [replace(one, sampling=replace(one.sampling, logit_bias=few)) for one in requests]
    got = shared(fleet, mesh, served("llama"), requests, **more)
    same("llama", served("llama"), requests, got, **more)
    assert got[1]["draft_tokens_total"] > 0 or "draft" not in more


def test_blocks_are_as_many_as_the_process_with_the_least_memory_can_have(fleet: Fleet, served):
    answers = fleet.call(2, "tests.parallel.engines:blocks_by_rank", served("llama"), [40_000_000, 1_000_000])
    a_block = 16 * 3 * 2 * 2 * 4 * 4  # tokens, layers, keys and values, own heads, channels, bytes
    assert answers == [1_000_000 // 2 // 2 // a_block] * 2


# What is refused


REFUSED: list[tuple[str, dict[str, Any], Mesh, str]] = [
    ("llama", {"heads": 8, "kv_heads": 2}, T4, "parallel.tensor: expected heads and key/value heads that 4 processes"),
    ("mixtral", {"hidden": 50}, T4, "divisor of the feed-forward's 50 channels, got 4"),
    ("olmo2", {}, T2, "normalised per head"),
    ("gpt2", {}, P4, "pipe: expected at most the model's 3 layers, got 4"),
    ("t5", {}, P2, "got both"),
]


@pytest.mark.parametrize(("name", "shape", "mesh", "message"), REFUSED, ids=told)
def test_a_model_that_can_not_be_split_is_refused_before_it_is_read(name, shape, mesh, message):
    config = family(name).new_config(ShapeConfig(name, **{**SIZES, "vocab_size": 64, **shape}))
    split = SplitConfig(**mesh)
    with pytest.raises(ConfigError, match=message):
        check_split(config, split.sizes(split.tensor * split.pipe))
    check_split(config, SplitConfig().sizes(1))


@pytest.mark.parametrize(("name", "match"), [("cohere-normed", "got one of each head's own"), ("phi-normed", "")])
def test_heads_with_norms_of_their_own_are_not_shared_out(name, match):
    case = CASES[name]
    config = parse_config(case.config(**{**case.sizes, **case.more}).to_dict())[1]
    reasons = list(split_reasons(config, SplitConfig(**T2).sizes(2)))
    assert bool(reasons) == bool(match) and all(match in reason for reason in reasons)


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"deterministic": True}, "deterministic: expected the compiled kernels"),
    ({"draft": "layers:1"}, "draft: expected lookup or nothing for several processes"),
    (
        {"parallel": SplitConfig(tensor=3)},
        "got 2 .WORLD_SIZE.; start 3 with torchrun .* axes of parallel multiply to 2",
    ),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS, ids=["deterministic", "draft", "mesh"])
def test_a_setting_that_does_not_go_with_several_processes_is_refused(settings, message, fleet: Fleet, served):
    config = replace(EngineConfig(parallel=SplitConfig(tensor=2)), **settings)
    answers = fleet.call(2, "tests.parallel.engines:answered", served("llama"), [], config)
    errors = [error for _, error in answers if error is not None and error[0] != "PeerError"]
    assert errors and all(re.search(message, error[1]) and error[2] == 2 for error in errors), answers
