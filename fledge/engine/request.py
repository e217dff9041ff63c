"""What goes into the engine and what comes out: `Request`, `Event`, `Completion`. Plain data; imports no torch.

A request's tokens depend on its prompt, its source, its `Sampling` and its seed alone. Log-probabilities are natural
logs of the model's own distribution: before penalties, temperature and truncation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from fledge.engine.constraint import Constraint
from fledge.engine.overflow import LongInput
from fledge.errors import RequestError

FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]
EarlyStopping = bool | Literal["never"]

MAX_CHOICES = 16
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 1024
MAX_STOP_TOKEN_IDS = 256
MAX_BIASES = 1024
MAX_TOP_LOGPROBS = 20
MAX_SEED = 2**63 - 1
MAX_PRIORITY = 1000
MAX_BEAMS = 64

WHOLE = ("max_tokens", "min_tokens", "top_k", "seed", "n")
RANGES = (
    ("temperature", 0.0, 100.0),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("typical_p", 0.0, 1.0),
    ("repetition_penalty", 0.01, 100.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Defaults are the model's plain distribution."""

    max_tokens: int = 128
    """Most tokens to generate."""
    min_tokens: int = 0
    """No stop token before this many tokens."""
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens whose probability reaches top_p."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the likeliest."""
    typical_p: float = 1.0
    """Keep the smallest set of the most typical tokens (information nearest the entropy) whose probability reaches
    typical_p."""
    repetition_penalty: float = 1.0
    """Divide (multiply when negative) the logits of tokens already in prompt or answer (Keskar 2019)."""
    presence_penalty: float = 0.0
    """Subtract from the logits of tokens already in the answer."""
    frequency_penalty: float = 0.0
    """Subtract this times the count of a token in the answer."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, added logit) pairs."""
    seed: int = 0
    """The seed decides the sample: the same seed gives the same tokens whatever else runs."""
    n: int = 1
    """Number of independent answers (choices)."""
    stop: tuple[str, ...] = ()
    """Up to 4 texts that end the answer; not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Further token ids that end the answer."""
    ignore_eos: bool = False
    """Go on past the model's own stop tokens."""
    logprobs: int | None = None
    """None: no log-probabilities; k: the chosen token's and the k likeliest's."""
    constraint: Constraint | None = None
    """What the answer's text must match: a JSON schema, a regex, a list of texts, a grammar."""

    def validated(self, vocab_size: int) -> Sampling:
        """This, after checking every range. Raises RequestError naming the parameter."""
        for name in WHOLE:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise RequestError(f"{name}: expected an integer, got {value!r:.40}", name)
        check(1 <= self.max_tokens < 2**31, "max_tokens", "at least 1 and below 2^31", self.max_tokens)
        check(0 <= self.min_tokens <= self.max_tokens, "min_tokens", "0..max_tokens", self.min_tokens)
        check(self.top_k >= 0, "top_k", "0 or more", self.top_k)
        check(1 <= self.n <= MAX_CHOICES, "n", f"1..{MAX_CHOICES}", self.n)
        check(-MAX_SEED - 1 <= self.seed <= MAX_SEED, "seed", "a 64-bit integer", self.seed)
        for name, low, high in RANGES:
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not low <= value <= high:  # NaN is not
                raise RequestError(f"{name}: expected a number in {low:g}..{high:g}, got {value!r:.60}", name)
        check(self.top_p > 0, "top_p", "above 0", self.top_p)
        check(self.typical_p > 0, "typical_p", "above 0", self.typical_p)
        self.check_lists(vocab_size)
        k = self.logprobs
        check(k is None or 0 <= k <= MAX_TOP_LOGPROBS, "logprobs", f"0..{MAX_TOP_LOGPROBS}", k)
        if self.constraint is not None:
            self.constraint.validated()
        return self

    def check_lists(self, vocab_size: int) -> None:
        """Stops and biases: how many and how long first, since all of it is kept for each of `n` answers."""
        if not (self.stop or self.stop_token_ids or self.logit_bias):
            return
        check(len(self.stop) <= MAX_STOPS, "stop", f"at most {MAX_STOPS} texts", len(self.stop))
        for text in self.stop:
            check(isinstance(text, str) and text != "", "stop", "texts that are not empty", text)
            too_long = f"texts of at most {MAX_STOP_CHARACTERS} characters"
            check(len(text) <= MAX_STOP_CHARACTERS, "stop", too_long, len(text))
        n_stop_ids, n_biases = len(self.stop_token_ids), len(self.logit_bias)
        check(n_stop_ids <= MAX_STOP_TOKEN_IDS, "stop_token_ids", f"at most {MAX_STOP_TOKEN_IDS} ids", n_stop_ids)
        check(n_biases <= MAX_BIASES, "logit_bias", f"at most {MAX_BIASES} ids", n_biases)
        known = f"ids in 0..{vocab_size - 1}"
        for name, ids in (("logit_bias", [i for i, _ in self.logit_bias]), ("stop_token_ids", self.stop_token_ids)):
            for token in ids:
                check(isinstance(token, int) and 0 <= token < vocab_size, name, known, token)
        for _, bias in self.logit_bias:
            check(math.isfinite(bias) and -100 <= bias <= 100, "logit_bias", "values in -100..100", bias)


def check(ok: bool, param: str, expected: str, got: object) -> None:
    if not ok:
        raise RequestError(f"{param}: expected {expected}, got {got!r:.60}", param)


@dataclass(frozen=True)
class BeamSearch:
    """How to search. `n_beams` answers are kept at each length and `n_beams` come out at the end, best first."""

    n_beams: int = 4
    max_tokens: int = 128
    length_penalty: float = 1.0
    """An answer's score is its log-probability over its length to this power: above 0 favours long answers."""
    early_stopping: EarlyStopping = False
    """True: stop at `n_beams` finished answers; False: when the best running one, at its length, is below them all;
    never: when it could not be above them at any length."""
    n_groups: int = 1
    """Above 1: diverse beam search (Vijayakumar et al. 2016). The beams search in so many groups, one after another in
    each step; answers of different groups differ."""
    diversity_penalty: float = 0.0
    """What a token loses, when a group chooses, for each beam of the groups before that has chosen it in the same step.
    It decides the choice alone: scores are of log-probabilities."""

    @property
    def group_beams(self) -> int:
        return self.n_beams // self.n_groups

    def validated(self) -> BeamSearch:
        """This, after checking every range. Raises RequestError."""
        check(1 <= self.n_beams <= MAX_BEAMS, "n_beams", f"1..{MAX_BEAMS}", self.n_beams)
        check(self.max_tokens >= 1, "max_tokens", "at least 1", self.max_tokens)
        check(-10 <= self.length_penalty <= 10, "length_penalty", "-10..10", self.length_penalty)
        stopping = self.early_stopping
        check(stopping in (True, False, "never"), "early_stopping", "true, false or never", stopping)
        groups, penalty = self.n_groups, self.diversity_penalty
        divides = 1 <= groups <= self.n_beams and self.n_beams % groups == 0
        check(divides, "n_groups", f"a divisor of n_beams, {self.n_beams}", groups)
        several = groups > 1
        wanted = "above 0 and at most 1e4 for several groups" if several else "0 for one group"
        check(0 < penalty <= 1e4 if several else penalty == 0, "diversity_penalty", wanted, penalty)
        return self


@dataclass(frozen=True)
class Request:
    """One prompt and how to answer it. Tenants of equal priority take turns, and share nothing of the cache.

    A higher `priority` goes first. An answer that has not ended `deadline_seconds` after `submit` ends then, with the
    finish reason "deadline"; one that still waited is never begun. So ends a request of which no answer has got a slot
    `queue_seconds` after `submit`. `source_ids` are for the encoder of a model that has one; `prompt_ids` then begin
    the decoder's text, and () stands for the id that the model starts with. `long_input`: what to do where prompt (or
    source) and answer outgrow the context; None: what the engine was told. `adapter`: the name of what stands beside
    the base (see `Engine.load_adapter`); "" for the base alone. `search`: its answers are the best `n` that a beam
    search finds, told at its end; of the sampling max_tokens, n and the stops hold then.
    """

    id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    tenant: str = ""
    prompt_logprobs: bool = False
    priority: int = 0
    deadline_seconds: float | None = None
    queue_seconds: float | None = None
    source_ids: tuple[int, ...] = ()
    long_input: LongInput | None = None
    adapter: str = ""
    search: BeamSearch | None = None

    @property
    def n_places(self) -> int:
        """Answers that it has in work at once: a search as many as beams."""
        return self.sampling.n if self.search is None else self.search.n_beams

    @property
    def prompt_tokens(self) -> int:
        """What was given to read: the source's tokens where there is one, else the prompt's."""
        return len(self.source_ids) or len(self.prompt_ids)

    def check_urgency(self) -> None:
        """Raise RequestError unless priority, deadline and time in the line are in their ranges."""
        whole = isinstance(self.priority, int) and not isinstance(self.priority, bool)
        ok = whole and abs(self.priority) <= MAX_PRIORITY
        check(ok, "priority", f"an integer in {-MAX_PRIORITY}..{MAX_PRIORITY}", self.priority)
        for name in ("deadline_seconds", "queue_seconds"):
            seconds = getattr(self, name)
            number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
            check(seconds is None or (number and seconds > 0), name, "a number above 0", seconds)


@dataclass(frozen=True)
class TokenLogprob:
    """A token's natural log-probability and the likeliest alternatives (id, log-probability), best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Event:
    """One step of one choice. `token_ids` are new tokens (stop tokens included, for usage), `text` is new text that
    will not be taken back (whole UTF-8, no part of a stop string). `finish_reason` is set in a choice's last event.
    `score`: of an answer of a beam search."""

    request_id: str
    index: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    score: float | None = None


@dataclass(frozen=True)
class Completion:
    """A finished choice: all of its events joined. `token_ids` include the stop token; `text` never does.
    `cut_tokens`: how many tokens of the prompt (or source) were cut off because it was too long. `score`: of an answer
    of a beam search."""

    request_id: str
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    cut_tokens: int = 0
    score: float | None = None
