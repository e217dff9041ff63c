"""Beam searches over HTTP: transformers' answers and scores, beside others' answers, bounded, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import transformers

from fledge.engine.beam import beam_search
from fledge.engine.load import load_engine
from fledge.engine.request import BeamSearch
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import save_model
from fledge.model.init import initialise
from fledge.model.transformer import build
from fledge.text.tokenizer import byte_level
from tests.serve.running import RunningServer, error_of, running, wait_until

TOKENIZER = byte_level()
CONTEXT = 96
PROMPT = "The old harbour, at night"
IDS = (TOKENIZER.bos_id, *TOKENIZER.encode(PROMPT))
SEARCH = {"use_beam_search": True, "max_tokens": 12, "return_token_ids": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = ShapeConfig("llama", width=32, layers=2, heads=4, context_tokens=CONTEXT, vocab_size=TOKENIZER.vocab_size)
    model = initialise(build(family("llama").build(shape), "cpu"), 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.4)
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_model(model, path, TOKENIZER)
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with running(str(folder), "engine.threads=1", "engine.n_slots=8", "max_choices=48") as started:
        yield started


def ids_and_scores(body: dict[str, Any]) -> list[tuple[tuple[int, ...], float]]:
    assert [choice["index"] for choice in body["choices"]] == list(range(len(body["choices"])))
    return [(tuple(choice["token_ids"]), choice["score"]) for choice in body["choices"]]


@torch.no_grad()
def reference(folder: Path, n_beams: int, n: int, **options: Any) -> list[tuple[tuple[int, ...], float]]:
    """By transformers' generate."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    out = model.generate(
        torch.tensor([IDS]), attention_mask=torch.ones(1, len(IDS), dtype=torch.int64), num_beams=n_beams,
        num_return_sequences=n, max_new_tokens=12, do_sample=False, return_dict_in_generate=True, output_scores=True,
        eos_token_id=list(TOKENIZER.stop_ids), pad_token_id=TOKENIZER.pad_id, **options,
    )  # fmt: skip
    found = []
    for row, score in zip(out.sequences[:, len(IDS) :].tolist(), out.sequences_scores.tolist(), strict=True):
        end = next((i + 1 for i, token in enumerate(row) if token in TOKENIZER.stop_ids), len(row))
        found.append((tuple(row[:end]), score))
    return found


@pytest.mark.parametrize(
    ("asked", "n_beams", "n", "options"),
    [
        ({"n": 4}, 4, 4, {}),
        ({"beam_width": 6, "n": 2, "length_penalty": 0.3}, 6, 2, {"length_penalty": 0.3}),
        ({"best_of": 5, "early_stopping": True}, 5, 1, {"early_stopping": True}),
        ({"best_of": 3, "beam_width": 3, "n": 3, "early_stopping": "never"}, 3, 3, {"early_stopping": "never"}),
    ],
)
def test_answers_and_scores_are_those_of_generate(server, folder, asked, n_beams, n, options) -> None:
    body = server.complete(PROMPT, **SEARCH, **asked, temperature=0).json()
    found, expected = ids_and_scores(body), reference(folder, n_beams, n, **options)
    assert [ids for ids, _ in found] == [ids for ids, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=2e-5)
    for choice, (ids, _) in zip(body["choices"], expected, strict=True):
        stopped = ids[-1] in TOKENIZER.stop_ids
        assert choice["text"] == TOKENIZER.decode(ids[:-1] if stopped else ids)
        assert choice["finish_reason"] == ("stop" if stopped else "length")
    n_tokens = sum(len(ids) for ids, _ in expected)
    assert body["usage"]["prompt_tokens"] == len(IDS) and body["usage"]["completion_tokens"] == n_tokens
    greedy = server.complete(PROMPT, max_tokens=12, temperature=0, return_token_ids=True).json()["choices"][0]
    assert "score" not in greedy
    assert tuple(greedy["token_ids"]) != found[0][0]  # the control: the search finds another


def test_chats_and_lists_of_prompts_are_searched_as_the_engine_searches(server, folder) -> None:
    engine = load_engine(str(folder))
    wide = {**SEARCH, "max_tokens": 10, "beam_width": 3}

    def best(ids: tuple[int, ...], n: int) -> list[tuple[tuple[int, ...], float]]:
        found = beam_search(engine.runner, ids, BeamSearch(3, 10), engine.stop_ids, engine.vocab_size)
        return [(one.token_ids, pytest.approx(one.score, abs=2e-5)) for one in found[:n]]

    body = server.chat(**wide, n=2).json()
    assert ids_and_scores(body) == best(tuple(body["choices"][0]["prompt_token_ids"]), 2)
    assert body["choices"][0]["message"]["role"] == "assistant"
    texts = [PROMPT, "Another", "And a third one, which is longer"]
    told = ids_and_scores(server.complete(texts, **wide).json())
    for text, one in zip(texts, told, strict=True):
        assert [one] == best((TOKENIZER.bos_id, *TOKENIZER.encode(text)), 1)
    assert len({tokens for tokens, _ in told}) == 3  # the control


def test_others_say_the_same_beside_searches_and_searches_the_same_beside_them(server) -> None:
    def answer(number: int) -> Any:
        fields = {"max_tokens": 40, "seed": number, "return_token_ids": True, "ignore_eos": True}
        return server.complete(f"prompt {number}", **fields).json()["choices"][0]["token_ids"]

    def searched(number: int) -> Any:
        return ids_and_scores(server.complete(f"sought {number}", **SEARCH, n=4).json())

    others, searches = [answer(n) for n in range(6)], [searched(n) for n in range(4)]
    with ThreadPoolExecutor(10) as pool:
        beside = [pool.submit(answer, n) for n in range(6)]
        found = list(pool.map(searched, range(4)))
        assert [one.result() for one in beside] == others
    for one, other in zip(found, searches, strict=True):
        assert [ids for ids, _ in one] == [ids for ids, _ in other]
        assert [score for _, score in one] == pytest.approx([score for _, score in other], abs=2e-5)
    assert others[0] != others[1] and searches[0] != searches[1]  # the control


def test_a_caller_who_leaves_ends_the_search(server) -> None:
    cancelled = server.metric("fledge_engine_cancelled_total")
    left = server.metric("fledge_request_disconnects_total")
    body = {"prompt": "x", "use_beam_search": True, "n": 8, "max_tokens": 90, "ignore_eos": True}
    server.engine().suspend()
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(httpx.post, server.url + "/v1/completions", json=body, timeout=0.5, trust_env=False)
        assert isinstance(reply.exception(), httpx.ReadTimeout)
    wait_until(lambda: server.metric("fledge_request_disconnects_total") == left + 1, 5)
    server.engine().resume()
    wait_until(lambda: server.metric("fledge_engine_cancelled_total") == cancelled + 1, 10)
    assert server.complete("y", max_tokens=2).status_code == 200
    wait_until(lambda: server.metric("fledge_num_requests_running") == 0, 10)
    assert server.metric("fledge_engine_slots_in_use") == 0


def test_what_is_wrong_is_a_400_that_names_the_field(server) -> None:
    search = {"use_beam_search": True, "n": 4}
    for fields, param, code, says in (
        ({**search, "stream": True}, "stream", "unsupported_parameter", "expected false"),
        ({**search, "n": 9}, "n", None, "at most 8 beams"),
        ({**search, "beam_width": 20}, "beam_width", None, "at most 8 beams"),
        ({**search, "best_of": 70}, "best_of", None, "1..64"),
        ({**search, "beam_width": 0}, "beam_width", None, "1..64"),
        ({**search, "beam_width": 4, "best_of": 5}, "beam_width", None, "differs"),
        ({**search, "beam_width": 2}, "n", None, "the number of beams"),
        ({**search, "length_penalty": 11}, "length_penalty", None, "-10..10"),
        ({**search, "length_penalty": "1"}, "length_penalty", None, "a number"),
        ({**search, "early_stopping": "maybe"}, "early_stopping", None, "never"),
        ({**search, "temperature": 0.7}, "temperature", None, "0 or 1"),
        ({**search, "top_p": 0.7}, "top_p", "unsupported_parameter", "does not sample"),
        ({**search, "stop": "x"}, "stop", "unsupported_parameter", "does not sample"),
        ({**search, "logprobs": 1}, "logprobs", "unsupported_parameter", "does not sample"),
        ({**search, "guided_regex": "a+"}, "guided_regex", "unsupported_parameter", "does not sample"),
        ({**search, "overflow": "sinks"}, "overflow", "unsupported_parameter", "refuse or truncate"),
        ({**search, "max_tokens": 500}, "max_tokens", "context_length_exceeded", "context"),
        ({"use_beam_search": 1}, "use_beam_search", None, "true or false"),
        ({"use_beam_serch": True}, "use_beam_serch", "unknown_field", "use_beam_search"),
        ({"beam_width": 4}, "beam_width", None, "use_beam_search to be true"),
        ({"length_penalty": 2.0}, "length_penalty", None, "use_beam_search to be true"),
        ({"early_stopping": True}, "early_stopping", None, "use_beam_search to be true"),
        ({"early_stopping": "often"}, "early_stopping", None, "never"),
        ({"num_beams": 4}, "num_beams", "unsupported_parameter", "send use_beam_search"),
        ({"best_of": 4}, "best_of", None, "the same number as n"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha", "unsupported_parameter", "reads all"),
    ):
        reply = server.complete(PROMPT, **fields)
        assert reply.status_code == 400, (fields, reply.text[:300])
        error = error_of(reply)
        assert (error["param"], error["code"]) == (param, code) and says in error["message"], (fields, error)
    many = server.complete(["x"] * 7, **search)
    assert many.status_code == 400 and error_of(many)["param"] == "prompt"
    plain = {
        "use_beam_search": False,
        "length_penalty": 1.0,
        "early_stopping": False,
        "penalty_alpha": 0,
        "num_beams": 1,
    }
    assert server.complete(PROMPT, max_tokens=2, **plain).status_code == 200  # the control
