"""What is to be compared: a prompt and two answers to it, from a file of preferences or of answers without an order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from fledge.errors import DataError
from fledge.lineage import sha256_json
from fledge.text.conversation import Conversation, Message
from fledge.text.preferences import check_answer, read_pair, read_prompt, read_side, rows_of

MAX_ANSWERS = 16  # 120 pairs of one prompt


@dataclass(frozen=True)
class Item:
    """`ranked`: the file itself calls its first answer the better one. `at`: its place in the file."""

    prompt: Conversation
    first: Conversation
    second: Conversation
    ranked: bool
    at: str


@dataclass(frozen=True)
class Items:
    """`n_same`: pairs of one answer twice, which nobody could compare and which are left out."""

    found: list[Item]
    n_same: int

    def digest(self) -> str:
        """Hex SHA-256 of every prompt and answer in order: a copy under another name or compressed has it too."""
        digest = hashlib.sha256()
        for item in self.found:
            digest.update(sha256_json([plain(part) for part in (item.prompt, item.first, item.second)]).encode())
        return digest.hexdigest()


def read_items(path: Path) -> Items:
    """Every pair of the file. Raises DataError naming file and line, and where there is nothing to compare."""
    found, n_same = [], 0
    for row, at in rows_of(path):
        for item in items_of(row, at):
            if item.first == item.second:
                n_same += 1
            else:
                found.append(item)
    if not found:
        raise DataError(f"{path}: expected two answers to compare, found none ({n_same} pairs of one answer twice)")
    return Items(found, n_same)


def items_of(row: dict[str, Any], at: str) -> Iterator[Item]:
    if "answers" not in row:
        if not {"chosen", "rejected"} & set(row):
            keys = ", ".join(map(repr, list(row)[:6])) or "nothing"
            raise DataError(f"{at}: expected chosen and rejected, or a prompt with answers, got {keys:.80}")
        pair = read_pair(row, at)
        yield Item(pair.prompt, pair.chosen, pair.rejected, True, at)
        return
    if {"chosen", "rejected"} & set(row):
        raise DataError(f"{at}: expected answers, or chosen and rejected, got both; remove one")
    prompt, answers = read_prompt(row, at), row["answers"]
    if not isinstance(answers, list) or not 2 <= len(answers) <= MAX_ANSWERS:
        got = len(answers) if isinstance(answers, list) else type(answers).__name__
        raise DataError(f"{at}, answers: expected a list of 2..{MAX_ANSWERS}, got {got}")
    sides = [read_side(answer, f"{at}, answers[{number}]") for number, answer in enumerate(answers)]
    for number, side in enumerate(sides):
        check_answer(prompt or (), side, f"{at}, answers[{number}]")
    for one, other in combinations(range(len(sides)), 2):
        place = at if len(sides) == 2 else f"{at}, answers[{one}] and [{other}]"
        yield Item(prompt or (), sides[one], sides[other], False, place)


def plain(conversation: Conversation) -> list[dict[str, str]]:
    """Messages as OpenAI writes them."""
    return [{"role": message.role, "content": message.content} for message in conversation]


def packed(conversation: Conversation) -> str:
    """Messages as one line of ASCII, which every database stores alike (PostgreSQL's text takes no U+0000)."""
    return json.dumps([[message.role, message.content] for message in conversation], separators=(",", ":"))


def unpacked(text: str) -> Conversation:
    return tuple(Message(role, content) for role, content in json.loads(text))


def shortest(conversation: Conversation, role: str) -> str | Sequence[dict[str, str]]:
    """A conversation of one turn of `role` as its text, any other as messages: what `read_preferences` reads back."""
    alone = len(conversation) == 1 and conversation[0].role == role
    transcript = alone and conversation[0].content.startswith("\n\nHuman:")
    return conversation[0].content if alone and not transcript else plain(conversation)
