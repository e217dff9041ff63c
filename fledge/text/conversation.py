"""`Message`, `Conversation`, and reading them from the files people have: Alpaca, ShareGPT, OpenAI messages, pairs.

A file is JSON lines or one JSON array, as it is or compressed (.gz, .zst). Each row is one conversation, in a form of
these:
    {"messages": [{"role", "content"}]}                       OpenAI
    {"conversations": [{"from", "value"}], "system"?}         ShareGPT (human, gpt)
    {"instruction", "input"?, "output", "system"?, "history"?}  Alpaca
    {"prompt", "response" | "completion"}                     pairs
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeAlias

from fledge.errors import DataError
from fledge.text.compressed import FORMS, damage_of, unpacked

ROLES = ("system", "user", "assistant")
ROLE_NAMES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
MAX_LINE_BYTES = 64 << 20
MAX_ARRAY_BYTES = 2 << 30


@dataclass(frozen=True)
class Message:
    """One turn. `role` is "system", "user" or "assistant"."""

    role: str
    content: str


Conversation: TypeAlias = tuple[Message, ...]


def read_conversations(path: str | Path) -> Iterator[Conversation]:
    """Every conversation of a file, in order. Raises DataError naming file and line (or row, in a JSON array)."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: expected a file of conversations, found none; check the path")
    for row, at in read_rows(path):
        yield read_row(row, at)


def read_rows(path: Path) -> Iterator[tuple[Any, str]]:
    """Each row with its place. A file whose name ends in .gz or .zst is unpacked on the way."""
    with opened(path) as file:
        start = file.peek(64).removeprefix(b"\xef\xbb\xbf").lstrip()
        if start.startswith(b"["):
            data = file.read(MAX_ARRAY_BYTES + 1)
            refuse_damage(path, file)
            if len(data) > MAX_ARRAY_BYTES:
                raise DataError(f"{path}: expected at most {MAX_ARRAY_BYTES} bytes in one array; use JSON lines")
            rows = parse(data, str(path))
            yield from ((row, f"{path}, row {number}") for number, row in enumerate(rows, 1))
            return
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            at = f"{path}, line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{at}: expected at most {MAX_LINE_BYTES} bytes")
            if not line.endswith(b"\n"):
                refuse_damage(path, file)
            if line.strip():
                yield parse(line.rstrip(b"\r\n"), at), at
        refuse_damage(path, file)


def opened(path: Path) -> BufferedReader:
    file = open(path, "rb")  # noqa: SIM115 (closed by the caller)
    return unpacked(file, path.suffix) if path.suffix in FORMS else file


def refuse_damage(path: Path, file: BufferedReader) -> None:
    damage = damage_of(file)
    if damage is not None:
        raise DataError(f"{path}, byte {damage.byte}: {damage.reason}; get the file again")


def parse(data: bytes, at: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{at}: not JSON in UTF-8 ({reason_of(error)}); mend or remove it") from None


def reason_of(error: Exception) -> str:
    """What is wrong and where: of JSON the character, counted from 1, as a row's own lines are none of the file's."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1:,}"
    return str(error)[:80] or type(error).__name__


def read_row(row: Any, at: str) -> Conversation:
    """One conversation. Raises DataError if the form is unknown, a role is, or the assistant never speaks."""
    if not isinstance(row, dict):
        raise DataError(f"{at}: expected an object, got {type(row).__name__}")
    if "messages" in row:
        found = with_system(row, read_turns(row["messages"], "role", "content", f"{at}, messages"), at)
    elif "conversations" in row:
        found = with_system(row, read_turns(row["conversations"], "from", "value", f"{at}, conversations"), at)
    elif "instruction" in row:
        found = read_alpaca(row, at)
    elif "prompt" in row:
        answer = "response" if "response" in row else "completion"
        pair = (Message("user", text_of(row, "prompt", at)), Message("assistant", text_of(row, answer, at)))
        found = with_system(row, pair, at)
    else:
        keys = ", ".join(map(repr, list(row)[:6])) or "nothing"
        raise DataError(f"{at}: expected messages, conversations, instruction or prompt, got {keys:.80}")
    if not any(message.role == "assistant" and message.content for message in found):
        raise DataError(f"{at}: expected an answer of the assistant, found none; remove the row")
    return found


def read_turns(turns: Any, role_key: str, content_key: str, at: str) -> Conversation:
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{at}: expected a list of turns, got {type(turns).__name__ if turns else 'none'}")
    found = []
    for number, turn in enumerate(turns):
        place = f"{at}[{number}]"
        if not isinstance(turn, dict):
            raise DataError(f"{place}: expected an object, got {type(turn).__name__}")
        role = turn.get(role_key)
        if not isinstance(role, str) or role not in ROLE_NAMES:
            raise DataError(f"{place}.{role_key}: expected one of {', '.join(ROLE_NAMES)}, got {role!r:.40}")
        found.append(Message(ROLE_NAMES[role], text_of(turn, content_key, place)))
    return tuple(found)


def read_alpaca(row: dict[str, Any], at: str) -> Conversation:
    """Instruction and input, one empty line between them, are the user's turn; `history` holds earlier pairs."""
    return (*read_instruction(row, at), Message("assistant", text_of(row, "output", at)))


def read_instruction(row: dict[str, Any], at: str) -> Conversation:
    """What stands before the output of a row of Alpaca's."""
    found = read_system(row, at)
    history = row.get("history") or []
    if not isinstance(history, list):
        raise DataError(f"{at}, history: expected a list of pairs, got {type(history).__name__}")
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise DataError(f"{at}, history: expected pairs of texts, got {str(pair):.60}")
        found += (checked("user", pair[0], at), checked("assistant", pair[1], at))
    parts = [text_of(row, "instruction", at)]
    parts += [text_of(row, "input", at)] if row.get("input") else []
    return (*found, Message("user", "\n\n".join(parts)))


def with_system(row: dict[str, Any], turns: Conversation, at: str) -> Conversation:
    """A row's turns behind its `system`, if it has one. Raises DataError where the turns begin with another."""
    system = read_system(row, at)
    if not system or turns[:1] == system:
        return turns
    if turns and turns[0].role == "system":
        raise DataError(f"{at}, system: expected the text of the first turn, whose role is system too, got another")
    return system + turns


def read_system(row: dict[str, Any], at: str) -> Conversation:
    return (Message("system", text_of(row, "system", at)),) if row.get("system") else ()


def text_of(row: dict[str, Any], key: str, at: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(f"{at}, {key}: expected text, got {type(value).__name__ if key in row else 'none'}")
    return checked("user", value, f"{at}, {key}").content


def checked(role: str, text: str, at: str) -> Message:
    """A Message whose text is Unicode. JSON can spell half a character (a lone surrogate); that is refused."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{at}: expected Unicode, got a lone surrogate; replace it with U+FFFD") from None
    return Message(role, text)
