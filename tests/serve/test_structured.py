"""Answers under a constraint over HTTP: OpenAI's response_format, the guided_* fields, and who pays for a bad one."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from tests.serve.running import RunningServer, running

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 14}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running("stub:context_tokens=2048") as started:
        yield started


def form(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "trip", "schema": schema, **fields}}


def content(server: RunningServer, **fields: Any) -> str:
    reply = server.chat(**{"max_tokens": 1500, **fields}).json()
    assert reply["choices"][0]["finish_reason"] == "stop", reply
    return reply["choices"][0]["message"]["content"]


def test_response_format_gives_an_answer_of_the_schema_whole_and_streamed(server: RunningServer) -> None:
    said = content(server, response_format=form(SCHEMA, strict=True), seed=4)
    jsonschema.validate(json.loads(said), SCHEMA)
    fields = {"response_format": form(SCHEMA), "seed": 4, "max_tokens": 1500}
    body = server.chat(stream=True, **fields).text
    frames = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
    assert "".join(frame["choices"][0]["delta"].get("content") or "" for frame in frames) == said


def test_any_object_text_and_the_guided_fields(server: RunningServer) -> None:
    brace = {str(ord("}")): 8, str(ord('"')): 8}  # random logits hardly ever close an object
    assert isinstance(json.loads(content(server, response_format={"type": "json_object"}, logit_bias=brace)), dict)
    assert server.chat(response_format={"type": "text"}, max_tokens=3).json()["usage"]["completion_tokens"] <= 3
    jsonschema.validate(json.loads(content(server, guided_json=SCHEMA)), SCHEMA)
    assert content(server, guided_choice=["left", "right"]) in ("left", "right")
    assert content(server, guided_regex="[ab]{3}") in {a + b + c for a in "ab" for b in "ab" for c in "ab"}
    assert content(server, guided_grammar='start: "x" | "(" start ")"').count("x") == 1
    reply = server.complete(guided_choice=["yes", "no"], typical_p=0.9).json()
    assert reply["choices"][0]["text"] in ("yes", "no")


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"json": SCHEMA, "regex": None, "disable_any_whitespace": False}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
    ],
)
def test_a_schema_under_another_server_s_name_is_not_ignored(server: RunningServer, fields: dict[str, Any]) -> None:
    jsonschema.validate(json.loads(content(server, **fields)), SCHEMA)
    assert content(server, structured_outputs={"choice": ["left", "right"]}) in ("left", "right")
    reply = server.complete(structured_outputs={"grammar": 'start: "x"'}).json()
    assert reply["choices"][0]["text"] == "x"


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs", "structural_tag: not supported"),
        ({"structured_outputs": {"regex": 1}}, "structured_outputs", "structured_outputs.regex: expected a string"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "expected one constraint"),
        ({"structured_outputs": {"json_object": 1}}, "structured_outputs", "true or false"),
        ({"response_format": {"type": "json_object", "schema": 1}}, "response_format", "response_format.schema"),
        ({"response_format": {"type": "xml"}}, "response_format", "text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "an object with name and schema"),
        ({"response_format": form("x")}, "response_format", "response_format.json_schema.schema"),
        ({"response_format": form(SCHEMA, strict="yes")}, "response_format", "true or false"),
        ({"response_format": form({"$ref": "http://127.0.0.1/x"})}, "response_format", "into the schema itself"),
        ({"response_format": form({"type": "nothing"})}, "response_format", "can't be used"),
        ({"response_format": "json"}, "response_format", "an object"),
        ({"guided_regex": "("}, "guided_regex", "can't be used"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", "guided_regex beside it"),
        ({"guided_choice": []}, "guided_choice", "1 to 4096 texts"),
        ({"guided_choice": [1]}, "guided_choice", "a string"),
        ({"guided_json": 3}, "guided_json", "a JSON schema"),
        ({"typical_p": 0}, "typical_p", "above 0"),
        ({"guided_grammar": "start: gone"}, "guided_grammar", "can't be used"),
    ],
)
def test_a_bad_constraint_is_a_400_that_names_its_field(
    server: RunningServer, fields: dict[str, Any], param: str, says: str
) -> None:
    for stream in (False, True):
        response = server.chat(stream=stream, **fields)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["param"] == param and error["type"] == "invalid_request_error"
        assert says in error["message"]


def test_a_costly_constraint_is_refused_while_another_answer_goes_on() -> None:
    with running("stub:delay_ms=5&context_tokens=2048") as server:
        chunks: list[str] = []

        def read() -> None:
            fields = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": 1900}
            fields |= {"logit_bias": {"256": -100}, "ignore_eos": True}
            with server.client.stream("POST", "/v1/chat/completions", json=fields) as response:
                for line in response.iter_lines():
                    chunks.append(line)

        reading = threading.Thread(target=read)
        reading.start()
        while len(chunks) < 10:
            reading.join(0.01)
        before = len(chunks)
        prime = {"type": "integer", "multipleOf": 99999989}
        response = server.chat(response_format=form(prime))
        assert response.status_code == 400 and "takes more than" in response.json()["error"]["message"]
        assert len(chunks) > before + 20  # it was never held up for the second that the trial took
        assert content(server, guided_choice=["ok"]) == "ok"
        reading.join()
        assert chunks[-2].strip() == "data: [DONE]" or "[DONE]" in chunks[-1]


def test_compilations_that_nobody_waits_for_are_not_done(server: RunningServer) -> None:
    """Callers who leave while costly constraints wait: the next one's is compiled at once, and the engine lives."""
    pid = server.engine().pid
    costly = [{"type": "integer", "multipleOf": 1_000_003 + 2 * k} for k in range(40)]

    def leave(schema: Any) -> None:
        with contextlib.suppress(httpx.TimeoutException):
            server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 4, "guided_json": schema}, timeout=0.7)

    threads = [threading.Thread(target=leave, args=(schema,)) for schema in costly]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    began = time.monotonic()
    assert content(server, guided_choice=["at once"]) == "at once"
    assert time.monotonic() - began < 15  # all of them take a second of CPU time each
    assert server.engine().pid == pid


def test_all_tokens_of_an_answer_that_its_constraint_ends_have_log_probabilities(server: RunningServer) -> None:
    for fields in ({"guided_choice": ["yes"]}, {"guided_regex": "[a-c]{3}"}, {"response_format": form({"const": 17})}):
        choice = server.chat(max_tokens=20, logprobs=True, return_token_ids=True, **fields).json()["choices"][0]
        tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
        assert "".join(tokens) == choice["message"]["content"] and len(tokens) == len(choice["token_ids"]), fields
        fields |= {"max_tokens": 20, "logprobs": 1, "seed": 3}
        plain = server.complete("Hi", **fields).json()["choices"][0]
        assert "".join(plain["logprobs"]["tokens"]) == plain["text"]
        stopped = server.complete("Hi", stop=plain["text"][-1], **fields).json()["choices"][0]
        assert (
            "".join(stopped["logprobs"]["tokens"]) == stopped["text"] == plain["text"].partition(plain["text"][-1])[0]
        )


def test_prompts_that_were_refused_are_not_counted_as_read(server: RunningServer) -> None:
    before = server.metric("fledge_prompt_tokens_total")
    assert server.complete("a prompt of some length", guided_regex="(").status_code == 400
    assert server.metric("fledge_prompt_tokens_total") == before
    assert server.complete("abc", max_tokens=1).status_code == 200
    assert server.metric("fledge_prompt_tokens_total") > before
