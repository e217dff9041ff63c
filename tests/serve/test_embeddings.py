"""/v1/embeddings on the real all-MiniLM-L6-v2: OpenAI's client, transformers' vectors, typed errors, shared passes."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import torch
import transformers

from fledge.engine.encoder import load_encoder, load_vectors
from fledge.engine.vector_config import VectorConfig
from fledge.errors import ConfigError, RequestError
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import save_model
from fledge.model.init import initialise
from fledge.model.sentence import SentenceConfig, SentenceModel, save_sentence_model
from fledge.model.transformer import build
from fledge.serve.config import ServeConfig
from fledge.serve.errors import ApiError
from fledge.serve.served import open_model
from fledge.serve.service import Service
from fledge.serve.vector_rows import read_rows
from fledge.serve.vector_wire import read_embeddings
from fledge.text.tokenizer import byte_level
from tests.sentences import expected_vectors, minilm_folder
from tests.serve.running import CHAT, RunningServer, error_of, running

TEXTS = [
    "The cat sits on the mat.",
    "Stock prices fell sharply.",
    "Żółw, naïve café — 日本語 🐢!",
    "A feline",
    "x " * 90,
]
WIDTH, LIMIT = 384, 256


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(str(minilm_folder()), "engine.threads=1", "name=minilm") as started:
        yield started


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0, http_client=http) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return expected_vectors(minilm_folder(), TEXTS).numpy()


@pytest.fixture(scope="module")
def tokenizer() -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(minilm_folder())


def embed(server: RunningServer, given: object, **fields: object) -> httpx.Response:
    return server.post("/v1/embeddings", {"input": given, **fields})


def vectors_of(reply: httpx.Response) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    return np.array([one["embedding"] for one in reply.json()["data"]])


def test_the_official_client_gets_transformers_vectors_in_order(client, expected, tokenizer) -> None:
    for encoding in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        reply = client.embeddings.create(model="minilm", input=TEXTS, user="someone", **encoding)
        assert [one.index for one in reply.data] == list(range(len(TEXTS))) and reply.object == "list"
        found = [one.embedding for one in reply.data]
        if "base64" in encoding.values():  # asked for by name, the client hands the text on
            found = [np.frombuffer(base64.b64decode(one), "<f4") for one in found]  # type: ignore[arg-type]
        assert np.abs(np.array(found) - expected).max() < 1e-6 * 5
        assert np.abs(np.array(found)[::-1] - expected).max() > 0.1  # the control: order matters
    n_tokens = sum(len(ids) for ids in tokenizer(TEXTS)["input_ids"])
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == n_tokens
    one = client.embeddings.create(model="minilm", input=TEXTS[0])
    assert np.abs(np.array(one.data[0].embedding) - expected[0]).max() < 5e-6
    card = client.models.retrieve("minilm").model_dump()
    assert (card["task"], card["chat"], card["max_model_len"]) == ("embed", False, LIMIT)
    with pytest.raises(openai.BadRequestError) as bad:
        client.embeddings.create(model="minilm", input="")
    assert bad.value.param == "input"


def test_token_ids_are_used_as_they_are(server, expected, tokenizer) -> None:
    ids = tokenizer(TEXTS)["input_ids"]
    assert np.abs(vectors_of(embed(server, ids)) - expected).max() < 5e-6
    assert np.abs(vectors_of(embed(server, ids[0])) - expected[:1]).max() < 5e-6
    bare = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    without = vectors_of(embed(server, TEXTS[0], add_special_tokens=False))
    assert np.abs(vectors_of(embed(server, bare)) - without).max() < 1e-6
    assert np.abs(without - expected[:1]).max() > 1e-3  # the control: the frame counts


def test_dimensions_cut_the_vector_and_scale_it_to_length_one(server, expected) -> None:
    short = vectors_of(embed(server, TEXTS, dimensions=64))
    by_hand = expected[:, :64] / np.linalg.norm(expected[:, :64], axis=1, keepdims=True)
    assert short.shape == (len(TEXTS), 64) and np.abs(short - by_hand).max() < 1e-5
    assert np.abs(short - expected[:, :64]).max() > 1e-2  # the control: without scaling it is another
    assert vectors_of(embed(server, TEXTS, dimensions=WIDTH)).shape[1] == WIDTH


@pytest.mark.parametrize(
    ("fields", "param", "code", "says"),
    [
        ({}, "input", None, "got null"),
        ({"input": 3}, "input", None, "a string"),
        ({"input": []}, "input", None, "empty array"),
        ({"input": ""}, "input", None, "empty text"),
        ({"input": ["a", ""]}, "input", None, "input[1]"),
        ({"input": ["a", 3]}, "input", None, "input[1]: expected a string"),
        ({"input": [1, "a"]}, "input", None, "input[1]: expected a token id"),
        ({"input": [[1], []]}, "input", None, "input[1]"),
        ({"input": [True]}, "input", None, "a token id"),
        ({"input": [10**7]}, "input", None, "token ids in 0..30521"),
        ({"input": [[1], [-1]]}, "input", None, "input[1]: expected token ids"),
        ({"input": ["a"] * 2049}, "input", None, "at most 2048 inputs"),
        ({"input": "word " * 300}, "input", "context_length_exceeded", "at most 256 tokens, got 302"),
        ({"input": ["a", [1] * 3]}, "input", None, "input[1]: expected a string"),
        ({"input": [1] * 257}, "input", "context_length_exceeded", "at most 256 tokens, got 257"),
        ({"input": [[7] * 256] * 1172}, "input", "context_length_exceeded", "at most 300000 tokens in all"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", None, "float"),
        ({"input": "a", "encoding_format": 1}, "encoding_format", None, "a string"),
        ({"input": "a", "dimensions": 0}, "dimensions", None, "at least 1"),
        ({"input": "a", "dimensions": 385}, "dimensions", None, "at most the 384"),
        ({"input": "a", "dimensions": "64"}, "dimensions", None, "an integer"),
        ({"input": "a", "user": 1}, "user", None, "a string"),
        ({"input": "a", "model": 1}, "model", None, "a string"),
        ({"input": "a", "dimension": 64}, "dimension", "unknown_field", "did you mean dimensions"),
        ({"input": "a", "truncation": "maybe"}, "truncation", None, "auto"),
        ({"input": "a", "overflow": "window"}, "overflow", "unsupported_parameter", "refuse or truncate"),
        ({"input": "\ud800"}, "input", None, "surrogate"),
    ],
)
def test_what_is_wrong_is_a_400_that_names_the_field(server, fields, param, code, says) -> None:
    headers = {"content-type": "application/json"}
    reply = server.client.post("/v1/embeddings", content=json.dumps(fields), headers=headers)
    assert reply.status_code == 400, reply.text
    error = error_of(reply)
    assert (error["param"], error["code"]) == (param, code) and says in error["message"]


def test_a_long_text_loses_its_end_where_that_is_asked_for(server, tokenizer) -> None:
    text = " ".join(f"word {n}" for n in range(300))
    expected = expected_vectors(minilm_folder(), [text, TEXTS[0]]).numpy()
    reply = embed(server, [text, TEXTS[0]], truncation="auto")
    assert np.abs(vectors_of(reply) - expected).max() < 5e-6  # transformers cuts to 256 too
    n_lost = len(tokenizer(text)["input_ids"]) - LIMIT
    assert reply.headers["x-fledge-cut-tokens"] == f"{n_lost},0"
    assert reply.json()["usage"]["prompt_tokens"] == LIMIT + len(tokenizer(TEXTS[0])["input_ids"])
    end = vectors_of(embed(server, text, truncation="auto", truncation_side="left"))
    assert np.abs(end - expected[:1]).max() > 1e-2  # the control: the other side is another text
    short = embed(server, text, truncate_prompt_tokens=10)
    assert short.json()["usage"]["prompt_tokens"] == 10
    assert np.abs(vectors_of(short) - expected_vectors(minilm_folder(), [text], 10).numpy()).max() < 5e-6
    assert "x-fledge-cut-tokens" not in embed(server, TEXTS, truncation="auto").headers


def test_requests_at_the_same_time_share_passes_and_none_changes_by_its_company(server) -> None:
    texts = [f"{'film ' * (1 + n % 37)} number {n}" for n in range(48)]
    alone = np.concatenate([vectors_of(embed(server, text)) for text in texts])
    rows, passes = server.metric("fledge_engine_rows_total"), server.metric("fledge_engine_passes_total")
    with ThreadPoolExecutor(48) as pool:
        together = np.concatenate([vectors_of(one) for one in pool.map(lambda text: embed(server, text), texts)])
    assert np.abs(alone - together).max() < 1e-6
    assert np.abs(alone - np.roll(together, 1, 0)).max() > 1e-2  # the control: each got its own
    server.post("/v1/embeddings", {"input": "a"})  # figures come with a later frame at the latest
    n_rows = server.metric("fledge_engine_rows_total") - rows
    assert n_rows >= 48 and server.metric("fledge_engine_passes_total") - passes < n_rows / 2


def test_verbs_that_the_model_lacks_are_a_400_that_names_its_own(server) -> None:
    for path, body in (
        ("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "Hi"}), ("/classify", {"input": "Hi"}),
    ):  # fmt: skip
        reply = server.post(path, body)
        error = error_of(reply)
        assert (reply.status_code, error["code"]) == (400, "unsupported_model"), reply.text
        assert "/v1/embeddings" in error["message"]
    missing = embed(server, "a", model="other")
    assert missing.status_code == 404 and error_of(missing)["code"] == "model_not_found"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = byte_level()
    shape = ShapeConfig("llama", width=32, layers=2, heads=4, context_tokens=64, vocab_size=words.vocab_size)
    folder = tmp_path_factory.mktemp("decoder") / "tiny"
    save_model(initialise(build(family("llama").build(shape), "cpu"), 5), folder, words)
    return folder


def test_a_decoder_refuses_vectors_unless_a_pooling_is_stated(decoder: Path, tmp_path: Path) -> None:
    config = ServeConfig(str(decoder))
    with pytest.raises(ApiError, match="does not do that .*/v1/completions") as refused:
        Service(config, open_model(config)).check_serves("embed")
    assert (refused.value.status, refused.value.code) == (400, "unsupported_model")
    pooled = replace(config, vectors=VectorConfig(pooling="lasttoken"))
    Service(pooled, open_model(pooled)).check_serves("embed")
    with pytest.raises(ConfigError, match="pooling: expected one for tiny, which writes text"):
        load_vectors(decoder)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(decoder)
    with pytest.raises(ConfigError, match="pooling: expected one for run, which"):  # the run's name, not "model"
        load_vectors(tmp_path / "run")
    encoder, model = load_encoder(decoder, "lasttoken"), transformers.AutoModel.from_pretrained(decoder).eval()
    for text in ("Hi there", "You"):
        ids = list(byte_level().frame(byte_level().encode(text)).ids)
        with torch.no_grad():
            state = model(torch.tensor([ids])).last_hidden_state[0, -1]
        assert (torch.nn.functional.normalize(state, dim=0) - encoder.numbers([ids])[0]).abs().max() < 1e-5


def test_prompt_lowering_and_a_model_in_a_folder_inside_are_the_sentence_models_own(tmp_path: Path) -> None:
    words, folder = byte_level(), tmp_path / "sentences"
    shape = ShapeConfig("bert", width=32, layers=1, heads=4, context_tokens=64, vocab_size=words.vocab_size)
    body = initialise(build(family("bert").build(shape), "cpu"), 5)
    stated = SentenceConfig(("cls",), max_tokens=24, lower=True, prompts={"q": "Query: "}, default_prompt="q")
    save_sentence_model(SentenceModel(body, words, stated), folder)
    inside = folder / "0_Transformer"
    inside.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).rename(inside / name)
    steps = json.loads((folder / "modules.json").read_text())
    steps[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(steps))
    config, encoder = ServeConfig(str(folder)), load_encoder(folder)
    service = Service(config, open_model(config))
    service.engine.facts = {**encoder.facts, "context_tokens": encoder.facts["max_tokens"]}
    assert (service.model.name, service.model.purpose) == ("sentences", "embed") and encoder.sentences is not None
    given = ["A Film", "Quiet"]
    rows = asyncio.run(read_rows(service, read_embeddings({"input": given})))
    assert [list(ids) for ids in rows.ids] == encoder.sentences.ids(given) and rows.n_cut == (0, 0)
    assert words.decode(list(rows.ids[0])) == "query: a film"
    assert [list(ids) for ids in rows.ids] != encoder.sentences.ids(given, "")  # the control: the prompt counts
    long = asyncio.run(read_rows(service, read_embeddings({"input": "B" * 30, "truncation": "auto"})))
    assert [list(ids) for ids in long.ids] == encoder.sentences.ids(["B" * 30]) and long.n_cut == (13,)
    with pytest.raises(RequestError, match="at most 24 tokens, got 37"):
        asyncio.run(read_rows(service, read_embeddings({"input": "B" * 30})))
