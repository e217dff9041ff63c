"""Entities: what the numbers of a row's tokens say of the words of its text, as transformers' token-classification
pipeline puts it.

The strategies are its: `none` tells every token; `simple` joins neighbours of one entity; `first`, `average` and `max`
let the tokens of a word agree before. L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from fledge.text.tokenizer import Tokenizer

Strategy = Literal["none", "simple", "first", "average", "max"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)


@dataclass(frozen=True)
class TagRow:
    """A text and its tokens: `ids` stand in the row from `lead` on, each for the characters `spans` of the text."""

    text: str
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    lead: int


@dataclass(frozen=True)
class Tagged:
    """A token, or the tokens of a word, with a label and its probability. `word`: how it is written; `index`: a token's
    place in the row; `inside`: whether it goes on with the word before it."""

    word: str
    start: int
    end: int
    label: str
    score: float
    index: int = -1
    inside: bool = False


def entities(
    tokenizer: Tokenizer,
    row: TagRow,
    shares_TL: np.ndarray,
    names: Sequence[str],
    strategy: Strategy,
    ignored: Collection[str],
) -> list[dict[str, Any]]:
    """A text's entities but those of `ignored` labels. shares_TL: the labels' probabilities, of its own tokens."""
    best = shares_TL.argmax(-1).tolist()
    tokens = [
        Tagged(word, start, end, names[label], float(shares_TL[n, label]), row.lead + n, inside)
        for n, (label, (word, start, end, inside)) in enumerate(zip(best, words_of(tokenizer, row), strict=True))
    ]
    if strategy == "none":
        return [
            {"entity": one.label, "score": one.score, "index": one.index, "word": one.word, "start": one.start,
             "end": one.end}
            for one in tokens if one.label not in ignored
        ]  # fmt: skip
    joined = tokenizer.written
    if strategy != "simple":
        words = runs(tokens, lambda one, _: one.inside)
        tokens = [agreed(word, shares_TL, row.lead, names, strategy, joined) for word in words]
    groups = [grouped(group, joined) for group in runs(tokens, continues)]
    return [one for one in groups if one["entity_group"] not in ignored]


def words_of(tokenizer: Tokenizer, row: TagRow) -> Iterator[tuple[str, int, int, bool]]:
    """(how it is written, start, end, whether it goes on with the word before) of each token. A tokenizer that marks
    what goes on in a word is believed; of others a token does that has no space before it."""
    marks = tokenizer.kind == "wordpiece"
    unknown = tokenizer.special.get("unk")
    for token, (start, end) in zip(row.ids, row.spans, strict=True):
        word, surface = tokenizer.token_of(token), row.text[start:end]
        inside = len(word) != len(surface) if marks else start > 0 and " " not in row.text[start - 1 : start + 1]
        yield (surface, start, end, False) if token == unknown else (word, start, end, inside)


def runs(items: list[Tagged], goes_on: Callable[[Tagged, Tagged], bool]) -> list[list[Tagged]]:
    """Neighbours that go on with what stands before them, together."""
    found: list[list[Tagged]] = []
    for one in items:
        if found and goes_on(one, found[-1][-1]):
            found[-1].append(one)
        else:
            found.append([one])
    return found


def agreed(
    word: list[Tagged],
    shares_TL: np.ndarray,
    lead: int,
    names: Sequence[str],
    strategy: Strategy,
    joined: Callable[[list[str]], str],
) -> Tagged:
    """The tokens of a word as one."""
    label, score = word[0].label, word[0].score
    if strategy == "max":
        likeliest = max(word, key=lambda one: one.score)
        label, score = likeliest.label, likeliest.score
    elif strategy == "average":
        shares_L = shares_TL[[one.index - lead for one in word]].mean(0)
        label, score = names[int(shares_L.argmax())], float(shares_L.max())
    return Tagged(joined([one.word for one in word]), word[0].start, word[-1].end, label, score)


def continues(one: Tagged, before: Tagged) -> bool:
    """Whether a label goes on with the entity before: the same, and none that begins (B-)."""
    return entity_of(one.label) == entity_of(before.label) and not one.label.startswith("B-")


def entity_of(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def grouped(group: list[Tagged], joined: Callable[[list[str]], str]) -> dict[str, Any]:
    return {
        "entity_group": group[0].label.split("-", 1)[-1], "score": float(np.mean([one.score for one in group])),
        "word": joined([one.word for one in group]), "start": group[0].start, "end": group[-1].end,
    }  # fmt: skip
