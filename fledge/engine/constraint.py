"""`Constraint`: what an answer's text must match. Plain data and the checks that need no automaton; imports no torch.

fledge/engine/constrain.py turns it into an automaton over a tokenizer's tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from fledge.errors import RequestError

Kind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]

KINDS = ("json_schema", "json_object", "regex", "choice", "grammar")
MAX_SOURCE_BYTES = 128 << 10
MAX_CHOICE_TEXTS = 4096
MAX_REGEX_CHARACTERS = 16 << 10
MAX_SCHEMA_DEPTH = 64
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


@dataclass(frozen=True)
class Constraint:
    """The whole answer, up to its stop token, matches this; an answer cut by `max_tokens` is a beginning of one that
    would. Nothing before it and nothing after it, so a JSON document begins with its bracket."""

    kind: Kind
    """json_schema: `source` is a schema's JSON text; json_object: any object, no source; regex: matched whole, without
    lookaround, \\d and \\w ASCII; choice: `source` is the texts; grammar: Lark, the first rule `start`."""
    source: str | tuple[str, ...] = ""
    name: str = field(default="constraint", compare=False)
    """What the caller calls it, for messages."""

    def validated(self) -> Constraint:
        """This, after checking kinds, types and sizes. Raises RequestError naming the parameter."""
        if self.kind not in KINDS:
            raise self.refusal(f"one of {', '.join(KINDS)}", self.kind)
        if self.kind == "choice":
            self.check_choice()
        elif not isinstance(self.source, str):
            raise self.refusal("a text", self.source)
        elif not self.source.strip() and self.kind != "json_object":
            raise self.refusal("a text that is not empty", self.source)
        n_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in self.texts)
        if n_bytes > MAX_SOURCE_BYTES:
            raise RequestError(f"{self.name}: expected at most {MAX_SOURCE_BYTES} bytes, got {n_bytes}", self.name)
        if any(not is_unicode(text) for text in self.texts):
            raise RequestError(f"{self.name}: expected Unicode text, got a lone surrogate", self.name)
        if self.kind == "json_schema":
            self.check_schema()
        if self.kind == "regex" and len(self.source) > MAX_REGEX_CHARACTERS:
            raise self.refusal(f"a regex of at most {MAX_REGEX_CHARACTERS} characters", len(self.source))
        if self.kind == "grammar" and "%llguidance" in self.source:
            raise RequestError(f"{self.name}: the grammar's options are ours; leave %llguidance out", self.name)
        return self

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.source,) if isinstance(self.source, str) else self.source

    def check_choice(self) -> None:
        if not isinstance(self.source, tuple) or not 1 <= len(self.source) <= MAX_CHOICE_TEXTS:
            n = len(self.source) if isinstance(self.source, tuple) else type(self.source).__name__
            raise self.refusal(f"1 to {MAX_CHOICE_TEXTS} texts", n)
        for text in self.source:
            if not isinstance(text, str) or not text:
                raise self.refusal("texts that are not empty", text)

    def check_schema(self) -> None:
        """The schema is JSON, not deep, and refers to itself alone: nothing is ever fetched."""
        assert isinstance(self.source, str)
        try:
            schema = json.loads(self.source)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{self.name}: the schema is not JSON ({type(error).__name__})", self.name) from None
        if not isinstance(schema, dict | bool):
            raise self.refusal("a schema: an object", schema)
        pending: list[tuple[Any, int]] = [(schema, 1)]
        while pending:
            value, depth = pending.pop()
            if depth > MAX_SCHEMA_DEPTH:
                raise RequestError(f"{self.name}: the schema is nested deeper than {MAX_SCHEMA_DEPTH}", self.name)
            if isinstance(value, dict):
                self.check_references(value)
                pending += [(item, depth + 1) for item in value.values()]
            elif isinstance(value, list):
                pending += [(item, depth + 1) for item in value]

    def check_references(self, schema: dict[str, Any]) -> None:
        for name in REFERENCES:
            target = schema.get(name)
            if isinstance(target, str) and not target.startswith("#"):
                raise self.refusal(f"a {name} into the schema itself (#…)", target)
        if "x-guidance" in schema:
            raise RequestError(f"{self.name}: x-guidance is not supported; leave it out", self.name)

    def refusal(self, expected: str, got: object) -> RequestError:
        return RequestError(f"{self.name}: expected {expected}, got {got!r:.60}", self.name)


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
