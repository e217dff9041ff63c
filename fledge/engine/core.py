"""The engine: a synchronous core without input or output. `submit` requests, `step` until `has_work` is false.

Every step admits waiting answers (fledge/engine/scheduler.py), then runs the model twice at most: once over one token
of every running answer, once over chunks of prompts (continuous batching; Yu et al. 2022, Orca). What an answer says
depends on its request alone: noise is looked up by (seed, choice, position, token), chunk edges by the prompt. Not
thread-safe.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fledge.engine.beam import check_search
from fledge.engine.choice import Choice
from fledge.engine.config import EngineConfig
from fledge.engine.constrain import Constrainer
from fledge.engine.length import answer_room
from fledge.engine.overflow import LongInput
from fledge.engine.request import Completion, Event, FinishReason, Request
from fledge.engine.row import Row, RunnerFace, as_array
from fledge.engine.scheduler import Scheduler
from fledge.engine.searches import Searches, ended
from fledge.engine.shelf import Shelf
from fledge.engine.source import cut_source, with_start
from fledge.engine.speculate import Drafter
from fledge.errors import CapacityError, EngineError, FledgeError, PeerError, RankError, RequestError

if TYPE_CHECKING:
    from torch import Tensor

    from fledge.text.tokenizer import Tokenizer

TOTALS = (
    "prompt_tokens", "generated_tokens", "draft_tokens", "accepted_tokens",
    "requests", "cancelled", "expired", "failed", "steps",
)  # fmt: skip
DRAFT_ROWS = 16  # rows of a step that is no slower for guesses

LATE = "engine: the deadline passed before the answer was finished"
NO_SLOT = "engine: no slot came free in the time that the request may wait; send it again later"
NO_SINKS = "overflow: expected refuse or truncate for a source, got sinks; a source is read as one"
UNMEASURED = (
    "prompt: expected at most {} tokens where its log-probabilities are asked for, got {}; under sinks no token sees "
    "all of a longer one"
)
UNTOLD = "prompt_logprobs: does not go with a beam search, which tells its answers' scores alone; leave it out"
REPLACED = "engine: the weights were replaced before the answer was finished; send the request again"


class Engine:
    """Generates for many requests at once on one runner. `stop_ids`: the model's stop tokens besides the tokenizer's.

    `submit` raises RequestError (the request can't be served as written) or CapacityError (the line is full). A forward
    pass that raises fails only the requests that raise when they are retried alone. `clock` gives seconds. `drafter`
    guesses next tokens (fledge/engine/speculate.py).
    """

    def __init__(
        self,
        runner: RunnerFace,
        tokenizer: Tokenizer,
        config: EngineConfig | None = None,
        stop_ids: Iterable[int] = (),
        clock: Callable[[], float] = time.monotonic,
        drafter: Drafter | None = None,
    ):
        self.runner = runner
        self.drafter = drafter if runner.shares else None  # a recurrent state can't be taken back
        self.tokenizer = tokenizer
        self.config = config or EngineConfig()
        self.stop_ids = frozenset(tokenizer.stop_ids) | frozenset(stop_ids)
        self.vocab_size = min(runner.vocab_size, tokenizer.vocab_size)
        self.clock = clock
        self.constrainer = Constrainer(tokenizer, self.vocab_size)
        self.scheduler = Scheduler(runner, self.config)
        self.searches = Searches(self.scheduler, tokenizer, self.vocab_size, self.config.prefill_chunk)
        self.deadlines: dict[str, float] = {}  # request id -> a time of the clock
        self.begin_by: dict[str, float] = {}  # the same, of requests that have had no slot yet
        self.live: dict[str, list[Choice]] = {}  # request id -> its unfinished choices
        self.unsent: list[Event] = []
        self.shelf = Shelf(runner)
        self.totals = dict.fromkeys(TOTALS, 0)

    @property
    def context_tokens(self) -> int:
        """Longest prompt and answer together: the runner's context, or what the whole cache holds of one answer."""
        scheduler, n_blocks = self.scheduler, self.runner.n_blocks
        longest = self.runner.context_tokens
        fits = scheduler.most_blocks(longest) <= n_blocks
        return longest if fits else n_blocks * self.runner.block_tokens

    @property
    def reach_tokens(self) -> int:
        """Longest prompt and answer of a request that goes on past the context; 0: none may."""
        longest, n_blocks = self.runner.reach_tokens, self.runner.n_blocks
        fits = self.scheduler.most_blocks(longest) <= n_blocks
        return longest if fits else min(longest, n_blocks * self.runner.block_tokens)

    def longest(self, request: Request) -> int:
        """Prompt and answer of a request have at most so many tokens together. Raises RequestError."""
        return self.policy(request).longest(self.context_tokens, self.reach_tokens)

    def policy(self, request: Request) -> LongInput:
        """What is done where the request is too long for the context."""
        return request.long_input or self.config.long_input

    def hidden(self, request: Request) -> int:
        """How many tokens of a request's prompt the first of its answer doesn't see, though they weren't cut."""
        return self.policy(request).hidden(len(request.prompt_ids), self.context_tokens)

    def n_cut(self, request: Request) -> int:
        """How many tokens of a request's prompt, or source, are cut or hidden."""
        fitted = self.fitted(request)
        return request.prompt_tokens - fitted.prompt_tokens + self.hidden(fitted)

    @property
    def reads_source(self) -> bool:
        """Whether the model is an encoder–decoder: requests then have `source_ids`."""
        return self.runner.source_tokens > 0

    @property
    def has_work(self) -> bool:
        """Whether another `step` would do or tell something."""
        return bool(self.live or self.unsent or self.searches.all)

    def knows(self, request_id: str) -> bool:
        """Whether a request has not ended."""
        return request_id in self.live or request_id in self.searches

    def check_new(self, request_id: str) -> None:
        """Raise RequestError for the id of a request that has not ended, or some of whose events were not told yet."""
        if self.knows(request_id):
            raise RequestError(f"id: expected a new request id, got {request_id!r:.60}, which is running", "id")
        if any(event.request_id == request_id for event in self.unsent):
            raise RequestError(
                f"id: expected a new request id, got {request_id!r:.60}, whose last events come with the next step; "
                "take another, or step first",
                "id",
            )

    def submit(self, request: Request) -> None:
        """Put a request in the line. Raises RequestError or CapacityError and then nothing has changed."""
        request.check_urgency()
        sampling = request.sampling.validated(self.vocab_size)
        request = self.shelf.resolved(self.fitted(request))
        if request.source_ids or self.reads_source:
            request = with_start(request, self.runner, self.vocab_size)
        self.check_new(request.id)
        if not request.prompt_ids:
            raise RequestError("prompt: expected at least one token, got none; begin with the BOS token", "prompt")
        if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= self.vocab_size:
            raise RequestError(f"prompt: expected token ids in 0..{self.vocab_size - 1}", "prompt")
        search = None if request.search is None else check_search(sampling, request.search)
        longest = self.longest(request) if search is None else self.context_tokens
        answer_room(len(request.prompt_ids), sampling.max_tokens, longest)
        if request.prompt_logprobs and search is not None:
            raise RequestError(UNTOLD, "prompt_logprobs", "unsupported_parameter")
        if request.prompt_logprobs and self.hidden(request):
            raise RequestError(UNMEASURED.format(self.context_tokens, len(request.prompt_ids)), "prompt")
        scheduler, n_waiting = self.scheduler, self.scheduler.n_waiting + self.searches.n_waiting
        room = self.config.max_waiting + len(scheduler.free_slots) - n_waiting
        if request.n_places > room:
            raise CapacityError(
                f"engine: expected room for {request.n_places} answers, got {max(0, room)}: "
                f"{n_waiting} wait for {self.runner.n_slots} slots; try again later"
            )
        arrival = self.totals["requests"]
        if search is not None:
            self.searches.add(request, search, arrival, self.stop_ids)
        else:
            self.queue(request, arrival)
        self.shelf.hold(request.adapter)
        if request.deadline_seconds is not None:
            self.deadlines[request.id] = self.clock() + request.deadline_seconds
        if request.queue_seconds is not None:
            self.begin_by[request.id] = self.clock() + request.queue_seconds
        self.totals["requests"] += 1
        self.totals["prompt_tokens"] += request.prompt_tokens

    def queue(self, request: Request, arrival: int) -> None:
        """Put the answers of a request in the line."""
        automata = self.constrainer.automata(request)
        sliding = self.policy(request).sliding(self.context_tokens)
        choices = [
            Choice(request, index, self.tokenizer, self.stop_ids, self.vocab_size, arrival, automaton, sliding)
            for index, automaton in enumerate(automata)
        ]
        self.live[request.id] = list(choices)
        self.scheduler.queue(choices)

    def fitted(self, request: Request) -> Request:
        """The request with its prompt, or its source, cut as its policy for long ones says. Raises RequestError."""
        long_input = self.policy(request).validated()
        if self.reads_source:
            if long_input.policy == "sinks":
                raise RequestError(NO_SINKS, "overflow", "unsupported_parameter")
            source = cut_source(self.tokenizer, request.source_ids, long_input, self.runner.source_tokens)
            return replace(request, source_ids=source)
        ids = long_input.cut(
            request.prompt_ids, request.sampling.max_tokens, self.context_tokens, self.tokenizer.bos_id
        )
        return replace(request, prompt_ids=ids)

    def cancel(self, request_id: str) -> None:
        """End a request now; its slots are free at once and its last events come with the next step. An unknown or
        finished id is no error: the answer may have ended while the cancellation was on its way."""
        if self.knows(request_id):
            self.totals["cancelled"] += 1
            self.unsent += self.end(request_id, "cancelled")

    def step(self) -> list[Event]:
        """One round of the model; the events it led to, in no order between requests."""
        events, self.unsent = self.unsent, []
        events += self.expire()
        scheduler = self.scheduler
        if (begun := self.searches.seat()) is not None:
            self.begin_by.pop(begun.id, None)
        scheduler.admit(self.searches.goes_before)
        if self.begin_by:
            for choice in scheduler.running:
                self.begin_by.pop(choice.request.id, None)
        decoding, prefilling = list(scheduler.decoding), scheduler.next_chunks()
        self.draft(decoding)
        for choices in (decoding, prefilling):
            if choices:
                events += self.advance(choices)
        events += self.search()
        if decoding or prefilling or self.searches.running:
            self.totals["steps"] += 1
        return events

    def search(self) -> list[Event]:
        """One pass of the beam search that runs, if one does."""
        events = self.searches.step(self.fail)
        if events:
            self.forget(self.searches.leave(events[0].request_id))
            self.totals["generated_tokens"] += sum(len(event.token_ids) for event in events)
        return events

    def forget(self, request: Request | None) -> None:
        """A request has ended."""
        if request is not None:
            self.shelf.let_go(request.adapter)
            self.deadlines.pop(request.id, None)
            self.begin_by.pop(request.id, None)

    def draft(self, choices: list[Choice]) -> None:
        """Have the next tokens of these answers guessed, as many as a step computes in the time of one."""
        n = min(self.config.draft_tokens, DRAFT_ROWS // max(1, len(choices)) - 1)
        if self.drafter is None or n < 1 or not choices:
            return
        try:
            for choice in choices:
                choice.odds = []
            for choice, draft in zip(choices, self.drafter.guess(choices, n), strict=True):
                if self.config.draft_accept == "rejection" and choice.request.sampling.temperature > 0:
                    choice.odds += [None] * (len(draft) - len(choice.odds))  # guessed for certain
                choice.draft = draft[: choice.guessable]
        except Exception as error:  # they are guesses: nobody's answer needs them
            traceback.print_exception(error, file=sys.stderr)
            self.drafter = None

    def expire(self) -> list[Event]:
        """End the requests whose deadline, or time in the line, has passed."""
        events: list[Event] = []
        for times, message in ((self.deadlines, LATE), (self.begin_by, NO_SLOT)):
            if not times:
                continue
            now = self.clock()
            for request_id in [request_id for request_id, latest in times.items() if latest <= now]:
                self.totals["expired"] += 1
                events += self.end(request_id, "deadline", message)
        return events

    def step_for(self, request_ids: Container[str]) -> list[Event]:
        """As `step`, but the events of these requests alone; those of others stay for whoever steps next."""
        own: list[Event] = []
        others: list[Event] = []
        for event in self.step():
            (own if event.request_id in request_ids else others).append(event)
        self.unsent = others
        return own

    def abandon(self, request_ids: Collection[str]) -> None:
        """End requests for whose events nobody waits any more."""
        for request_id in request_ids:
            self.end(request_id, "cancelled")
        self.unsent = [event for event in self.unsent if event.request_id not in request_ids]

    def advance(self, choices: list[Choice]) -> list[Event]:
        """Run the model over these choices' next rows and let each take its logits."""
        # a sibling may have failed in this step, or one gave its blocks back
        choices = self.scheduler.with_room([choice for choice in choices if choice.slot is not None])
        rows = [choice.next_row(self.config.prefill_chunk, self.runner.block_tokens) for choice in choices]
        events: list[Event] = []
        for choice, row, result in zip(choices, rows, self.forward(rows), strict=True):
            if choice.slot is None:
                continue  # a sibling failed in this very loop
            n_drafted = max(0, row.start + len(row.ids) - choice.n_tokens)
            try:
                if isinstance(result, Exception):
                    raise result
                event = choice.accept(row, result)
            except Exception as error:  # whatever one answer raises must not end the others
                events += self.fail(choice.request.id, error)
                continue
            self.scheduler.computed(choice)
            if event is not None:
                self.totals["generated_tokens"] += len(event.token_ids)
                self.totals["draft_tokens"] += n_drafted
                self.totals["accepted_tokens"] += len(event.token_ids) - 1
                events.append(event)
                if event.finish_reason is not None:
                    self.release(choice)
        return events

    def forward(self, rows: list[Row]) -> list[np.ndarray | Exception]:
        """Logits [k, V] of every row, or what it raised. When a batch raises, each of its rows is tried alone."""
        try:
            return [as_array(logits) for logits in self.runner.forward(rows)]
        except (RankError, PeerError):
            raise  # no pass can be computed any more
        except Exception as error:  # poison in one row, or too little memory for all of them at once
            if len(rows) == 1:
                return [error]
            return [self.forward([row])[0] for row in rows]

    def fail(self, request_id: str, error: Exception) -> list[Event]:
        """End a request that raised. The trace goes to standard error; the caller learns the kind of error alone."""
        self.totals["failed"] += 1
        if isinstance(error, FledgeError):
            message = str(error)
        else:
            traceback.print_exception(error, file=sys.stderr)
            message = f"engine: the forward pass failed ({type(error).__name__}); the request was given up"
        return self.end(request_id, "error", message)

    def end(self, request_id: str, finish_reason: FinishReason, error: str | None = None) -> list[Event]:
        if (search := self.searches.leave(request_id)) is not None:
            self.forget(search)
            return ended(search, finish_reason, error)
        choices = list(self.live.get(request_id, ()))
        for choice in choices:
            self.release(choice)
        return [choice.ended(finish_reason, error) for choice in choices]

    def release(self, choice: Choice) -> None:
        """Forget a choice wherever it stands; its slot and blocks are free."""
        self.scheduler.leave(choice)
        siblings = self.live[choice.request.id]
        siblings.remove(choice)
        if not siblings:
            del self.live[choice.request.id]
            self.forget(choice.request)

    def load_adapter(self, name: str, folder: str) -> None:
        """Stand the adapter in a folder beside the model: requests that name it are answered with it. Raises
        ConfigError and CheckpointError for one that can't, and then nothing has changed."""
        self.shelf.load(name, self.runner.read_adapter(folder))

    def unload_adapter(self, name: str) -> None:
        """Requests under way finish with it. Raises RequestError for a name that is not loaded."""
        self.shelf.unload(name)

    def load_weights(self, state: Mapping[str, Tensor], version: str) -> None:
        """Go on with other weights, by the names of the model's `state_dict()`; `version` tells them from all others.

        A request that has begun ends with an error, as half of one model and half of another answers it; one that only
        waits is answered by the new weights. Nothing that was computed is used again. Raises CheckpointError for
        weights of another model, and then nothing has changed.
        """
        self.runner.load_weights(state)
        for request_id in {choice.request.id for choice in self.scheduler.running} | self.begun():
            self.unsent += self.end(request_id, "error", REPLACED)
        self.scheduler.forget_all(version)

    def begun(self) -> set[str]:
        """The requests of which something has been said or measured."""
        search = self.searches.running
        return {
            request_id
            for request_id, choices in self.live.items()
            if len(choices) < choices[0].request.sampling.n or any(choice.begun for choice in choices)
        } | ({search.request.id} if search else set())

    def counters(self) -> dict[str, float]:
        """Figures for a metrics page: answers running and waiting, slots, blocks of cache, totals so far."""
        figures = {**self.scheduler.counters(), **{f"{name}_total": value for name, value in self.totals.items()}}
        figures["running"] += self.searches.n_running
        figures["waiting"] += self.searches.n_waiting
        return figures

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Run requests to their end: completions in the order of the requests, then of their choices.

        More requests than the line holds are fed in as room comes. Raises RequestError for the first that can't be
        served and EngineError for one that failed; the rest are cancelled. Events of requests submitted otherwise stay
        for the next `step`.
        """
        outcome: dict[str, list[Gathered]] = {}
        for request in requests:
            if request.id in outcome:
                raise RequestError(f"id: expected different ids, got {request.id!r:.60} twice", "id")
            self.check_new(request.id)
            outcome[request.id] = [Gathered() for _ in range(request.sampling.n)]
        n_open = sum(map(len, outcome.values()))
        todo = deque(requests)
        try:
            while n_open:
                self.feed(todo)
                for event in self.step_for(outcome):
                    if event.error is not None:
                        raise EngineError(event.error)
                    outcome[event.request_id][event.index].add(event)
                    n_open -= event.finish_reason is not None
        finally:
            self.abandon(outcome)
        return [
            gathered.completion(request.id, index, self.n_cut(request))
            for request in requests
            for index, gathered in enumerate(outcome[request.id])
        ]

    def feed(self, todo: deque[Request]) -> None:
        """Submit from the front of `todo` while there is room. Raises CapacityError if even an idle engine has none."""
        while todo:
            try:
                self.submit(todo[0])
            except CapacityError:
                if not (self.live or self.searches.all):  # events of others that wait make no room
                    raise
                return
            todo.popleft()


class Gathered:
    """The events of one choice, joined."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, event: Event) -> None:
        self.events.append(event)

    def completion(self, request_id: str, index: int, cut_tokens: int = 0) -> Completion:
        """Raises EngineError if the choice did not end."""
        events = self.events
        if not events or events[-1].finish_reason is None:
            raise EngineError(f"engine: request {request_id!r:.60} ended without a finish reason")
        return Completion(
            request_id,
            index,
            "".join(event.text for event in events),
            tuple(token for event in events for token in event.token_ids),
            tuple(logprob for event in events for logprob in event.logprobs),
            events[-1].finish_reason,
            next((event.prompt_logprobs for event in events if event.prompt_logprobs is not None), None),
            cut_tokens,
            events[-1].score,
        )
