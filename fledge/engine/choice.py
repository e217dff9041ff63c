"""`Choice`: one answer in the making. It knows its next row, and what to do with the logits that come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fledge.engine.request import Event, FinishReason, Request, TokenLogprob
from fledge.engine.row import Row
from fledge.engine.sampling import Sampler, token_logprob
from fledge.text.stream import TextStream

if TYPE_CHECKING:
    from fledge.text.tokenizer import Tokenizer


class Choice:
    """One of a request's `n` answers. `slot` is its place in the cache while it runs; None while it waits.

    `model_stops`: the model's own stop ids. `vocab_size` is the number of ids that may be chosen: a model's vocabulary
    may be padded beyond its tokenizer's.
    """

    def __init__(
        self, request: Request, index: int, tokenizer: Tokenizer, model_stops: frozenset[int], vocab_size: int
    ):
        sampling = request.sampling
        self.request = request
        self.index = index
        self.slot: int | None = None
        self.n_cached = 0
        self.answer: list[int] = []
        self.vocab_size = vocab_size
        own_stops = frozenset() if sampling.ignore_eos else model_stops
        self.stop_ids = own_stops | frozenset(sampling.stop_token_ids)
        self.sampler = Sampler(sampling, index, request.prompt_ids, self.stop_ids, vocab_size)
        self.stream = TextStream(tokenizer, prompt_ids=request.prompt_ids, stop=sampling.stop)
        self.prompt_logprobs: list[TokenLogprob | None] | None = [None] if request.prompt_logprobs else None

    @property
    def in_prompt(self) -> bool:
        """Whether part of the prompt is still outside the cache."""
        return self.n_cached < len(self.request.prompt_ids)

    def next_row(self, chunk_tokens: int) -> Row:
        """The tokens to compute next: a chunk of the prompt (its edges are multiples of `chunk_tokens`, whoever else
        is in the step), or the last token of the answer."""
        assert self.slot is not None
        if not self.in_prompt:
            return Row(self.slot, self.n_cached, (self.answer[-1],))
        ids = self.request.prompt_ids[self.n_cached : self.n_cached + chunk_tokens]
        return Row(self.slot, self.n_cached, ids, all_logits=self.request.prompt_logprobs)

    def accept(self, row: Row, logits: np.ndarray) -> Event | None:
        """Take the logits [k, V] of `row`; the event they lead to, or None inside the prompt."""
        start, self.n_cached = self.n_cached, self.n_cached + len(row.ids)
        prompt = self.request.prompt_ids
        if self.prompt_logprobs is not None and start < len(prompt):
            n_top = self.request.sampling.logprobs or 0
            following = prompt[start + 1 : start + 1 + len(row.ids)]
            for token, token_logits in zip(following, logits, strict=False):
                self.prompt_logprobs.append(token_logprob(token_logits, token, n_top, self.vocab_size))
        if self.in_prompt:
            return None
        return self.advance(logits[-1])

    def advance(self, logits: np.ndarray) -> Event:
        """Choose the answer's next token from the model's raw logits [V]; the event with its text and figures."""
        sampling = self.request.sampling
        choosable = logits if len(logits) == self.vocab_size else logits[: self.vocab_size]
        token = self.sampler.choose(choosable, self.n_cached)
        logprobs: tuple[TokenLogprob, ...] = ()
        if sampling.logprobs is not None:
            logprobs = (token_logprob(logits, token, sampling.logprobs, self.vocab_size),)
        self.sampler.accept(token)
        self.answer.append(token)
        finish_reason: FinishReason | None = None
        if token in self.stop_ids:
            text, finish_reason = self.stream.finish(), "stop"
        else:
            text = self.stream.push(token)
            if self.stream.stopped:
                finish_reason = "stop"
            elif len(self.answer) == sampling.max_tokens:
                text, finish_reason = text + self.stream.finish(), "length"
        prompt_logprobs = None
        if self.prompt_logprobs is not None and len(self.answer) == 1:
            prompt_logprobs = tuple(self.prompt_logprobs)
        return Event(
            self.request.id, self.index, (token,), text, logprobs, finish_reason, prompt_logprobs=prompt_logprobs
        )

    def ended(self, finish_reason: FinishReason, error: str | None = None) -> Event:
        """The last event of an answer that was cut off from outside. Text held back is given up: it may be half a
        character or half a stop string."""
        return Event(self.request.id, self.index, finish_reason=finish_reason, error=error)
