"""`Choice`: one answer in the making. It knows its next row, and what to do with the logits that come back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fledge.engine.prefix import Content, chain_key
from fledge.engine.rejection import Odds
from fledge.engine.request import Event, FinishReason, Request, TokenLogprob
from fledge.engine.row import Row, Source
from fledge.engine.sampling import Sampler, token_logprob
from fledge.text.stream import TextStream

if TYPE_CHECKING:
    from fledge.engine.constrain import Automaton
    from fledge.engine.overflow import Sliding
    from fledge.text.tokenizer import Tokenizer


class Choice:
    """One of a request's `n` answers. `slot` is its number beside others while it runs; None while it waits. It holds
    `blocks` of cache, in order, for its first `n_cached` tokens and some to come; -1 stands for one it needs no more.

    `arrival` counts requests as they came. `model_stops`: the model's own stop ids. `vocab_size` is the number of ids
    that may be chosen: a model's vocabulary may be padded beyond its tokenizer's. `automaton`: the request's constraint
    at its beginning, this choice's own. `sliding`: how its document moves when it outgrows the context: of the text,
    prompt and answer, it then is what is not `hidden`. While it runs, `source` is what its rows read besides, by name,
    and `n_unread` how many tokens of that are to be encoded with its next row.
    """

    def __init__(
        self,
        request: Request,
        index: int,
        tokenizer: Tokenizer,
        model_stops: frozenset[int],
        vocab_size: int,
        arrival: int = 0,
        automaton: Automaton | None = None,
        sliding: Sliding | None = None,
    ):
        sampling = request.sampling
        self.request = request
        self.index = index
        self.arrival = arrival
        self.slot: int | None = None
        self.source: Source | None = None
        self.n_unread = 0
        self.blocks: list[int] = []
        self.contents: list[Content] = []  # of its full blocks, as far as anyone asked
        self.n_known = 0  # full blocks whose content others can find
        self.n_dropped = 0  # blocks before every window
        self.n_cached = 0
        self.sliding = sliding
        self.hidden = 0 if sliding is None else sliding.hidden(len(request.prompt_ids))
        self.answer: list[int] = []
        self.draft: list[int] = []  # guesses at the next tokens, to be checked by the next row
        self.odds: list[Odds | None] = []  # what they were drawn by, where chance accepts them
        self.vocab_size = vocab_size
        own_stops = frozenset() if sampling.ignore_eos else model_stops
        self.stop_ids = own_stops | frozenset(sampling.stop_token_ids)
        self.sampler = Sampler(sampling, index, request.prompt_ids, self.stop_ids, vocab_size, automaton)
        self.stream = TextStream(tokenizer, prompt_ids=request.prompt_ids, stop=sampling.stop)
        self.prompt_logprobs: list[TokenLogprob | None] | None = [None] if request.prompt_logprobs else None

    @property
    def text_tokens(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.request.prompt_ids) + len(self.answer)

    @property
    def n_tokens(self) -> int:
        """Tokens of its document so far: of the text, what is not hidden."""
        return self.text_tokens - self.hidden

    @property
    def most_tokens(self) -> int:
        """Tokens of its longest document."""
        most = len(self.request.prompt_ids) + self.request.sampling.max_tokens
        return most if self.sliding is None else min(most, self.sliding.context_tokens)

    @property
    def decodes(self) -> bool:
        """Whether all but the answer's last token is in the cache; else there is more to read first."""
        return bool(self.answer) and self.n_cached == self.n_tokens - 1

    @property
    def begun(self) -> bool:
        """Whether some of its tokens or figures are there."""
        return bool(self.answer) or len(self.prompt_logprobs or ()) > 1

    @property
    def measures_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are still to come: nothing of it may then be skipped."""
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < len(self.request.prompt_ids)

    def ids(self, start: int, end: int) -> tuple[int, ...]:
        """Tokens start..end of its document and the draft."""
        if self.sliding is None or not self.hidden:
            return self.text(start, end)
        sinks, hidden = self.sliding.sinks, self.hidden
        first = self.text(start, min(end, sinks)) if start < sinks else ()
        return first + (self.text(max(start, sinks) + hidden, end + hidden) if end > sinks else ())

    def text(self, start: int, end: int) -> tuple[int, ...]:
        """Tokens start..end of prompt, answer and draft."""
        prompt, said = self.request.prompt_ids, self.answer + self.draft
        if start >= len(prompt):
            return tuple(said[start - len(prompt) : end - len(prompt)])
        return prompt[start:end] + tuple(said[: max(0, end - len(prompt))])

    def next_end(self, chunk_tokens: int, start: int) -> int:
        """Where the tokens computed from `start` on end: at the last, guesses included, or a multiple of
        `chunk_tokens`, whoever else is in the step."""
        return min(self.n_tokens + len(self.draft), (start // chunk_tokens + 1) * chunk_tokens)

    def next_row(self, chunk_tokens: int, block_tokens: int) -> Row:
        """The tokens to compute next: a chunk of what is not in the cache, often one token."""
        assert self.slot is not None
        start, end = self.n_cached, self.next_end(chunk_tokens, self.n_cached)
        blocks = tuple(self.blocks[: -(-end // block_tokens)])
        all_logits = self.measures_prompt or end > self.n_tokens
        return Row(blocks, start, self.ids(start, end), all_logits, self.slot, self.source, self.request.adapter)

    def content(self, number: int, root: bytes, block_tokens: int) -> Content:
        """What its block `number` holds when it is full, which its tokens must be enough for."""
        while len(self.contents) <= number:
            n = len(self.contents)
            parent = self.contents[-1].key if self.contents else root
            tokens = self.ids(n * block_tokens, (n + 1) * block_tokens)
            self.contents.append(Content(chain_key(parent, tokens), parent, tokens))
        return self.contents[number]

    def accept(self, row: Row, logits: np.ndarray) -> Event | None:
        """Take the logits [k, V] of `row`; the event they lead to, or None while there is more to read."""
        start, self.n_cached = self.n_cached, self.n_cached + len(row.ids)
        if row.all_logits and self.prompt_logprobs is not None:
            prompt, n_top = self.request.prompt_ids, self.request.sampling.logprobs or 0
            for place in range(len(self.prompt_logprobs), min(self.n_cached + 1, len(prompt))):
                # some may be known from before the answer gave its blocks back
                told = token_logprob(logits[place - 1 - start], prompt[place], n_top, self.vocab_size)
                self.prompt_logprobs.append(told)
        draft, self.draft = self.draft, []
        if self.n_cached < self.n_tokens:
            return None
        return self.checked(draft[: self.n_cached - self.n_tokens], logits)

    def checked(self, draft: list[int], logits: np.ndarray) -> Event:
        """Choose tokens from the last logits as long as they are those of `draft`, and one more: their events as one.
        The cache keeps what was computed of the right ones."""
        begin, events = self.n_tokens, []
        for number, row in enumerate(logits[len(logits) - 1 - len(draft) :]):
            self.n_cached = begin + number
            guess = (draft[number], self.odds[number]) if number < min(len(draft), len(self.odds)) else None
            events.append(self.advance(row, guess))
            if events[-1].finish_reason or draft[number : number + 1] != [self.answer[-1]]:
                break
        return events[0] if len(events) == 1 else joined(events)

    @property
    def guessable(self) -> int:
        """How many tokens may be guessed: the next one is computed anyway, and none beyond the document."""
        left = self.request.sampling.max_tokens - len(self.answer) - 1
        return left if self.sliding is None else min(left, self.sliding.context_tokens - self.n_tokens)

    def slide(self) -> bool:
        """Hide what the text has outgrown; whether the document is another one now, of which nothing is in the cache
        yet."""
        hidden = 0 if self.sliding is None else self.sliding.hidden(self.text_tokens)
        if hidden == self.hidden:
            return False
        self.hidden = hidden
        self.contents.clear()
        return True

    def empty(self) -> None:
        """None of its document is in the cache."""
        self.blocks, self.draft = [], []
        self.n_cached = self.n_known = self.n_dropped = 0

    def give_back(self) -> None:
        """It holds nothing of the engine any more."""
        self.empty()
        self.slot, self.source, self.n_unread = None, None, 0

    def advance(self, logits: np.ndarray, guess: tuple[int, Odds | None] | None = None) -> Event:
        """Choose the answer's next token from the model's raw logits [V]; the event with its text and figures. A
        `guess` with its odds is accepted by chance."""
        sampling = self.request.sampling
        choosable = logits if len(logits) == self.vocab_size else logits[: self.vocab_size]
        if guess is None:
            token = self.sampler.choose(choosable, self.text_tokens)
        else:
            token = self.sampler.check(choosable, self.text_tokens, *guess)
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
            elif self.sampler.ended:
                text, finish_reason = text + self.stream.finish(), "stop"
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


def joined(events: list[Event]) -> Event:
    """Events of one choice that follow each other as one."""
    return replace(
        events[0],
        token_ids=tuple(token for event in events for token in event.token_ids),
        text="".join(event.text for event in events),
        logprobs=tuple(logprob for event in events for logprob in event.logprobs),
        finish_reason=events[-1].finish_reason,
    )
