"""/question-answering against a plain reading of transformers' logits and `fledge predict`, and its errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fledge.engine.config import PredictConfig
from fledge.engine.predict import predict
from fledge.serve.task_rows import lay_questions
from fledge.serve.task_verbs import QUESTION_ANSWERING
from fledge.serve.task_wire import read_questions
from tests.serve.running import RunningServer, error_of, running
from tests.serve.tiny_heads import Inside, tiny

HEAD = "QuestionAnswering"
PAIRS = [
    ("Where does Ada live?", "Ada Lovelace lives in Oslo, near the old harbour."),
    ("Who?", "Żółw, naïve café — 日本語 and Bob."),
    ("What is it?", " Ada lives in Oslo. Bob doesn't! " * 12),
]


@pytest.fixture(scope="module", params=["Bert", "Roberta"])
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("reader") / family.lower(), HEAD, family)


@pytest.fixture(scope="module")
def inside(folder: Path) -> Inside:
    return Inside(folder, QUESTION_ANSWERING)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(str(tiny(tmp_path_factory.mktemp("served") / "bert", HEAD)), "engine.threads=1") as started:
        yield started


def inputs_of(*pairs: tuple[str, str]) -> Any:
    items = [{"question": question, "context": context} for question, context in pairs]
    return items[0] if len(items) == 1 else items


def asked(inside: Inside, *pairs: tuple[str, str], **parameters: Any) -> Any:
    return inside.asked(inputs_of(*pairs), **parameters)


def posted(server: RunningServer, *pairs: tuple[str, str]) -> Any:
    reply = server.post("/question-answering", {"inputs": inputs_of(*pairs)})
    assert reply.status_code == 200, reply.text
    return reply.json()


@torch.no_grad()
def expected(folder: Path, question: str, context: str, longest: int = 30) -> dict[str, Any]:
    """The best span of one window, by transformers' tokens and logits, of the 20 likeliest starts and ends."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    inputs = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    offsets = inputs.pop("offset_mapping")[0].tolist()
    out = model(**inputs)
    inside = [t for t, kind in enumerate(inputs.sequence_ids(0)) if kind == 1]
    counted = torch.tensor([0, *inside])
    start, end = (logits[0, counted].double().softmax(0).tolist() for logits in (out.start_logits, out.end_logits))
    starts, ends = (sorted(range(len(inside)), key=lambda t: -shares[t + 1])[:20] for shares in (start, end))
    spans = [(start[a + 1] * end[b + 1], a, b) for a in starts for b in ends if a <= b < a + longest]
    score, a, b = max(spans)
    begin, stop = offsets[inside[a]][0], offsets[inside[b]][1]
    null = float(out.start_logits[0, 0] + out.end_logits[0, 0])
    best = float(out.start_logits[0, inside[a]] + out.end_logits[0, inside[b]])
    return {"score": score, "start": begin, "end": stop, "answer": context[begin:stop], "logit": best,
            "null_logit": null, "none": start[0] * end[0]}  # fmt: skip


def test_answers_are_those_of_transformers_logits(inside, folder) -> None:
    found = asked(inside, *PAIRS[:2])
    for one, (question, context) in zip(found, PAIRS[:2], strict=True):
        theirs = expected(folder, question, context)
        assert (one["answer"], one["start"], one["end"]) == (theirs["answer"], theirs["start"], theirs["end"])
        for figure in ("score", "logit", "null_logit"):
            assert one[figure] == pytest.approx(theirs[figure], abs=1e-5)
        assert one["answer"] == context[one["start"] : one["end"]]
    assert found[0]["score"] != pytest.approx(found[1]["score"], abs=1e-5)  # the control: they differ
    short = asked(inside, PAIRS[0], max_answer_len=1)
    theirs = expected(folder, *PAIRS[0], longest=1)
    assert (short["answer"], short["score"]) == (theirs["answer"], pytest.approx(theirs["score"], abs=1e-5))
    for pair in PAIRS[:2]:
        theirs, or_none = expected(folder, *pair), asked(inside, pair, handle_impossible_answer=True)
        if theirs["null_logit"] > theirs["logit"]:
            assert (or_none["answer"], or_none["score"]) == ("", pytest.approx(theirs["none"], abs=1e-5))
        else:
            assert or_none == asked(inside, pair)


def test_answers_are_those_of_predict_in_windows_too(inside, folder, tmp_path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"question": q, "context": c}) + "\n" for q, c in PAIRS))
    told = predict(PredictConfig(str(folder), file=str(file)), json=True)["answers"]
    for one, answer in zip(asked(inside, *PAIRS), told, strict=True):
        assert (one["answer"], one["start"], one["end"]) == (answer["answer"], answer["start"], answer["end"])
        figures = ((one["logit"], answer["score"]), (one["null_logit"], answer["null_score"]),
                   (one["score"], answer["probability"]))  # fmt: skip
        for ours, theirs in figures:
            assert ours == pytest.approx(theirs, abs=1e-5)
    rows = asyncio.run(lay_questions(inside.service, read_questions({"inputs": inputs_of(PAIRS[2])})))
    assert len(rows.windows) > 2  # the long context takes several windows
    stride = predict(PredictConfig(str(folder), file=str(file), stride=2), json=True)["answers"][2]
    assert asked(inside, PAIRS[2], doc_stride=2)["logit"] == pytest.approx(stride["score"], abs=1e-5)


def test_a_context_without_tokens_has_no_answer_in_it(tmp_path) -> None:
    folder, file = tiny(tmp_path / "bert", HEAD), tmp_path / "rows.jsonl"
    asked = [{"question": "Who?", "context": context} for context in ("\u200b", "Ada")]
    file.write_text("".join(json.dumps(one) + "\n" for one in asked))
    none, some = predict(PredictConfig(str(folder), file=str(file)), json=True)["answers"]
    assert (none["answer"], none["score"], none["probability"]) == ("", none["null_score"], none["null_probability"])
    assert some["answer"] == "Ada" and some["score"] != some["null_score"]  # the control


def test_a_question_is_answered_the_same_alone_and_in_company(server) -> None:
    pairs = [(f"Where is {n}?", f"Ada {'old ' * (n % 9)} lives in {n}") for n in range(32)]
    alone = [posted(server, pair) for pair in pairs]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda pair: posted(server, pair), pairs))
    for one, other in zip(alone, together, strict=True):
        assert one["answer"] == other["answer"] and one["logit"] == pytest.approx(other["logit"], abs=1e-5)
    assert len({round(one["logit"], 4) for one in alone}) > 4  # the control: each got its own


def test_what_is_wrong_is_a_400_that_names_the_field(server) -> None:
    good = {"question": "Who?", "context": "Ada"}
    for body, param, code, says in (
        ({}, "inputs", None, "an object with question and context"),
        ({"inputs": []}, "inputs", None, "at least one"),
        ({"inputs": {"question": "Who?"}}, "inputs", None, "inputs.context"),
        ({"inputs": [good, {"question": " ", "context": "a"}]}, "inputs", None, "inputs[1].question"),
        ({"inputs": {"question": "old " * 70, "context": "a"}}, "inputs", "context_length_exceeded", "at most"),
        (
            {"inputs": [good, {"question": "old " * 70, "context": "a"}]},
            "inputs",
            "context_length_exceeded",
            "inputs[1].question: expected at most 53 tokens, got 70",
        ),
        (
            {"inputs": [good, {"question": "q", "context": "\u200b"}]},
            "inputs",
            None,
            "inputs[1].context: expected text",
        ),
        ({"inputs": good, "max_answer_len": 2}, "max_answer_len", None, "expected inside of parameters"),
        ({"inputs": good, "parameters": {"n_best": 2}}, "n_best", "unsupported_parameter", "not supported"),
        ({"inputs": good, "add_special_tokens": False}, "add_special_tokens", "unsupported_parameter", "frame"),
        ({"inputs": good, "parameters": {"max_answer_len": 0}}, "max_answer_len", None, "1..1000"),
        ({"inputs": good, "parameters": {"doc_stride": -1}}, "doc_stride", None, "at least 0"),
        ({"inputs": good, "parameters": {"top_k": 2}}, "top_k", "unsupported_parameter", "not supported"),
        (
            {"inputs": {"question": "Who " * 35, "context": "Ada " * 80_000}},
            "inputs",
            "context_length_exceeded",
            "at most 300000 tokens",
        ),
    ):
        reply = server.post("/question-answering", body)
        assert reply.status_code == 400, (str(body)[:200], reply.text[:300])
        error = error_of(reply)
        assert (error["param"], error["code"]) == (param, code) and says in error["message"], error
    reply = server.post(
        "/question-answering", {"inputs": {**good, "context": "\u200bAda"}, "parameters": {"top_k": None}}
    )
    assert reply.status_code == 200 and reply.json()["answer"]  # the control
