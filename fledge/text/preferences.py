"""Preferences in the files people have: two answers to one prompt of which one is better, or one that is good or bad.

A file is JSON lines or one JSON array. The prompt of a row is one of
    "prompt": text or messages                                  TRL
    "conversations": [{"from", "value"}], "system"?             LLaMA-Factory's ShareGPT
    "messages": [{"role", "content"}]                           OpenAI
    "instruction", "input"?, "system"?, "history"?              Alpaca
and its answers are `chosen` and `rejected`, each a text, a message or a list of messages, with a `margin` if there is
one; or one answer (`completion`, or the last message) and a `label`, true or false. Without a prompt both answers are
whole conversations, as messages or as transcripts (`\\n\\nHuman: … \\n\\nAssistant: …`): what they share is the prompt.
A text is one turn: a prompt the user's, an answer the assistant's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.errors import DataError, RequestError
from fledge.text.chat import ChatRenderer, Rendered
from fledge.text.conversation import (
    Conversation,
    Message,
    checked,
    read_instruction,
    read_rows,
    read_turns,
    with_system,
)

TURN = re.compile(r"\n\n(Human|Assistant):")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Preference:
    """`chosen` is the better of two answers to `prompt`, by `margin` if that is known. `at`: its place in the file."""

    prompt: Conversation
    chosen: Conversation
    rejected: Conversation
    margin: float | None = None
    at: str = ""


@dataclass(frozen=True)
class Judged:
    """One answer to `prompt`: `good` or not."""

    prompt: Conversation
    answer: Conversation
    good: bool
    at: str = ""


def read_preferences(path: str | Path) -> Iterator[Preference]:
    """Every pair of a file, in order. Raises DataError naming file and line (or row, in a JSON array)."""
    for row, at in rows_of(path):
        yield read_pair(row, at)


def read_judged(path: str | Path) -> Iterator[Judged]:
    """Every judged answer of a file, in order; of a pair its chosen answer as good and its rejected one as bad. Raises
    DataError as `read_preferences` does."""
    for row, at in rows_of(path):
        if "label" in row:
            yield read_answer(row, at)
        else:
            pair = read_pair(row, at)
            yield Judged(pair.prompt, pair.chosen, True, at)
            yield Judged(pair.prompt, pair.rejected, False, at)


def rows_of(path: str | Path) -> Iterator[tuple[dict[str, Any], str]]:
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: expected a file of preferences, found none; check the path")
    for row, at in read_rows(path):
        if not isinstance(row, dict):
            raise DataError(f"{at}: expected an object, got {type(row).__name__}")
        yield row, at


def read_pair(row: dict[str, Any], at: str) -> Preference:
    """Raises DataError for a row without two answers, for answers that don't end with the assistant's, and for two
    conversations that share no prompt."""
    for key in ("chosen", "rejected"):
        if key not in row:
            keys = ", ".join(map(repr, list(row)[:6])) or "nothing"
            raise DataError(f"{at}: expected chosen and rejected, got {keys:.80}")
    prompt = read_prompt(row, at)
    chosen, rejected = (read_side(row[key], f"{at}, {key}") for key in ("chosen", "rejected"))
    if prompt is None:
        prompt, chosen, rejected = split(chosen, rejected, at)
    elif chosen[: len(prompt)] == prompt == rejected[: len(prompt)]:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    check_answer(prompt, chosen, f"{at}, chosen")
    check_answer(prompt, rejected, f"{at}, rejected")
    return Preference(prompt, chosen, rejected, read_margin(row, at), at)


def read_answer(row: dict[str, Any], at: str) -> Judged:
    if not isinstance(row["label"], bool):
        raise DataError(f"{at}, label: expected true or false, got {row['label']!r:.40}")
    prompt = read_prompt(row, at)
    if "completion" in row:
        answer = read_side(row["completion"], f"{at}, completion")
        prompt = prompt if prompt is not None else answer[:-1]
        answer = answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer
    elif prompt is not None and prompt[-1].role == "assistant":
        prompt, answer = prompt[:-1], prompt[-1:]
    else:
        raise DataError(f"{at}: expected a completion, or messages that end with the assistant's, got neither")
    check_answer(prompt, answer, at)
    return Judged(prompt, answer, row["label"], at)


def read_prompt(row: dict[str, Any], at: str) -> Conversation | None:
    """The row's prompt, None where it names none."""
    if "prompt" in row:
        prompt = row["prompt"]
        if isinstance(prompt, str) and prompt.startswith("\n\nHuman:"):
            turns = transcript(prompt, f"{at}, prompt")
            turns = turns[:-1] if turns[-1] == Message("assistant", "") else turns
        elif isinstance(prompt, str):
            turns = (checked("user", prompt, f"{at}, prompt"),)
        else:
            turns = turns_of(prompt, f"{at}, prompt")
        return with_system(row, turns, at)
    for key in ("messages", "conversations"):
        if key in row:
            return with_system(row, turns_of(row[key], f"{at}, {key}"), at)
    return read_instruction(row, at) if "instruction" in row else None


def read_side(value: Any, at: str) -> Conversation:
    """An answer, or a whole conversation."""
    if isinstance(value, str):
        return transcript(value, at) if value.startswith("\n\nHuman:") else (checked("assistant", value, at),)
    return turns_of([value] if isinstance(value, dict) else value, at)


def turns_of(turns: Any, at: str) -> Conversation:
    first = turns[0] if isinstance(turns, list) and turns else None
    named = ("from", "value") if isinstance(first, dict) and "from" in first else ("role", "content")
    return read_turns(turns, *named, at)


def transcript(text: str, at: str) -> Conversation:
    """The turns of `\\n\\nHuman: … \\n\\nAssistant: …` (Bai et al. 2022, arXiv 2204.05862: the form of their files)."""
    parts = TURN.split(text)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return tuple(checked(SPEAKERS[name], said.strip(), at) for name, said in pairs)


def split(chosen: Conversation, rejected: Conversation, at: str) -> tuple[Conversation, Conversation, Conversation]:
    """Prompt and answers of two conversations: they part where their messages do, at a turn of the assistant's."""
    most = min(len(chosen), len(rejected)) - 1
    n = next((n for n in range(most) if chosen[n] != rejected[n]), most)
    while n > 0 and not chosen[n].role == rejected[n].role == "assistant":
        n -= 1
    if n <= 0:
        raise DataError(f"{at}: expected a prompt, or two conversations that begin alike, got neither; add a prompt")
    return chosen[:n], chosen[n:], rejected[n:]


def check_answer(prompt: Conversation, answer: Conversation, at: str) -> None:
    if not prompt:
        raise DataError(f"{at}: expected a prompt before the answer, got none; add one")
    if not answer or answer[0].role != "assistant" or answer[-1].role != "assistant":
        roles = ", ".join(message.role for message in answer) or "nothing"
        raise DataError(f"{at}: expected an answer that begins and ends with the assistant's, got {roles:.60}")


def read_margin(row: dict[str, Any], at: str) -> float | None:
    margin = row.get("margin")
    if margin is None:
        return None
    try:
        number = math.nan if isinstance(margin, bool) or not isinstance(margin, int | float) else float(margin)
    except OverflowError:  # an integer that no float holds
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{at}, margin: expected a finite number, got {margin!r:.40}")
    return number


def render_answer(renderer: ChatRenderer, prompt: Conversation, answer: Conversation, at: str) -> Rendered:
    """Prompt and answer as ids; `trained` are the answer's own tokens, those of the assistant after the prompt.

    Raises DataError naming `at` for a conversation that the chat format can't hold, or that it writes otherwise once
    an answer follows the prompt."""
    try:
        before = renderer.render(prompt, generation_prompt=True).ids
        whole = renderer.render(prompt + answer)
    except RequestError as error:
        raise DataError(f"{at}: {error}") from None
    if whole.ids[: len(before)] != before:
        raise DataError(
            f"{at}: expected the prompt to begin the conversation as chat format {renderer.name} writes it, got other "
            "tokens; choose another chat.format"
        )
    return Rendered(whole.ids, [flag and place >= len(before) for place, flag in enumerate(whole.trained)])
