"""/token-classification against transformers' pipeline and `fledge predict`, and its errors."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import transformers

from fledge.engine.config import PredictConfig
from fledge.engine.predict import predict
from fledge.serve.entities import STRATEGIES
from fledge.serve.errors import ApiError
from fledge.serve.task_verbs import TOKEN_CLASSIFICATION
from fledge.text.tokenizer import Tokenizer
from tests.serve.running import RunningServer, error_of, running
from tests.serve.tiny_heads import Inside, tiny

HEAD = "TokenClassification"
TEXTS = [
    "Ada Lovelace lives in Oslo, near the old harbour.",
    "Bob doesn't!",
    "Żółw, naïve café — 日本 and Reykjavík",
    " Who  painted the unfathomable lighthouse in 1921?",
]
WORDS = [["Ada", "Lovelace's", "harbour"], ["Who", "painted", "Reykjavík", "?", "and", "lives", "in", "Oslo", "the"]]


@pytest.fixture(scope="module", params=["Bert", "Roberta"])
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("tagger") / family.lower(), HEAD, family)


@pytest.fixture(scope="module")
def inside(folder: Path) -> Inside:
    return Inside(folder, TOKEN_CLASSIFICATION)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(str(tiny(tmp_path_factory.mktemp("served") / "bert", HEAD)), "engine.threads=1") as started:
        yield started


def asked(server: RunningServer, inputs: Any, **parameters: Any) -> Any:
    reply = server.post("/token-classification", {"inputs": inputs, "parameters": parameters})
    assert reply.status_code == 200, reply.text
    return reply.json()


def same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert [{**one, "score": 0} for one in ours] == [{**one, "score": 0} for one in theirs]
    assert [one["score"] for one in ours] == pytest.approx([float(one["score"]) for one in theirs], abs=1e-5)


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_entities_are_those_of_the_pipeline_by_every_strategy(inside, folder, strategy) -> None:
    pipeline = transformers.pipeline("token-classification", model=str(folder))
    for ignored in (["O"], []):
        theirs = [pipeline(text, aggregation_strategy=strategy, ignore_labels=ignored) for text in TEXTS]
        ours = inside.asked(TEXTS, aggregation_strategy=strategy, ignore_labels=ignored)
        labels = {one.get("entity", one.get("entity_group")) for found in theirs for one in found}
        assert len(labels) > 1
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    alone = inside.asked(TEXTS[0], aggregation_strategy=strategy, ignore_labels=[])
    same(alone, pipeline(TEXTS[0], aggregation_strategy=strategy, ignore_labels=[]))
    assert alone[0]["score"] != pytest.approx(ours[1][0]["score"], abs=1e-5)  # the control: texts differ


def test_words_are_tagged_as_predict_tags_them(inside, folder, family, tmp_path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"tokens": words}) + "\n" for words in WORDS))
    told = predict(PredictConfig(str(folder), file=str(file)), json=True)["answers"]
    found = inside.asked(WORDS, is_split_into_words=True, ignore_labels=[])
    for words, answer, tokens in zip(WORDS, told, found, strict=True):
        text, begin, firsts = " ".join(words), 0, []
        for word in words:
            firsts.append(next(one for one in tokens if one["start"] == begin))
            begin += len(word) + 1
        assert [one["entity"] for one in firsts] == answer["tags"]
        assert [one["score"] for one in firsts] == pytest.approx(answer["scores"], abs=1e-6)
        covered = {place for one in tokens for place in range(one["start"], one["end"])}
        assert covered == {place for place, letter in enumerate(text) if letter != " "}
    assert len({tag for answer in told for tag in answer["tags"]}) > 1  # the control: tags differ
    if family == "Bert":
        pipeline = transformers.pipeline("token-classification", model=str(folder))
        for strategy in STRATEGIES:
            ours = inside.asked(WORDS[0], is_split_into_words=True, aggregation_strategy=strategy, delimiter="--")
            theirs = pipeline(WORDS[0], is_split_into_words=True, aggregation_strategy=strategy, delimiter="--")
            same(ours, theirs[0] if theirs and isinstance(theirs[0], list) else theirs)


def test_a_tokenizer_that_can_not_tell_where_its_tokens_stand_is_a_400(inside, monkeypatch) -> None:
    assert inside.asked("Ada", ignore_labels=[])  # the control
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda self, texts: [[9]] * len(texts))
    with pytest.raises(ApiError, match="can't be encoded") as refused:
        inside.asked("Ada")
    assert (refused.value.status, refused.value.param) == (400, "inputs")


def test_a_text_is_tagged_the_same_alone_and_in_company_and_passes_are_shared(server) -> None:
    texts = [f"Ada {'old ' * (n % 9)} {n}" for n in range(40)]
    alone = [asked(server, text, ignore_labels=[]) for text in texts]
    rows, passes = server.metric("fledge_engine_rows_total"), server.metric("fledge_engine_passes_total")
    server.engine().send_signal(signal.SIGSTOP)  # until all of them wait, whatever else the machine does
    with ThreadPoolExecutor(40) as pool:
        waiting = [pool.submit(asked, server, text, ignore_labels=[]) for text in texts]
        time.sleep(1.0)
        server.engine().send_signal(signal.SIGCONT)
        together = [one.result() for one in waiting]
    for one, other in zip(alone, together, strict=True):
        same(one, other)
    asked(server, "a")
    n_rows = server.metric("fledge_engine_rows_total") - rows
    assert n_rows >= 40 and server.metric("fledge_engine_passes_total") - passes < n_rows / 2


def test_what_is_wrong_is_a_400_that_names_the_field(server) -> None:
    long = "old " * 80
    for body, param, code, says in (
        ({}, "inputs", None, "a string or an array of strings"),
        ({"inputs": ["a", 3]}, "inputs", None, "inputs[1]"),
        ({"inputs": long}, "inputs", "context_length_exceeded", "at most 64 tokens"),
        ({"inputs": "a", "parameters": {"aggregation_strategy": "most"}}, "aggregation_strategy", None, "one of none"),
        (
            {"inputs": "a", "parameters": {"ignore_labels": ["O", 1]}},
            "ignore_labels",
            None,
            "ignore_labels[1]: expected a",
        ),
        ({"inputs": "a", "aggregation_strategy": "simple"}, "aggregation_strategy", None, "inside of parameters"),
        ({"inputs": "a", "parameters": {"grouped_entities": True}}, "grouped_entities", "unsupported_parameter", "not"),
        ({"inputs": "a", "parameters": {"stride": 3}}, "stride", "unsupported_parameter", "not supported"),
        ({"inputs": "a", "parameters": {"delimiter": "-"}}, "delimiter", None, "is_split_into_words"),
        (
            {"inputs": ["a"], "parameters": {"is_split_into_words": True, "delimiter": "-" * 65}},
            "delimiter",
            None,
            "at most 64 characters",
        ),
        ({"inputs": "a", "parameters": {"is_split_into_words": True}}, "inputs", None, "an array of words"),
        (
            {"inputs": ["a", 3], "parameters": {"is_split_into_words": True}},
            "inputs",
            None,
            "inputs[1]: expected a word, got",
        ),
        (
            {"inputs": [["a"], []], "parameters": {"is_split_into_words": True}},
            "inputs",
            None,
            "inputs[1]: expected at least",
        ),
        (
            {"inputs": [["a", 3]], "parameters": {"is_split_into_words": True}},
            "inputs",
            None,
            "inputs[0][1]: expected a word",
        ),
        ({"inputs": [3], "parameters": {"is_split_into_words": True}}, "inputs", None, "inputs[0]: expected an array"),
        ({"inputs": [], "parameters": {"is_split_into_words": True}}, "inputs", None, "at least one input"),
        (
            {"inputs": long.split(), "parameters": {"is_split_into_words": True}},
            "inputs",
            "context_length_exceeded",
            "at most 64 tokens",
        ),
        ({"input": "a"}, "input", "unknown_field", "did you mean inputs"),
    ):
        reply = server.post("/token-classification", body)
        assert reply.status_code == 400, (body, reply.text)
        error = error_of(reply)
        assert (error["param"], error["code"]) == (param, code) and says in error["message"], error
    for inputs, parameters in ((long, {}), (long.split(), {"is_split_into_words": True})):
        body = {"inputs": inputs, "parameters": {**parameters, "ignore_labels": []}, "truncation": "auto"}
        reply = server.post("/token-classification", body)
        assert reply.status_code == 200 and int(reply.headers["x-fledge-cut-tokens"]) > 0
        assert 20 < len(reply.json()) <= 62 and reply.json()[0]["start"] == 0
    end = server.post("/token-classification", {"inputs": long, "parameters": {"ignore_labels": []},
                                                "truncation": "auto", "truncation_side": "left"})  # fmt: skip
    assert end.json()[-1]["end"] in (len(long), len(long) - 1) and end.json()[0]["start"] > 0
    for path, body in (("/fill-mask", {"inputs": "a"}), ("/v1/embeddings", {"input": "a"})):
        reply = server.post(path, body)
        assert (reply.status_code, error_of(reply)["code"]) == (400, "unsupported_model")
        assert "/token-classification" in error_of(reply)["message"]
    (card,) = server.client.get("/v1/models").json()["data"]
    assert (card["task"], card["max_model_len"]) == ("token-classification", 64)
