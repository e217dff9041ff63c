"""What an answer must match, as a request says it: OpenAI's `response_format`, or `structured_outputs`, `guided_json`,
`guided_regex`, `guided_choice`, `guided_grammar`, the names other servers take."""

from __future__ import annotations

import json
from typing import Any

from fledge.engine.constraint import Constraint
from fledge.errors import RequestError
from fledge.serve.fields import Fields, wrong

KINDS = ("json", "regex", "choice", "grammar")


def read_constraint(fields: Fields) -> Constraint | None:
    """The one constraint of a request, checked as far as it can be without a model. Raises RequestError."""
    given = [
        constraint
        for constraint in (
            read_response_format(fields.mapping("response_format")),
            *(read_kind(kind, fields.tree.get(f"guided_{kind}"), f"guided_{kind}") for kind in KINDS),
            *read_structured_outputs(fields.mapping("structured_outputs")),
        )
        if constraint is not None
    ]
    if len(given) > 1:
        first, second = given[0].name, given[1].name
        raise RequestError(f"{second}: expected one constraint, got {first} beside it", second)
    return given[0].validated() if given else None


def read_response_format(form: dict[str, Any]) -> Constraint | None:
    """{"type": "text"}, {"type": "json_object"} (with "schema" it is llama.cpp's way to say a schema) or {"type":
    "json_schema", "json_schema": {name, schema, strict}}."""
    name = "response_format"
    kind = form.get("type")
    if not form or kind == "text":
        return None
    if kind == "json_object":
        schema = form.get("schema")
        return Constraint("json_object", name=name) if schema is None else read_schema(schema, f"{name}.schema")
    if kind != "json_schema":
        raise wrong(f"{name}.type", "text, json_object or json_schema", kind)
    inner = form.get("json_schema")
    if not isinstance(inner, dict):
        raise wrong(f"{name}.json_schema", "an object with name and schema", inner)
    if not isinstance(inner.get("name", ""), str):
        raise wrong(f"{name}.json_schema.name", "a string", inner["name"])
    if not isinstance(inner.get("strict"), bool | None):  # the answer matches the schema either way
        raise wrong(f"{name}.json_schema.strict", "true or false", inner["strict"])
    return read_schema(inner.get("schema"), f"{name}.json_schema.schema")


def read_schema(schema: Any, place: str) -> Constraint:
    if not isinstance(schema, dict):
        raise wrong(place, "an object", schema)
    return Constraint("json_schema", json.dumps(schema), place.partition(".")[0])


def read_structured_outputs(form: dict[str, Any]) -> list[Constraint | None]:
    """vLLM's newer name: {"json"}, {"regex"}, {"choice"}, {"grammar"} or {"json_object": true}."""
    name = "structured_outputs"
    for key, value in form.items():
        if key not in (*KINDS, "json_object") and value not in (None, False):
            raise RequestError(f"{name}.{key[:40]}: not supported by this server; leave it out", name)
    any_object = form.get("json_object")
    if not isinstance(any_object, bool | None):
        raise wrong(f"{name}.json_object", "true or false", any_object)
    found = [read_kind(kind, form.get(kind), f"{name}.{kind}") for kind in KINDS]
    return [*found, Constraint("json_object", name=name) if any_object else None]


def read_kind(kind: str, value: Any, place: str) -> Constraint | None:
    """One of KINDS by its value, None where that is null; a schema is an object or its JSON text."""
    if value is None:
        return None
    name = place.partition(".")[0]
    if kind == "json":
        if not isinstance(value, dict | str):
            raise wrong(place, "a JSON schema", value)
        return Constraint("json_schema", value if isinstance(value, str) else json.dumps(value), name)
    if kind == "choice":
        if not isinstance(value, list):
            raise wrong(place, "an array", value)
        for i, text in enumerate(value):
            if not isinstance(text, str):
                raise wrong(f"{place}[{i}]", "a string", text)
        return Constraint("choice", tuple(value), name)
    if not isinstance(value, str):
        raise wrong(place, "a string", value)
    return Constraint(kind, value, name)  # type: ignore[arg-type]
