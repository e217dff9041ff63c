"""`Framing`: the special tokens that a model wants around one text or two, such as `[CLS] a [SEP] b [SEP]`.

`Tokenizer.encode` never adds them; whoever lays a sequence out for an encoder asks for them here. They come from the
`post_processor` of tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fledge.errors import TokenizerError

MAX_PARTS = 64


@dataclass(frozen=True)
class Framed:
    """`ids` with the special tokens, and `type_ids`: which of the two texts each belongs to (BERT's segments)."""

    ids: tuple[int, ...]
    type_ids: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """One element of a frame: the text "A" or "B", or `ids` to insert; `type_id` is that of all its tokens."""

    text: str | None
    ids: tuple[int, ...]
    type_id: int


class Framing:
    """`frame(ids)` or `frame(ids, more)`. Made from a `post_processor` entry; None frames nothing."""

    def __init__(self, entry: Any, vocab_size: int):
        """Raises TokenizerError for an entry that is not understood or inserts ids outside the vocabulary."""
        self.single, self.pair = parts_of(entry)
        self.trimming = trimming(entry)
        for part in (*self.single, *self.pair):
            if any(not 0 <= number < vocab_size for number in part.ids):
                raise TokenizerError(f"post_processor: expected ids below {vocab_size}, got {part.ids[:4]}")

    def frame(self, ids: Sequence[int], more: Sequence[int] | None = None) -> Framed:
        found: list[int] = []
        types: list[int] = []
        for part in self.single if more is None else self.pair:
            inner = part.ids if part.text is None else ids if part.text == "A" else more or ()
            found += inner
            types += [part.type_id] * len(inner)
        return Framed(tuple(found), tuple(types))


def trimming(entry: Any) -> int | None:
    """None: what a token stands for is told with the spaces beside it. Else it is told without them, but for so many at
    the very beginning of a text, where encoding puts a space of its own."""
    if not isinstance(entry, dict):
        return None
    if entry.get("type") == "Sequence":
        found = [trimming(one) for one in entry["processors"][:MAX_PARTS]]
        return next((one for one in found if one is not None), None)
    if entry.get("type") not in ("ByteLevel", "RobertaProcessing") or entry.get("trim_offsets") is False:
        return None
    return int(entry.get("add_prefix_space") is not False)


A, B = Part("A", (), 0), Part("B", (), 0)
PLAIN = ((A,), (A, Part("B", (), 1)))


def parts_of(entry: Any) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """The frames of one text and of two."""
    if entry is None:
        return PLAIN
    kind = entry.get("type") if isinstance(entry, dict) else None
    try:
        if kind == "ByteLevel":
            return PLAIN
        if kind == "TemplateProcessing":
            return template(entry["single"], entry["special_tokens"]), template(entry["pair"], entry["special_tokens"])
        if kind == "BertProcessing":
            begin, end, last = (Part(None, (entry[key][1],), t) for key, t in (("cls", 0), ("sep", 0), ("sep", 1)))
            return (begin, A, end), (begin, A, end, Part("B", (), 1), last)
        if kind == "RobertaProcessing":
            begin, end = (Part(None, (entry[key][1],), 0) for key in ("cls", "sep"))
            return (begin, A, end), (begin, A, end, end, B, end)
        if kind == "Sequence":
            found = [parts_of(step) for step in entry["processors"][:MAX_PARTS]]
            framing = [parts for parts in found if parts != PLAIN]
            if len(framing) <= 1:
                return framing[0] if framing else PLAIN
    except (KeyError, TypeError, IndexError, RecursionError):
        pass
    raise TokenizerError(f"post_processor: {str(kind)[:40]!r}: not understood; lay the sequence out without it")


def template(pieces: Any, tokens: Any) -> tuple[Part, ...]:
    if len(pieces) > MAX_PARTS:
        raise TokenizerError(f"post_processor: expected at most {MAX_PARTS} parts, got {len(pieces)}")
    found = []
    for piece in pieces:
        (name, value), *others = piece.items()
        type_id = value["type_id"]
        if others or isinstance(type_id, bool) or not isinstance(type_id, int) or not 0 <= type_id < 1 << 16:
            raise TypeError
        if name == "Sequence":
            found.append({"A": Part("A", (), type_id), "B": Part("B", (), type_id)}[value["id"]])
        else:
            ids = tokens[value["id"]]["ids"]
            if len(ids) > MAX_PARTS or not all(isinstance(number, int) for number in ids):
                raise TypeError
            found.append(Part(None, tuple(ids), type_id))
    return tuple(found)
