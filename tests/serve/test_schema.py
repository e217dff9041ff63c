"""Replies against OpenAI's published schema: every required key there, every value of an allowed type."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fledge.serve.vector_replies import embedded
from tests.serve.running import CHAT, RunningServer

JSON_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


@pytest.fixture(scope="module")
def schemas(data_file: Callable[[str], Path]) -> dict[str, Any]:
    return read_schemas(data_file("api_openai/openapi.yaml.gz"))


@cache
def read_schemas(path: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    wanted = ("CreateChatCompletionResponse", "CreateChatCompletionStreamResponse", "CreateCompletionResponse", "Error",
              "CompletionUsage", "ChatCompletionTokenLogprob", "ChatCompletionResponseMessage", "Model",
              "ListModelsResponse", "ChatCompletionStreamResponseDelta", "ErrorResponse", "CreateEmbeddingResponse",
              "Embedding")  # fmt: skip
    text = gzip.decompress(path.read_bytes()).decode()
    found = {}
    for name in wanted:  # the whole file takes ten seconds to read: take the blocks of these names alone
        start = text.index(f"\n    {name}:\n") + 1
        lines = text[start:].split("\n")
        end = next(i for i, line in enumerate(lines[1:], 1) if line and not line.startswith("     "))
        found.update(yaml.load("\n".join(lines[:end]), Loader=loader))
    return found


def problems(value: Any, schema: dict[str, Any], schemas: dict[str, Any], place: str = "reply") -> list[str]:
    """What of `value` breaks `schema`, as far as its types, enums, required keys and references say."""
    if value is None and schema.get("nullable"):
        return []
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return problems(value, schemas[name], schemas, place) if name in schemas else []
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        found = [problems(value, choice, schemas, place) for choice in choices]
        return [] if any(not one for one in found) else found[0]
    kind = schema.get("type")
    if kind and (not isinstance(value, JSON_TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return [f"{place}: expected {kind}, got {value!r}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{place}: {value!r} is none of {schema['enum']}"]
    if isinstance(value, list):
        return [
            one
            for i, item in enumerate(value)
            for one in problems(item, schema.get("items", {}), schemas, f"{place}[{i}]")
        ]
    if not isinstance(value, dict):
        return []
    result = [f"{place}: {name} is missing" for name in schema.get("required", ()) if name not in value]
    for name, inner in schema.get("properties", {}).items():
        if name in value:
            result += problems(value[name], inner, schemas, f"{place}.{name}")
    return result


def test_the_checker_finds_what_is_wrong(schemas: dict[str, Any], scripted: RunningServer) -> None:
    """The control."""
    reply = scripted.chat(logprobs=True, top_logprobs=1).json()
    choice = reply["choices"][0]
    spoilt = [
        {**reply, "object": "chat"},
        {key: value for key, value in reply.items() if key != "created"},
        {**reply, "choices": [{**choice, "finish_reason": None}]},
        {**reply, "choices": [{key: value for key, value in choice.items() if key != "logprobs"}]},
        {**reply, "usage": {**reply["usage"], "total_tokens": "7"}},
        {**reply, "choices": [{**choice, "logprobs": {"content": [{"token": "x"}], "refusal": None}}]},
    ]
    for one in spoilt:
        assert problems(one, schemas["CreateChatCompletionResponse"], schemas)


def test_replies_match_the_schema(schemas: dict[str, Any], scripted: RunningServer) -> None:
    for fields in ({}, {"n": 2, "logprobs": True, "top_logprobs": 2}, {"max_tokens": 1}):
        assert problems(scripted.chat(**fields).json(), schemas["CreateChatCompletionResponse"], schemas) == []
        body = {**CHAT, **fields, "stream_options": {"include_usage": True}}
        for chunk in scripted.stream("/v1/chat/completions", body):
            assert problems(chunk, schemas["CreateChatCompletionStreamResponse"], schemas) == []
    for fields in ({}, {"n": 2, "logprobs": 2}):
        reply = scripted.complete(**fields).json()
        assert problems(reply, schemas["CreateCompletionResponse"], schemas) == []
    assert problems(scripted.client.get("/v1/models").json(), schemas["ListModelsResponse"], schemas) == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/nothing", None),
        ("GET", "/v1/completions", None),
        ("POST", "/v1/completions", {"n": 0}),
        ("POST", "/v1/completions", None),
        ("POST", "/v1/chat/completions", {**CHAT, "model": "none"}),
        ("POST", "/v1/chat/completions", {**CHAT, "max_tokens": 10**6, "stream": True}),
    ],
)
def test_errors_match_the_schema(
    schemas: dict[str, Any], scripted: RunningServer, method: str, path: str, body: Any
) -> None:
    reply = scripted.client.request(method, path, json=body)
    assert reply.status_code >= 400
    assert problems(reply.json(), schemas["ErrorResponse"], schemas) == []


def test_a_list_of_embeddings(schemas: dict[str, Any]) -> None:
    body = embedded("model", np.eye(3, dtype=np.float32), 7, "float", 2, unit=True)
    wanted = schemas["CreateEmbeddingResponse"]
    assert problems(body, wanted, schemas) == []
    for name in ("object", "data", "model", "usage"):  # the control
        assert problems({key: body[key] for key in body if key != name}, wanted, schemas)
    assert problems({**body, "data": [{**body["data"][0], "embedding": ["a"]}]}, wanted, schemas)
