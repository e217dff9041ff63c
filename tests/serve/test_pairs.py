"""/score and /rerank: transformers' pipeline on pairs, sentence vectors, `fledge predict`; and their errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fledge.engine.config import PredictConfig
from fledge.engine.predict import predict
from fledge.serve.pair_verbs import RERANK, SCORE
from fledge.serve.vector_routes import CLASSIFY
from tests.sentences import expected_vectors, minilm_folder
from tests.serve.running import RunningServer, error_of, running
from tests.serve.tiny_heads import Inside, tiny

HEAD = "SequenceClassification"
QUERY = "Where does Ada live?"
TEXTS = ["Ada Lovelace lives in Oslo, near the old harbour.", "Bob doesn't!", "Żółw, naïve café — 日本語", "old " * 20]


@pytest.fixture(scope="module", params=["Bert", "Roberta"])
def folder(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("ranker") / request.param.lower(), HEAD, request.param, num_labels=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tiny(tmp_path_factory.mktemp("served") / "bert", HEAD, num_labels=1)
    with running(str(folder), "engine.threads=1") as started:
        yield started


def scores_by_transformers(folder: Path, first: str, seconds: list[str]) -> list[float]:
    pipeline = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    return [pipeline({"text": first, "text_pair": second})["score"] for second in seconds]


@torch.no_grad()
def logits_by_transformers(folder: Path, first: str, seconds: list[str]) -> list[float]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return [float(model(**tokenizer(first, second, return_tensors="pt")).logits) for second in seconds]


def scores_of(reply: dict[str, Any]) -> list[float]:
    assert [one["index"] for one in reply["data"]] == list(range(len(reply["data"])))
    return [one["score"] for one in reply["data"]]


def marked(folder: Path, to: Path, **fields: Any) -> Path:
    """A copy of a folder whose config.json has these fields."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    raw = json.loads((to / "config.json").read_text()) | fields
    (to / "config.json").write_text(json.dumps(raw))
    return to


def test_a_pair_has_the_score_of_transformers(folder, tmp_path) -> None:
    inside = Inside(folder, SCORE)
    reply = inside.told({"text_1": QUERY, "text_2": TEXTS})
    theirs = scores_by_transformers(folder, QUERY, TEXTS)
    assert scores_of(reply) == pytest.approx(theirs, abs=1e-5)
    assert np.ptp(theirs) > 1e-3 and not np.allclose(scores_of(reply)[::-1], theirs, atol=1e-3)  # the control
    assert reply["object"] == "list" and reply["id"].startswith("score-")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    n_tokens = sum(len(tokenizer(QUERY, text)["input_ids"]) for text in TEXTS)
    assert reply["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    each = inside.told({"text_1": [QUERY] * 4, "text_2": TEXTS})
    assert scores_of(each) == pytest.approx(theirs, abs=1e-5)
    turned = [scores_of(inside.told({"text_1": text, "text_2": QUERY}))[0] for text in TEXTS]
    assert not np.allclose(turned, theirs, atol=1e-4)  # the control: which text is first counts
    logits = logits_by_transformers(folder, QUERY, TEXTS)
    raw = inside.told({"text_1": QUERY, "text_2": TEXTS, "use_activation": False})
    assert scores_of(raw) == pytest.approx(logits, abs=1e-5)
    for name, fields in (
        ("regression", {"problem_type": "regression"}),
        ("older", {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}),
        ("newer", {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}),
    ):
        as_is = Inside(marked(folder, tmp_path / name, **fields), SCORE)
        assert scores_of(as_is.told({"text_1": QUERY, "text_2": TEXTS})) == pytest.approx(logits, abs=1e-5)
    share = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}
    through = Inside(marked(folder, tmp_path / "sigmoid", **share), SCORE)
    assert scores_of(through.told({"text_1": QUERY, "text_2": TEXTS})) == pytest.approx(theirs, abs=1e-5)


def test_a_pair_has_the_number_of_predict(folder, tmp_path) -> None:
    number = marked(folder, tmp_path / "number", problem_type="regression")
    inside = Inside(number, SCORE)
    for text in TEXTS:
        (told,) = predict(PredictConfig(str(number), text=QUERY, pair=text), json=True)["answers"]
        assert scores_of(inside.told({"text_1": QUERY, "text_2": text})) == pytest.approx([told["score"]], abs=1e-5)


def test_one_text_has_its_number_too(folder, tmp_path) -> None:
    pipeline = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    theirs = [pipeline({"text": text})["score"] for text in TEXTS]
    reply = Inside(folder, CLASSIFY).told({"input": TEXTS})
    assert [one["probs"] for one in reply["data"]] == [[pytest.approx(score, abs=1e-5)] for score in theirs]
    assert {(one["label"], one["num_classes"]) for one in reply["data"]} == {("LABEL_0", 1)}
    number = marked(folder, tmp_path / "number", problem_type="regression")
    (told,) = predict(PredictConfig(str(number), text=TEXTS[0]), json=True)["answers"]
    (one,) = Inside(number, CLASSIFY).told({"input": TEXTS[0]})["data"]
    assert one["probs"] == [pytest.approx(told["score"], abs=1e-5)]


def test_documents_are_ranked_by_their_scores(folder) -> None:
    scores = scores_by_transformers(folder, QUERY, TEXTS)
    order = sorted(range(len(TEXTS)), key=lambda n: -scores[n])
    reply = Inside(folder, RERANK).told({"query": QUERY, "documents": [*TEXTS[:2], {"text": TEXTS[2]}, TEXTS[3]]})
    assert [one["index"] for one in reply["results"]] == order
    assert [one["relevance_score"] for one in reply["results"]] == pytest.approx([scores[n] for n in order], abs=1e-5)
    assert [one["document"] for one in reply["results"]] == [{"text": TEXTS[n]} for n in order]
    short = Inside(folder, RERANK).told({"query": QUERY, "documents": TEXTS, "top_n": 2, "return_documents": False})
    assert [(one["index"], "document" in one) for one in short["results"]] == [(n, False) for n in order[:2]]


def test_vectors_are_weighed_by_their_angle() -> None:
    inside = Inside(minilm_folder(), SCORE)
    query, *vectors = expected_vectors(minilm_folder(), [QUERY, *TEXTS])
    theirs = [float(query @ vector) for vector in vectors]
    assert scores_of(inside.told({"text_1": QUERY, "text_2": TEXTS})) == pytest.approx(theirs, abs=1e-5)
    assert theirs[0] > 0.5 > theirs[1]  # the control: the answer is nearest
    ranked = Inside(minilm_folder(), RERANK).told({"query": QUERY, "documents": TEXTS[::-1]})
    assert ranked["results"][0]["document"] == {"text": TEXTS[0]}


def test_a_pair_is_scored_the_same_alone_and_in_company(server) -> None:
    def score(n: int) -> float:
        body = {"text_1": f"Where is {n}?", "text_2": f"Ada {'old ' * (n % 9)} lives in {n}"}
        reply = server.post("/v1/score", body)
        assert reply.status_code == 200, reply.text
        return scores_of(reply.json())[0]

    alone = [score(n) for n in range(32)]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(score, range(32))) == pytest.approx(alone, abs=1e-5)
    assert len({round(one, 4) for one in alone}) > 4  # the control: each got its own
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        assert server.post(path, {"query": "a", "documents": ["b"]}).status_code == 200
    (card,) = server.client.get("/v1/models").json()["data"]
    assert card["task"] == "score"
    assert 'route="/v2/rerank"' in server.client.get("/metrics").text  # counted by its own name


def test_texts_that_are_too_long_together_are_refused_or_cut(server, folder) -> None:
    long = "old " * 80
    reply = server.post("/score", {"text_1": "Ada", "text_2": ["b", long]})
    assert (reply.status_code, error_of(reply)["code"]) == (400, "context_length_exceeded")
    assert "text_2[1]: expected at most 64 tokens" in error_of(reply)["message"]
    inside = Inside(folder, SCORE)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = float(torch.sigmoid(model(**tokenizer("Ada", long, return_tensors="pt", truncation=True)).logits))
    assert scores_of(inside.told({"text_1": "Ada", "text_2": long, "truncation": "auto"})) == [
        pytest.approx(theirs, abs=1e-5)
    ]
    reply = server.post("/score", {"text_1": "Ada", "text_2": ["b", long], "truncate_prompt_tokens": 12})
    assert reply.status_code == 200 and reply.headers["x-fledge-cut-tokens"] == "0,72"


def test_what_is_wrong_is_a_400_that_names_the_field(server) -> None:
    for path, body, param, says in (
        ("/score", {}, "text_1", "a string or an array of strings"),
        ("/score", {"text_1": "a", "text_2": []}, "text_2", "at least one"),
        ("/score", {"text_1": "a", "text_2": ["b", ""]}, "text_2", "text_2[1]"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_2", "expected 2 texts"),
        ("/score", {"text_1": "a", "text_2": "b", "use_activation": 1}, "use_activation", "true or false"),
        ("/score", {"text_1": "a", "text_2": "b", "truncation_side": "left", "truncation": "auto"}, "truncation_side",
         "the end is cut"),
        ("/rerank", {"documents": ["a"]}, "query", "not empty"),
        ("/rerank", {"query": "a", "documents": "b"}, "documents", "an array"),
        ("/rerank", {"query": "a", "documents": [{"title": "b"}]}, "documents", "documents[0]"),
        ("/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n", "at least 1"),
        ("/rerank", {"query": "a", "documents": ["b"] * 2049}, "documents", "2048"),
    ):  # fmt: skip
        reply = server.post(path, body)
        assert reply.status_code == 400, (str(body)[:200], reply.text[:300])
        assert error_of(reply)["param"] == param and says in error_of(reply)["message"], error_of(reply)
    reply = server.post("/v1/embeddings", {"input": "a"})
    assert error_of(reply)["code"] == "unsupported_model" and "/score or /rerank" in error_of(reply)["message"]
    assert server.post("/score", {"text_1": "a", "text_2": "b", "use_activation": None}).status_code == 200  # control
