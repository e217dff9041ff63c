"""/multiple-choice against transformers' model and `fledge predict`, and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fledge.engine.config import PredictConfig
from fledge.engine.predict import predict
from fledge.errors import RequestError
from fledge.serve.task_verbs import MULTIPLE_CHOICE
from tests.serve.running import error_of, running
from tests.serve.tiny_heads import Inside, tiny

QUESTIONS: list[dict[str, Any]] = [
    {"question": "Where does Ada live?", "choices": ["In Oslo, near the old harbour.", "At seven.", "Bob doesn't!"]},
    {"question": "Who painted the lighthouse?", "choices": ["日本語", "Bob", "It is old. " * 3]},
]


@pytest.fixture(scope="module", params=["Bert", "Roberta"])
def folder(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("chooser") / request.param.lower(), "MultipleChoice", request.param)


@torch.no_grad()
def expected(folder: Path, question: str, choices: list[str]) -> list[float]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForMultipleChoice.from_pretrained(folder).eval()
    inputs = tokenizer([question] * len(choices), choices, padding=True, return_tensors="pt")
    return torch.softmax(model(**{key: value[None] for key, value in inputs.items()}).logits[0], -1).tolist()


def test_choices_are_those_of_transformers_and_of_predict(folder, tmp_path) -> None:
    found = Inside(folder, MULTIPLE_CHOICE).asked(QUESTIONS)
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    told = predict(PredictConfig(str(folder), file=str(file)), json=True)["answers"]
    for one, asked, said in zip(found, QUESTIONS, told, strict=True):
        theirs = expected(folder, **asked)
        assert one["scores"] == pytest.approx(theirs, abs=1e-5)
        assert one["scores"][::-1] != pytest.approx(theirs, abs=1e-3)  # the control: choices differ
        best = max(range(3), key=lambda n: theirs[n])
        assert (one["answer"], one["text"]) == (best, asked["choices"][best]) == (said["answer"], said["text"])
        assert one["score"] == one["scores"][best] == pytest.approx(said["probability"], abs=1e-5)


def test_over_http_each_question_may_have_its_own_number_of_choices(tmp_path) -> None:
    folder = tiny(tmp_path / "bert", "MultipleChoice")
    inside = Inside(folder, MULTIPLE_CHOICE)
    with running(str(folder), "engine.threads=1") as server:
        two = {"question": "Who?", "choices": ["Ada", "Bob"]}
        reply = server.post("/multiple-choice", {"inputs": [QUESTIONS[0], two]})
        assert reply.status_code == 200, reply.text
        for one, asked in zip(reply.json(), (QUESTIONS[0], two), strict=True):
            assert one["scores"] == pytest.approx(inside.asked(asked)["scores"], abs=1e-5)
        (card,) = server.client.get("/v1/models").json()["data"]
        assert card["task"] == "multiple-choice"
        for body, says in (
            ({}, "an object with question and choices"),
            ({"inputs": [two, {"question": " ", "choices": ["a", "b"]}]}, "inputs[1].question"),
            ({"inputs": {"question": "Who?", "choices": "Ada"}}, "inputs.choices: expected an array"),
            ({"inputs": {"question": "Who?", "choices": ["Ada"]}}, "at least two"),
            ({"inputs": [{"question": "Who?", "choices": ["Ada", 3]}]}, "inputs[0].choices[1]"),
            ({"inputs": {"question": "Who?", "choices": ["a"] * 2049}}, "at most 2048 choices in all, got 2049"),
            ({"inputs": [two, {"question": "Who?", "choices": ["Ada", "old " * 80]}]}, "inputs[1].choices[1]"),
        ):
            reply = server.post("/multiple-choice", body)
            assert (reply.status_code, error_of(reply)["param"]) == (400, "inputs"), (str(body)[:200], reply.text[:300])
            assert says in error_of(reply)["message"]
        refused = server.post("/classify", {"input": "a"})
        assert "/multiple-choice" in error_of(refused)["message"]


def test_a_parameter_that_nothing_obeys_is_refused(tmp_path) -> None:
    with pytest.raises(RequestError, match="top_k: not supported"):
        Inside(tiny(tmp_path / "bert", "MultipleChoice"), MULTIPLE_CHOICE).asked(QUESTIONS[0], top_k=2)
