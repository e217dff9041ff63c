"""From the pieces of a conversation to ids and loss mask: the one place where a chat becomes tokens.

A chat format lays a conversation out as `Piece`s. In a piece of the template control tokens are read; in a piece of a
message they are not, so what a user types can't become one. Texts that touch are encoded together, as every user of
these formats does, but for one thing: where the mask changes there is a cut. A model writes its answer after the head
of the answer, token by token, and what it is trained on is cut in the same place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fledge.errors import RequestError, TokenizerError
from fledge.text.conversation import ROLES, Message
from fledge.text.tokenizer import Tokenizer, check_unicode, from_text

# What Unicode calls white space; Python's strip() also takes the four separators U+001C..U+001F.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model sees it: `ids`, and for each whether the loss counts it (it is the assistant's)."""

    ids: list[int]
    trained: list[bool]


@dataclass(frozen=True)
class Piece:
    """Text of the template (`literal`: control tokens in it are read) or of a message; `trained`: in the loss."""

    text: str
    literal: bool = True
    trained: bool = False


@dataclass
class Run:
    """Text between two control tokens or cuts. `inner`: text stands directly before it."""

    text: str
    trained: bool
    first: bool
    inner: bool


class PieceEncoder:
    """Pieces to ids and mask with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.spellings = tuple(sorted(filter(None, map(tokenizer.token_of, tokenizer.control)), key=len, reverse=True))
        self.control = re.compile("|".join(map(re.escape, self.spellings)) or "(?!)")
        flags = {entry["content"]: entry for entry in tokenizer.file.added.values()}
        self.eats_before = {token for token in self.spellings if flags.get(token, {}).get("lstrip") is True}
        self.eats_after = {token for token in self.spellings if flags.get(token, {}).get("rstrip") is True}

    def encode(self, pieces: Sequence[Piece]) -> Rendered:
        """BOS stands where the template puts it; two at the beginning, the tokenizer's and the template's, are one."""
        parts = self.split(pieces)
        runs = [part for part in parts if isinstance(part, Run)]
        encoded = self.encode_runs(runs)
        ids: list[int] = []
        trained: list[bool] = []
        for part in parts:
            found = encoded[id(part)] if isinstance(part, Run) else [part[0]]
            ids += found
            trained += [part.trained if isinstance(part, Run) else part[1]] * len(found)
        bos = self.tokenizer.bos_id
        if bos is not None and ids[:2] == [bos, bos]:
            ids, trained = ids[1:], trained[1:]
        return Rendered(ids, trained)

    def split(self, pieces: Sequence[Piece]) -> list[Run | tuple[int, bool]]:
        """Runs of text, and control tokens as (id, trained)."""
        parts: list[Run | tuple[int, bool]] = []
        eating = False

        def add_text(text: str, trained: bool) -> None:
            nonlocal eating
            if eating:
                text = text.lstrip(WHITE_SPACE)
            if not text:
                return
            eating = False
            last = parts[-1] if parts else None
            if isinstance(last, Run) and last.trained == trained:
                last.text += text
            else:
                parts.append(Run(text, trained, first=last is None, inner=isinstance(last, Run)))

        for piece in pieces:
            at = 0
            for match in self.control.finditer(piece.text) if piece.literal else ():
                token = match[0]
                add_text(piece.text[at : match.start()], piece.trained)
                at = match.end()
                last = parts[-1] if parts else None
                if token in self.eats_before and isinstance(last, Run):
                    last.text = last.text.rstrip(WHITE_SPACE)
                parts.append((self.tokenizer.ids_by_token[token], piece.trained))
                eating = token in self.eats_after
            add_text(piece.text[at:], piece.trained)
        return parts

    def encode_runs(self, runs: list[Run]) -> dict[int, list[int]]:
        """Ids of each run, by its identity: in two batches, since text after text gets no space put before it."""
        found: dict[int, list[int]] = {}
        for bare in (False, True):
            chosen = [run for run in runs if self.is_bare(run) is bare]
            if chosen:
                encode = self.bare if bare else self.tokenizer
                for run, ids in zip(chosen, encode.encode_batch([run.text for run in chosen]), strict=True):
                    found[id(run)] = ids
        return found

    def is_bare(self, run: Run) -> bool:
        return self.prefix is not None and (run.inner or (self.prefix == "first" and not run.first))

    @cached_property
    def prefix(self) -> str | None:
        """Where this tokenizer puts a space before a text: "always" (each text between two control tokens), "first"
        (at the beginning alone), or None."""
        tree = self.tokenizer.file.tree
        steps = [tree.get("normalizer"), tree.get("pre_tokenizer")]
        for step in [inner for outer in steps if outer for inner in (outer, *outer.get("normalizers", ()))]:
            if step.get("type") == "Prepend":
                return "always"
            if step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never":
                return str(step.get("prepend_scheme", "always"))
        return None

    @cached_property
    def bare(self) -> Tokenizer:
        """The tokenizer without the space that it puts before a text."""
        tree = json.loads(self.tokenizer.file.text)
        normalizer, pre = tree.get("normalizer") or {}, tree.get("pre_tokenizer") or {}
        if normalizer.get("type") == "Sequence":
            normalizer["normalizers"] = [s for s in normalizer["normalizers"] if s.get("type") != "Prepend"]
        elif normalizer.get("type") == "Prepend":
            tree["normalizer"] = None
        if pre.get("type") == "Metaspace":
            pre["prepend_scheme"] = "never"
            pre.pop("add_prefix_space", None)
        return from_text(json.dumps(tree), self.tokenizer.config)


def check_messages(messages: Sequence[Message]) -> None:
    """Raises RequestError (param "messages") naming the message, unless each has a known role and Unicode text."""
    if not messages:
        raise RequestError("messages: expected at least one message, got none", "messages")
    for number, message in enumerate(messages):
        if message.role not in ROLES:
            expected = ", ".join(ROLES)
            raise RequestError(
                f"messages[{number}].role: expected one of {expected}, got {message.role!r:.40}", "messages"
            )
        if not isinstance(message.content, str):
            found = type(message.content).__name__
            raise RequestError(f"messages[{number}].content: expected text, got {found}", "messages")
        try:
            check_unicode(message.content)
        except TokenizerError as error:
            raise RequestError(f"messages[{number}].content: {error}", "messages") from None
