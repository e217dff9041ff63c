"""What an answer must match, as a request says it: OpenAI's `response_format`, or `guided_json`, `guided_regex`,
`guided_choice`, `guided_grammar`, the names other servers take."""

from __future__ import annotations

import json
from typing import Any

from fledge.engine.constraint import Constraint
from fledge.errors import RequestError
from fledge.serve.fields import Fields, wrong


def read_constraint(fields: Fields) -> Constraint | None:
    """The one constraint of a request, checked as far as it can be without a model. Raises RequestError."""
    given = [
        constraint
        for constraint in (
            read_response_format(fields.mapping("response_format")),
            read_guided_json(fields.tree.get("guided_json")),
            read_guided_text(fields, "regex"),
            read_guided_text(fields, "grammar"),
            read_guided_choice(fields.array("guided_choice")) if fields.has("guided_choice") else None,
        )
        if constraint is not None
    ]
    if len(given) > 1:
        first, second = given[0].name, given[1].name
        raise RequestError(f"{second}: expected one constraint, got {first} beside it", second)
    return given[0].validated() if given else None


def read_response_format(form: dict[str, Any]) -> Constraint | None:
    """{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {name, schema, strict}}."""
    name = "response_format"
    kind = form.get("type")
    if not form or kind == "text":
        return None
    if kind == "json_object":
        return Constraint("json_object", name=name)
    if kind != "json_schema":
        raise wrong(f"{name}.type", "text, json_object or json_schema", kind)
    inner = form.get("json_schema")
    if not isinstance(inner, dict):
        raise wrong(f"{name}.json_schema", "an object with name and schema", inner)
    if not isinstance(inner.get("name", ""), str):
        raise wrong(f"{name}.json_schema.name", "a string", inner["name"])
    if not isinstance(inner.get("strict"), bool | None):  # the answer matches the schema either way
        raise wrong(f"{name}.json_schema.strict", "true or false", inner["strict"])
    schema = inner.get("schema")
    if not isinstance(schema, dict):
        raise wrong(f"{name}.json_schema.schema", "an object", schema)
    return Constraint("json_schema", json.dumps(schema), name)


def read_guided_json(schema: Any) -> Constraint | None:
    """A schema, as an object or as its JSON text."""
    if schema is None:
        return None
    if not isinstance(schema, dict | str):
        raise wrong("guided_json", "a JSON schema", schema)
    return Constraint("json_schema", schema if isinstance(schema, str) else json.dumps(schema), "guided_json")


def read_guided_text(fields: Fields, kind: str) -> Constraint | None:
    text = fields.text(f"guided_{kind}")
    return None if text is None else Constraint(kind, text, f"guided_{kind}")  # type: ignore[arg-type]


def read_guided_choice(texts: list[Any]) -> Constraint:
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise wrong(f"guided_choice[{i}]", "a string", text)
    return Constraint("choice", tuple(texts), "guided_choice")
