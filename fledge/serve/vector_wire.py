"""What a request for vectors or labels asks for: OpenAI's /v1/embeddings and vLLM's /classify as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fledge.errors import RequestError
from fledge.serve.fields import Fields, words, wrong
from fledge.serve.truncation import TRUNCATION_FIELDS, read_long_input
from fledge.serve.wire import read_ids, too_many

MAX_INPUTS = 2048  # OpenAI's
MAX_INPUT_TOKENS = 300_000  # of all inputs together; OpenAI's

SHARED_FIELDS = TRUNCATION_FIELDS | words("input model user add_special_tokens")
CLASSIFY_FIELDS = SHARED_FIELDS | words("use_activation")
EMBEDDING_FIELDS = SHARED_FIELDS | words("encoding_format dimensions")
ENCODINGS = ("float", "base64")

Input = str | tuple[int, ...]


@dataclass(frozen=True)
class VectorCall:
    """`inputs` are texts or token ids; ids are used as they are, texts stand in the model's frame unless
    `add_special_tokens` is false. `dimensions`: how many numbers of a vector are wanted; None: all. `use_activation`:
    labels' logits are told as probabilities."""

    model: str | None
    inputs: tuple[Input, ...]
    long_input: dict[str, Any]
    add_special_tokens: bool = True
    encoding: str = "float"
    dimensions: int | None = None
    use_activation: bool = True


def read_embeddings(tree: dict[str, Any]) -> VectorCall:
    """The body of /v1/embeddings. Raises RequestError naming the field."""
    fields = Fields(tree)
    encoding, dimensions = fields.text("encoding_format", "float") or "", fields.integer("dimensions")
    if encoding not in ENCODINGS:
        raise wrong("encoding_format", '"float" or "base64"', encoding)
    if dimensions is not None and dimensions < 1:
        raise wrong("dimensions", "at least 1", dimensions)
    return VectorCall(**read_shared(fields), encoding=encoding, dimensions=dimensions)


def read_classify(tree: dict[str, Any]) -> VectorCall:
    """The body of /classify. Raises RequestError naming the field."""
    fields = Fields(tree)
    return VectorCall(**read_shared(fields), use_activation=fields.flag("use_activation", True))


def read_shared(fields: Fields) -> dict[str, Any]:
    fields.text("user")
    return {
        "model": fields.text("model"),
        "inputs": read_inputs(fields.tree.get("input")),
        "long_input": read_long_input(fields),
        "add_special_tokens": fields.flag("add_special_tokens", True),
    }


def refuse_unframed(fields: Fields) -> None:
    """Raises RequestError for a text without its frame, where nothing was trained on one."""
    if not fields.flag("add_special_tokens", True):
        message = "add_special_tokens: expected true here, as the model was trained on texts in their frame"
        raise RequestError(f"{message}; leave it out", "add_special_tokens", "unsupported_parameter")


def read_inputs(given: Any) -> tuple[Input, ...]:
    """A text, a list of texts, token ids, or a list of lists of token ids; none of them empty."""
    if isinstance(given, str):
        return (read_input("input", given, str),)
    if not isinstance(given, list):
        raise wrong("input", "a string, an array of strings or of token ids", given)
    if not given:
        raise RequestError("input: expected at least one input, got an empty array", "input")
    if not isinstance(given[0], str | list):
        return (read_ids("input", given),)
    if len(given) > MAX_INPUTS:
        raise too_many("input", f"{MAX_INPUTS} inputs", given)
    return tuple(read_input(f"input[{i}]", item, type(given[0])) for i, item in enumerate(given))


def read_input(place: str, item: Any, expected: type) -> Input:
    if not isinstance(item, expected):
        raise wrong(place, "a string" if expected is str else "an array of token ids", item)
    if not item:
        raise RequestError(
            f"{place}: expected at least one token, got an empty {'text' if item == '' else 'array'}", "input"
        )
    return read_ids(place, item) if isinstance(item, list) else str(item)
