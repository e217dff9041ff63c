"""Log-probabilities in OpenAI's two forms, held back until their text is out.

The engine reports a token when it is sampled; its text may still wait, since it could be the beginning of a stop string
or half a character. A token's log-probability would tell its text, so it waits as long, and is dropped with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fledge.engine.request import Event, TokenLogprob
from fledge.text.stream import TextStream
from fledge.text.tokenizer import Tokenizer


@dataclass
class Placed:
    """A token and the character at which its text begins. `figures` is None for a prompt's very first token.

    `end`: the character at which its text is whole, counted from the answer's beginning; None while it is not.
    """

    id: int
    figures: TokenLogprob | None
    at: int
    end: int | None = None


class Aligner:
    """Releases the tokens of one choice in step with its text. `start` is the character at which the answer begins."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: tuple[int, ...], start: int = 0):
        self.plain = TextStream(tokenizer, prompt_ids)  # no stop strings: where each token's text would stand
        self.waiting: list[Placed] = []
        self.start = start
        self.decoded = 0
        self.released = 0

    def push(self, event: Event) -> list[Placed]:
        """The tokens whose text is out with this event. The stop token itself is no part of the answer."""
        self.released += len(event.text)
        for figures in event.logprobs:
            self.place(figures)
        if event.finish_reason is not None:
            self.finish(event.finish_reason)
        out = self.released
        ready = list(itertools.takewhile(lambda token: token.end is not None and token.end <= out, self.waiting))
        del self.waiting[: len(ready)]
        return ready

    def place(self, figures: TokenLogprob) -> None:
        """Note where a token's text begins and ends. All tokens without an end share one unfinished character."""
        token = Placed(figures.token_id, figures, self.start + self.decoded)
        text = self.plain.push(token.id)
        if text:
            for earlier in self.waiting:
                earlier.end = self.decoded + 1 if earlier.end is None else earlier.end
            self.decoded += len(text)
            if not self.plain.decoder.getstate()[0]:  # else its last bytes begin the next character
                token.end = self.decoded
        self.waiting.append(token)

    def finish(self, reason: str) -> None:
        """Nothing follows: what is unfinished stays so. After a stop the last token is no part of the answer if it is
        one that stops, which has no text; that of a stop string ends behind what is released, and the last one of a
        constraint belongs to the answer."""
        self.decoded += len(self.plain.finish())
        for token in self.waiting:
            token.end = self.decoded if token.end is None else token.end
        last = self.waiting[-1] if self.waiting else None
        if reason == "stop" and last is not None and last.end == last.at - self.start:
            self.waiting.pop()


class TokenTexts:
    """Tokens as the wire shows them: their text, or `bytes:\\xe2\\x82` for a part of a character."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def text(self, token_id: int) -> str:
        if self.tokenizer.is_special(token_id):
            return self.tokenizer.token_of(token_id)
        data = self.tokenizer.token_bytes(token_id)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def place(self, ids: Iterable[int], figures: Iterable[TokenLogprob | None]) -> list[Placed]:
        """A prompt's tokens with their places in its text."""
        stream, placed, decoded = TextStream(self.tokenizer), [], 0
        for token_id, one in zip(ids, figures, strict=True):
            placed.append(Placed(token_id, one, decoded))
            decoded += len(stream.push(token_id))
        return placed

    def entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        special = self.tokenizer.is_special(token_id)
        data = None if special else list(self.tokenizer.token_bytes(token_id))
        return {"token": self.text(token_id), "logprob": finite(logprob), "bytes": data}

    def chat(self, placed: list[Placed]) -> dict[str, Any]:
        """The `logprobs` object of a chat choice."""
        content = [
            {**self.entry(one.token_id, one.logprob), "top_logprobs": [self.entry(*pair) for pair in one.top]}
            for one in (token.figures for token in placed)
            if one is not None
        ]
        return {"content": content, "refusal": None}

    def completion(self, placed: list[Placed]) -> dict[str, Any]:
        """The `logprobs` object of a completion choice: four lists of one length, null where there is no figure."""
        return {
            "tokens": [self.text(token.id) for token in placed],
            "token_logprobs": [finite(token.figures.logprob) if token.figures else None for token in placed],
            "top_logprobs": [self.alternatives(token.figures) if token.figures else None for token in placed],
            "text_offset": [token.at for token in placed],
        }

    def alternatives(self, figures: TokenLogprob) -> dict[str, float]:
        """The likeliest tokens and the chosen one, as OpenAI does (so up to k + 1 entries)."""
        found = {self.text(token_id): finite(value) for token_id, value in figures.top}
        if figures.top:
            found.setdefault(self.text(figures.token_id), finite(figures.logprob))
        return found


def finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI's schema signs "very unlikely" with -9999."""
    return max(logprob, -9999.0)
