"""The two sides of an encoder-decoder's text: the source that it reads, the target that it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fledge.errors import ConfigError
from fledge.text.tokenizer import Tokenizer


def framed(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[int, ...]:
    """Ids in the frame that the tokenizer's file says; where it says none, with eos behind (sep where there is no
    eos), as `spans` and `prefix` train."""
    found, roles = tokenizer.frame(ids).ids, tokenizer.special
    end = roles.get("eos", roles.get("sep"))
    return (*found, end) if len(found) == len(ids) and end is not None else found


@dataclass(frozen=True)
class Sides:
    """Sources and targets as ids, each in its frame: `prefix` before every source (T5's way to name a task), and at
    most so many tokens of each, the end of a longer text being cut off. Training, evaluation and `predict` share it."""

    tokenizer: Tokenizer
    source_tokens: int
    target_tokens: int
    prefix: str = ""

    def __post_init__(self) -> None:
        for name in ("source_tokens", "target_tokens"):
            if getattr(self, name) <= self.n_frame:
                raise ConfigError(f"{name}: expected more than the frame's {self.n_frame}, got {getattr(self, name)}")

    @cached_property
    def n_frame(self) -> int:
        """Special tokens around a text."""
        return len(framed(self.tokenizer, ()))

    def sources(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        return self.fitted([self.prefix + text for text in texts], self.source_tokens)

    def targets(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        return self.fitted(texts, self.target_tokens)

    def fitted(self, texts: Sequence[str], most: int) -> list[tuple[int, ...]]:
        room = most - self.n_frame
        return [framed(self.tokenizer, ids[:room]) for ids in self.tokenizer.encode_batch(list(texts))]
