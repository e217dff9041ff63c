"""/classify on a tiny classifier that transformers wrote: its numbers, those of `fledge predict`, and errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from fledge.engine.config import PredictConfig
from fledge.engine.encoder import load_encoder
from fledge.engine.predict import predict
from fledge.engine.purpose import purpose_of
from fledge.errors import ConfigError
from fledge.serve.vector_replies import classified
from tests.sentences import LABELS, expected_logits, tiny_classifier
from tests.serve.running import CHAT, RunningServer, error_of, running

TEXTS = ["A quiet, patient film.", "Dull", "so so " * 12, "It is neither good nor bad, and it has 日本語 in it."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_classifier(tmp_path_factory.mktemp("classifier") / "mood")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with running(str(folder), "engine.threads=1") as started:
        yield started


def test_labels_and_probabilities_are_those_of_transformers_and_of_predict(server, folder) -> None:
    body = server.post("/classify", {"model": "mood", "input": TEXTS}).json()
    expected = torch.softmax(expected_logits(folder, TEXTS), -1).numpy()
    assert [one["index"] for one in body["data"]] == list(range(len(TEXTS)))
    assert body["object"] == "list" and body["model"] == "mood" and body["id"].startswith("classify-")
    told = np.array([one["probs"] for one in body["data"]])
    assert np.abs(told - expected).max() < 1e-6 * 5
    assert np.abs(told[::-1] - expected).max() > 1e-3  # the control: texts differ
    assert [one["label"] for one in body["data"]] == [LABELS[place] for place in expected.argmax(1)]
    assert {one["num_classes"] for one in body["data"]} == {3}
    for text, one in zip(TEXTS, body["data"], strict=True):
        (answer,) = predict(PredictConfig(model=str(folder), text=text), json=True)["answers"]
        assert answer["label"] == one["label"]
        assert list(answer["probabilities"].values()) == pytest.approx(one["probs"], abs=1e-6)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    n_tokens = sum(map(len, tokenizer(TEXTS)["input_ids"]))
    assert body["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    (card,) = server.client.get("/v1/models").json()["data"]
    assert (card["task"], card["max_model_len"]) == ("classify", 64)


def test_one_text_and_ids_do_too_and_what_is_wrong_names_the_field(server, folder) -> None:
    ids = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"]
    by_text, by_ids = (server.post("/classify", {"input": given}).json()["data"] for given in (TEXTS, ids))
    for one, other in zip(by_text, by_ids, strict=True):
        assert one["probs"] == pytest.approx(other["probs"], abs=1e-6)
    assert len(server.post("/classify", {"input": TEXTS[0]}).json()["data"]) == 1
    for body, param, code in (
        ({}, "input", None), ({"input": ""}, "input", None),
        ({"input": "so " * 80}, "input", "context_length_exceeded"),
        ({"input": [3.5]}, "input", None), ({"inputt": "a"}, "inputt", "unknown_field"),
    ):  # fmt: skip
        reply = server.post("/classify", body)
        assert reply.status_code == 400
        assert (error_of(reply)["param"], error_of(reply)["code"]) == (param, code)
    assert server.post("/classify", {"input": "so " * 80, "truncation": "auto"}).status_code == 200
    for path, body in (("/v1/embeddings", {"input": "a"}), ("/v1/chat/completions", CHAT)):
        reply = server.post(path, body)
        assert (reply.status_code, error_of(reply)["code"]) == (400, "unsupported_model")
        assert "/classify" in error_of(reply)["message"]


def test_labels_that_hold_each_by_itself_have_probabilities_of_their_own(tmp_path: Path) -> None:
    folder = tiny_classifier(tmp_path / "tags", several=True)
    shares = torch.sigmoid(expected_logits(folder, TEXTS)).numpy()
    encoder = load_encoder(folder)
    ids = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"]
    data = classified("tags", encoder.numbers(ids).numpy(), 1, encoder.facts["labels"], encoder.facts["several"])[
        "data"
    ]
    assert np.abs(np.array([one["probs"] for one in data]) - shares).max() < 5e-6
    assert np.abs(shares.sum(1) - 1).max() > 0.05  # the control: they don't share one whole
    assert [one["labels"] for one in data] == [[LABELS[i] for i in np.flatnonzero(row > 0.5)] for row in shares]


def test_a_folder_is_served_for_what_its_head_says(tmp_path: Path) -> None:
    size = {
        "vocab_size": 99,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    for name, labels, purpose in (
        ("BertModel", 2, "embed"),
        ("BertForMaskedLM", 2, "embed"),
        ("BertForSequenceClassification", 2, "classify"),
        ("BertForSequenceClassification", 1, "score"),
        ("BertForTokenClassification", 2, "token-classification"),
        ("BertForQuestionAnswering", 2, "question-answering"),
        ("BertForMultipleChoice", 2, "multiple-choice"),
    ):
        transformers.BertConfig(**size, num_labels=labels, architectures=[name]).save_pretrained(tmp_path)
        assert purpose_of(tmp_path) == purpose
        assert purpose_of(tmp_path, "mean") == "embed"  # the control: its body gives vectors where that is said
    with pytest.raises(ConfigError, match="pooling: expected one of cls"):
        purpose_of(tmp_path, "median")
