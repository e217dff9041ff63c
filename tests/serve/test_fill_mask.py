"""/fill-mask against transformers' pipeline and `fledge fill`, beside vectors of the same model, and its errors."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from fledge.engine.config import FillConfig
from fledge.engine.fill import fill
from fledge.serve.errors import ApiError
from fledge.serve.task_verbs import FILL_MASK
from tests.sentences import tiny_classifier
from tests.serve.running import RunningServer, error_of, running
from tests.serve.tiny_heads import Inside, tiny

HEAD = "MaskedLM"
TEXTS = {
    "Bert": ["The [MASK] is old.", "[MASK] and [MASK] went to the sea; it's [MASK] .", "A quiet [MASK], naïve café."],
    "Roberta": ["The<mask> is old.", "<mask> and <mask> live in Oslo.", "Who painted the <mask>?"],
}


@pytest.fixture(scope="module", params=TEXTS)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("masked") / family.lower(), HEAD, family)


@pytest.fixture(scope="module")
def inside(folder: Path) -> Inside:
    return Inside(folder, FILL_MASK)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(str(tiny(tmp_path_factory.mktemp("served") / "bert", HEAD)), "engine.threads=1") as started:
        yield started


def asked(server: RunningServer, inputs: Any, **parameters: Any) -> Any:
    reply = server.post("/fill-mask", {"inputs": inputs, "parameters": parameters})
    assert reply.status_code == 200, reply.text
    return reply.json()


def flat(found: Any) -> list[dict[str, Any]]:
    return [found] if isinstance(found, dict) else [one for part in found for one in flat(part)]


def test_guesses_are_those_of_the_pipeline_in_its_shape(inside, folder, family) -> None:
    texts = TEXTS[family]
    pipeline = transformers.pipeline("fill-mask", model=str(folder))
    for inputs, parameters in (
        (texts[0], {}),
        (texts[1], {"top_k": 3}),
        ([texts[0], texts[2]], {"top_k": 2}),
        (texts, {}),
    ):
        ours, theirs = inside.asked(inputs, **parameters), pipeline(inputs, **parameters)
        assert [len(one) for one in ours] == [len(one) for one in theirs]
        assert len(flat(ours)) == len(flat(theirs))
        for one, other in zip(flat(ours), flat(theirs), strict=True):
            assert {**one, "score": 0} == {**other, "score": 0}
            assert one["score"] == pytest.approx(other["score"], rel=1e-4)
    # the control: another sentence around the mask gives other guesses
    changed = inside.asked(texts[0].replace("old", "new"))
    assert [one["score"] for one in changed] != pytest.approx(
        [one["score"] for one in inside.asked(texts[0])], rel=1e-4
    )


def test_guesses_are_those_of_the_verb(inside, folder, family) -> None:
    found = fill(FillConfig(str(folder), text=TEXTS[family][1], top_k=4), json=True)["texts"][0]
    ours = inside.asked(TEXTS[family][1], top_k=4)
    assert [[one["token"] for one in mask] for mask in ours] == [[g["token_id"] for g in m] for m in found["masks"]]
    for mask, their in zip(ours, found["masks"], strict=True):
        assert [one["score"] for one in mask] == pytest.approx([guess["probability"] for guess in their], abs=1e-6)


def test_masks_and_vectors_share_passes_and_neither_changes_by_the_other(server) -> None:
    texts = [f"{'old ' * (1 + n % 9)}{n}" for n in range(24)]
    masked = [f"{'old ' * (n % 9)}{TEXTS['Bert'][0]} {n}" for n in range(24)]
    vectors = [server.post("/v1/embeddings", {"input": text}).json()["data"][0]["embedding"] for text in texts]
    guesses = [asked(server, text) for text in masked]
    rows, passes = server.metric("fledge_engine_rows_total"), server.metric("fledge_engine_passes_total")
    with ThreadPoolExecutor(48) as pool:
        others = [pool.submit(server.post, "/v1/embeddings", {"input": text}) for text in texts]
        together = list(pool.map(lambda text: asked(server, text), masked))
        found = [one.result().json()["data"][0]["embedding"] for one in others]
    assert np.abs(np.array(found) - np.array(vectors)).max() < 1e-6
    for one, other in zip(together, guesses, strict=True):
        assert [guess["token"] for guess in one] == [guess["token"] for guess in other]
        assert [guess["score"] for guess in one] == pytest.approx([guess["score"] for guess in other], rel=1e-4)
    scores = [one[0]["score"] for one in together]
    assert scores[0] != pytest.approx(scores[1], rel=1e-4)  # the control: each got its own
    server.post("/v1/embeddings", {"input": "a"})
    n_rows = server.metric("fledge_engine_rows_total") - rows
    assert n_rows >= 48 and server.metric("fledge_engine_passes_total") - passes < n_rows / 2


def test_what_is_wrong_is_a_400_that_names_the_field(server) -> None:
    mask = "[MASK]"
    for body, param, code, says in (
        ({}, "inputs", None, "expected a string or an array of strings"),
        ({"inputs": []}, "inputs", None, "at least one"),
        ({"inputs": ""}, "inputs", None, "not empty"),
        ({"inputs": "none"}, "inputs", None, f"expected {mask}"),
        ({"inputs": [f"a {mask}", "none"]}, "inputs", None, "inputs[1]: expected"),
        ({"inputs": f"{mask} " * 80}, "inputs", "context_length_exceeded", "at most 64 tokens"),
        ({"inputs": mask, "parameters": {"top_k": 0}}, "top_k", None, "1..1000"),
        ({"inputs": mask, "parameters": {"topk": 2}}, "topk", "unknown_field", "did you mean top_k"),
        ({"inputs": mask, "parameters": {"targets": ["a"]}}, "targets", "unsupported_parameter", "not supported"),
        ({"inputs": mask, "parameters": 3}, "parameters", None, "an object"),
        ({"inputs": mask, "parameters": {"mood": 1}}, "mood", "unsupported_parameter", "not supported"),
        ({"inputs": mask, "top_k": 2}, "top_k", None, "expected inside of parameters"),
        ({"inputs": mask, "parameters": {"truncation": "auto"}}, "truncation", None, "expected beside parameters"),
        ({"inputs": "so " * 80 + mask, "truncation": "auto"}, "inputs", None, "in the 19 tokens that were cut off"),
        ({"inputs": "so " * 80, "truncation": "auto"}, "inputs", None, "in the text, found none"),
        ({"inputs": mask + "w" * 2_000_000}, "inputs", "context_length_exceeded", "inputs: expected at most 64 tokens"),
        ({"inputs": [mask * 60] * 5, "parameters": {"top_k": 100}}, "top_k", None, "at most 1000000"),
        ({"inputs": mask, "overflow": "window"}, "overflow", "unsupported_parameter", "refuse or truncate"),
    ):
        reply = server.post("/fill-mask", body)
        assert reply.status_code == 400, (body, reply.text)
        error = error_of(reply)
        assert (error["param"], error["code"]) == (param, code) and says in error["message"], error
    cut = server.post("/fill-mask", {"inputs": f"{mask} " + "so " * 80, "truncation": "auto"})
    assert cut.status_code == 200 and int(cut.headers["x-fledge-cut-tokens"]) > 0
    left = {"inputs": "so " * 80 + mask, "truncation": "auto", "truncation_side": "left"}
    assert server.post("/fill-mask", left).status_code == 200
    nothing = {"inputs": mask, "parameters": {"targets": None, "mood": None, "top_k": None}, "vendor": 3}
    assert len(server.post("/fill-mask", nothing).json()) == 5  # null is absent, and what stands outside is ignored


def test_models_that_fill_no_masks_say_what_they_do(tmp_path: Path) -> None:
    mood = Inside(tiny_classifier(tmp_path / "mood"), FILL_MASK)
    with pytest.raises(ApiError, match="does not do that .*/classify") as refused:
        mood.asked("a [MASK]")
    assert (refused.value.status, refused.value.code) == (400, "unsupported_model")
