"""`TextStream`: the text of an answer while its tokens arrive. Half a character and what may become a stop string wait.

Whatever was given out is never taken back: the pieces joined are the decoded answer, cut before the first stop string.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from fledge.text.tokenizer import Tokenizer


class TextStream:
    """Feed token ids with `push`, close with `finish`; `stopped` turns true when a stop string is complete.

    `prompt_ids` matter only where a tokenizer drops the space at the beginning of a text: an answer to a prompt with
    text keeps its first space. Of several stop strings the one that is complete first counts, the longest of equals.
    Bytes that can be no UTF-8 come out as U+FFFD at most three bytes later; a character still unfinished at the end of
    the answer is left out, as `Tokenizer.decode` does.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = (), stop: Sequence[str] = ()):
        self.tokenizer = tokenizer
        self.stopped = False
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.at_start = tokenizer.drops_first_space and not any(tokenizer.token_bytes(i) for i in prompt_ids)
        self.matchers = [Matcher(text) for text in stop if text]
        self.held = ""

    def push(self, token_id: int) -> str:
        """The text that this token makes certain; "" while it is open, and after a stop."""
        if self.stopped:
            return ""
        data = self.tokenizer.token_bytes(token_id)
        if self.at_start:
            data, self.at_start = self.tokenizer.pieces.at_start(token_id, data)
        return self.release(self.decoder.decode(data))

    def finish(self) -> str:
        """The text still held back, once no token follows."""
        text, self.held = self.held, ""
        return "" if self.stopped else text

    def release(self, text: str) -> str:
        """`text` goes in; what can no longer be part of a stop string comes out."""
        if not self.matchers or not text:
            return text
        known, self.held = len(self.held), self.held + text
        for place, character in enumerate(text, known + 1):
            longest = max(matcher.feed(character) for matcher in self.matchers)
            if longest:
                self.stopped = True
                text, self.held = self.held[: place - longest], ""
                return text
        waiting = max(matcher.matched for matcher in self.matchers)
        cut = len(self.held) - waiting
        text, self.held = self.held[:cut], self.held[cut:]
        return text


class Matcher:
    """Finds one stop string in characters that arrive one by one (Knuth, Morris & Pratt 1977): `matched` is how many of
    its first characters the text now ends with."""

    def __init__(self, pattern: str):
        self.pattern = pattern
        self.matched = 0
        self.fallback = [0] * len(pattern)  # [i]: length of the longest border of pattern[:i + 1]
        border = 0
        for place in range(1, len(pattern)):
            while border and pattern[place] != pattern[border]:
                border = self.fallback[border - 1]
            border += pattern[place] == pattern[border]
            self.fallback[place] = border

    def feed(self, character: str) -> int:
        """The pattern's length if this character completes it, else 0."""
        while self.matched and self.pattern[self.matched] != character:
            self.matched = self.fallback[self.matched - 1]
        self.matched += self.pattern[self.matched] == character
        return len(self.pattern) if self.matched == len(self.pattern) else 0
