"""Questions and answers: about Python definitions, and, for text without any, about how a passage goes on.

Which wording a definition gets is decided by a hash of its name: the same sources always give the same conversations.
Imports no torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fledge.data.definitions import Definition
from fledge.data.document import Document

ABOUT_CALLABLE = ("What does {} do?", "What is {} for?", "Explain {}.", "What does {} do in Python?")
ABOUT_CLASS = ("What is {}?", "What is the class {} for?", "Describe {}.", "What is {} in Python?")
ABOUT_MODULE = ("What is the module {} for?", "What does the module {} do?", "What is {}?", "Describe the module {}.")
ABOUT_PARAMETERS = ("What are the parameters of {}?", "Which parameters does {} take?")
ABOUT_SIGNATURE = ("What is the signature of {}?", "How is {} called?")
ABOUT_PLACE = ("Which module is {} in?", "In which module do I find {}?")
ABOUT_NEXT = ("Continue: {}", "What comes after this? {}")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SENTENCE = re.compile(r"[^.!?。！？\n]+(?:[.!?。！？]+|\n|$)")
SHORTEST_PASSAGE = 24  # characters


@dataclass(frozen=True)
class Exchange:
    """Turns (question, answer), what they are about, and the document they were made from."""

    turns: tuple[tuple[str, str], ...]
    name: str
    document: str

    def messages(self) -> list[dict[str, str]]:
        """In OpenAI's form."""
        roles = ("user", "assistant")
        return [{"role": r, "content": text} for turn in self.turns for r, text in zip(roles, turn, strict=True)]


def about_definitions(found: Iterable[Definition]) -> Iterator[Exchange]:
    """Two conversations for most definitions: what it does, and one of parameters, signature and place. One in eight
    asks both in one conversation."""
    found = list(found)
    places: dict[str, set[str]] = {}
    for definition in found:
        places.setdefault(definition.short_name, set()).add(definition.module)
    for definition in found:
        purpose = purpose_turn(definition)
        facts = fact_turns(definition, alone=len(places[definition.short_name]) == 1)
        if not facts:
            yield Exchange((purpose,), definition.name, definition.path)
            continue
        fact = facts[number_of(definition.name, "fact") % len(facts)]
        if definition.parameters is not None and number_of(definition.name, "both") % 8 == 0:
            follow_up = ("And its parameters?", parameters_answer(definition))
            yield Exchange((purpose, follow_up), definition.name, definition.path)
        else:
            yield Exchange((purpose,), definition.name, definition.path)
            yield Exchange((fact,), definition.name, definition.path)


def purpose_turn(definition: Definition) -> tuple[str, str]:
    wordings = {"module": ABOUT_MODULE, "class": ABOUT_CLASS}.get(definition.kind, ABOUT_CALLABLE)
    return asked(wordings, definition.name, definition.name), definition.summary


def fact_turns(definition: Definition, alone: bool) -> list[tuple[str, str]]:
    """The questions about a definition that have one right answer; `alone`: no other module has this name."""
    turns = []
    if definition.parameters is not None:
        turns.append((asked(ABOUT_PARAMETERS, definition.name, definition.name), parameters_answer(definition)))
    if definition.signature is not None:
        turns.append((asked(ABOUT_SIGNATURE, definition.name, definition.name), f"`{definition.signature}`"))
    if alone and definition.kind in ("function", "class"):
        answer = f"`{definition.short_name}` is in the module `{definition.module}`."
        turns.append((asked(ABOUT_PLACE, definition.short_name, definition.name), answer))
    return turns


def parameters_answer(definition: Definition) -> str:
    """For example: `textwrap.dedent` takes one parameter: `text`."""
    words = [f"`{word}`" for word in definition.parameters or () if word != "*"]
    count = NUMBERS[len(words)] if len(words) < len(NUMBERS) else str(len(words))
    if not words:
        return f"`{definition.name}` takes no parameters."
    listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return f"`{definition.name}` takes {count} parameter{'s' if len(words) > 1 else ''}: {listed}."


def asked(wordings: tuple[str, ...], shown: str, key: str) -> str:
    """One of the wordings, the name in backquotes twice out of three times, since people often leave them out."""
    number = number_of(key, wordings[0])
    return wordings[number % len(wordings)].format(shown if number // 16 % 3 == 0 else f"`{shown}`")


def about_text(document: Document, most_characters: int) -> Iterator[Exchange]:
    """Asks how a document goes on: some of its sentences, answered by those that follow. Each sentence is used
    once, so that no conversation holds another's answer."""
    sentences = [" ".join(match.group().split()) for match in SENTENCE.finditer(document.text)]
    sentences = [sentence for sentence in sentences if sentence]
    at = 0
    while at < len(sentences):
        passage, at = joined(sentences, at, SHORTEST_PASSAGE, most_characters)
        answer, at = joined(sentences, at, SHORTEST_PASSAGE, most_characters)
        if passage and answer:
            name = f"{document.path}#{at}"
            question = ABOUT_NEXT[number_of(name) % len(ABOUT_NEXT)].format(passage)
            yield Exchange(((question, answer),), name, document.path)


def joined(sentences: list[str], at: int, least: int, most: int) -> tuple[str, int]:
    """Whole sentences from `at` on until there are `least` characters ("" when they pass `most`), and what is next."""
    text = ""
    while at < len(sentences) and len(text) < least:
        text = f"{text} {sentences[at]}".strip()
        at += 1
    return (text if len(text) <= most else ""), at


def number_of(*key: object) -> int:
    """A number that depends on the key alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:8], "little")
