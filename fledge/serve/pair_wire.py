"""What a request to weigh texts against each other asks for: vLLM's /score, and /rerank in the words that Cohere, Jina
and vLLM share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fledge.errors import RequestError
from fledge.serve.fields import Fields, words, wrong
from fledge.serve.truncation import TRUNCATION_FIELDS, read_long_input
from fledge.serve.vector_wire import MAX_INPUTS, refuse_unframed
from fledge.serve.wire import too_many

SHARED_FIELDS = TRUNCATION_FIELDS | words("model use_activation user add_special_tokens")
SCORE_FIELDS = SHARED_FIELDS | words("text_1 text_2")
RERANK_FIELDS = SHARED_FIELDS | words("query documents top_n return_documents")


@dataclass(frozen=True)
class PairCall:
    """Texts two by two: `firsts` are as many as `seconds`, or one that goes with each of them; `names`: the fields they
    came in. `use_activation`: a logit is told through a sigmoid where the model says so. Of a ranking, `top_n` are told
    (None: all), with their texts where `with_texts`."""

    model: str | None
    firsts: tuple[str, ...]
    seconds: tuple[str, ...]
    names: tuple[str, str]
    long_input: dict[str, Any]
    use_activation: bool
    top_n: int | None = None
    with_texts: bool = True

    def place(self, side: int, number: int) -> str:
        """Where the text of a pair stood in the body; `side`: 0 or 1."""
        texts = (self.firsts, self.seconds)[side]
        return self.names[side] if len(texts) == 1 else f"{self.names[side]}[{number}]"


def read_score(tree: dict[str, Any]) -> PairCall:
    """The body of /score. Raises RequestError naming the field."""
    fields = Fields(tree)
    firsts, seconds = (read_some(name, tree.get(name)) for name in ("text_1", "text_2"))
    if len(firsts) not in (1, len(seconds)):
        raise RequestError(
            f"text_2: expected {len(firsts)} texts, one for each of text_1, got {len(seconds)}; or send one text_1 for "
            "all of text_2",
            "text_2",
        )
    return PairCall(firsts=firsts, seconds=seconds, names=("text_1", "text_2"), **read_shared(fields))


def read_rerank(tree: dict[str, Any]) -> PairCall:
    """The body of /rerank. Raises RequestError naming the field."""
    fields = Fields(tree)
    query, documents = tree.get("query"), tree.get("documents")
    if not isinstance(query, str) or not query:
        raise wrong("query", "a string that is not empty", query)
    if not isinstance(documents, list):
        raise wrong("documents", "an array of strings, or of objects with a text", documents)
    texts = [one.get("text") if isinstance(one, dict) else one for one in documents]
    top_n = fields.integer("top_n")
    if top_n is not None and top_n < 1:
        raise wrong("top_n", "at least 1", top_n)
    return PairCall(
        firsts=(query,), seconds=read_some("documents", texts), names=("query", "documents"), top_n=top_n,
        with_texts=fields.flag("return_documents", True), **read_shared(fields),
    )  # fmt: skip


def read_shared(fields: Fields) -> dict[str, Any]:
    fields.text("user")
    refuse_unframed(fields)
    return {
        "model": fields.text("model"),
        "long_input": read_long_input(fields),
        "use_activation": fields.flag("use_activation", True),
    }


def read_some(name: str, given: Any) -> tuple[str, ...]:
    """A text or some, none of them empty."""
    items, single = ([given], True) if isinstance(given, str) else (given, False)
    if not isinstance(items, list):
        raise wrong(name, "a string or an array of strings", given)
    if not items:
        raise RequestError(f"{name}: expected at least one text, got an empty array", name)
    if len(items) > MAX_INPUTS:
        raise too_many(name, f"{MAX_INPUTS} texts", items)
    for i, item in enumerate(items):
        if not isinstance(item, str) or not item:
            raise wrong(name if single else f"{name}[{i}]", "a string that is not empty", item)
    return tuple(items)
