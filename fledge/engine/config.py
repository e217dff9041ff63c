"""Configuration of the engine and of the verbs `generate` and `chat`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from fledge.config import check_threads
from fledge.engine.constraint import Constraint
from fledge.engine.overflow import LongInput, Policy, Side
from fledge.engine.request import Sampling
from fledge.errors import ConfigError, RequestError
from fledge.parallel.config import SplitConfig

MAX_ROPE_FACTOR = 1024.0

CacheDtype = Literal["float32", "int8"]


@dataclass(frozen=True)
class EngineConfig:
    """How much the engine does at once."""

    n_slots: int = 8
    """Answers that run side by side at most."""
    context_tokens: int = 0
    """Longest prompt and answer together, in tokens; 0: the model's whole context. Less takes less memory."""
    cache_tokens: int = 0
    """Tokens that the cache holds, of all answers together; 0: n_slots contexts, or half of the free memory if less."""
    cache_dtype: CacheDtype = "float32"
    """float32, or int8: a quarter of the memory (with a scale a token and head), not the same answers."""
    prefix_cache: bool = True
    """Keep what full blocks of the cache hold for prompts of the same tenant that begin alike."""
    prefill_chunk: int = 512
    """Most prompt tokens in one step, so that long prompts don't stall running answers."""
    deterministic: bool = False
    """Equal bits whatever the company, chunks, blocks, cache hits and threads: what the compiled kernels give anyway is
    then insisted on, and a model or machine without them is refused."""
    draft: str = ""
    """What guesses next tokens, to be checked several at once: lookup (what followed the same tokens before), layers:N
    (the model's own first N layers), or the folder of a smaller model of the same vocabulary. Answers stay the same."""
    draft_tokens: int = 4
    """Tokens that are guessed for an answer; fewer where many are answered at once."""
    overflow: Policy = "refuse"
    """What is done with a prompt that, with its answer, outgrows the context, where a request doesn't say: refuse,
    truncate (cut it), window (only the last tokens are visible; needs reach_tokens), or sinks (the first sink_tokens
    and the last tokens are; when the context is full, half of it is given up and the rest read again)."""
    truncation_side: Side = "left"
    """Where truncate cuts: left keeps the end, right the beginning. Of a chat the oldest turns are left out."""
    sink_tokens: int = 4
    """How many tokens at the beginning of a text sinks keeps."""
    reach_tokens: int = 0
    """Longest prompt and answer together of requests whose overflow is window; 0: there are none. Each token of every
    answer then sees its last window_tokens."""
    window_tokens: int = 0
    """With reach_tokens: how many tokens a token sees, itself among them; 0: the context."""
    rope_scaling: str = ""
    """KIND:FACTOR, as yarn:4: read texts so many times as long as those of pre-training by scaled rotary frequencies,
    linear, dynamic or yarn. Replaces the model's own scaling."""
    draft_accept: Literal["equal", "rejection"] = "equal"
    """Which guesses count: equal ones (what the answer's own sampler says), or more by rejection sampling: the same
    distribution, but what a seed says then depends on the guesses, and so on the company."""
    max_waiting: int = 256
    """Answers that may wait for a slot; more are refused."""
    threads: int = 0
    """CPU threads of the model; 0 is one for each core."""
    parallel: SplitConfig = field(default_factory=SplitConfig)
    """Processes of a launcher (torchrun) that share the model."""
    stall_seconds: int = 120
    """Behind a server: an engine that has work and says nothing for so long is ended and started again; 0: never."""

    def __post_init__(self) -> None:
        for name, least in (
            ("n_slots", 1),
            ("context_tokens", 0),
            ("cache_tokens", 0),
            ("prefill_chunk", 1),
            ("reach_tokens", 0),
            ("sink_tokens", 0),
            ("window_tokens", 0),
            ("draft_tokens", 0),
            ("max_waiting", 0),
            ("stall_seconds", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        check_threads(self.threads)
        if self.draft_accept not in ("equal", "rejection"):
            raise ConfigError(f"draft_accept: expected equal or rejection, got {self.draft_accept!r:.40}")
        if self.draft_accept == "rejection" and self.deterministic:
            raise ConfigError("draft_accept: rejection does not go with deterministic: company decides the guesses")
        if self.cache_dtype not in get_args(CacheDtype):
            known = " or ".join(get_args(CacheDtype))
            raise ConfigError(f"cache_dtype: expected {known}, got {self.cache_dtype!r:.40}")
        if self.window_tokens and not self.reach_tokens:
            raise ConfigError("window_tokens: expected reach_tokens beside it, got none; set both")
        _ = self.rope_override
        try:
            self.long_input.validated()
        except RequestError as error:
            raise ConfigError(str(error)) from None

    @property
    def rope_override(self) -> tuple[Literal["linear", "dynamic", "yarn"], float] | None:
        """Kind and factor of `rope_scaling`. Raises ConfigError."""
        if not self.rope_scaling:
            return None
        kind, _, text = self.rope_scaling.partition(":")
        try:
            factor = float(text)
        except ValueError:
            factor = 0.0
        if kind in ("linear", "dynamic", "yarn") and 1 < factor <= MAX_ROPE_FACTOR:
            return kind, factor  # type: ignore[return-value]
        raise ConfigError(
            f"rope_scaling: expected linear:F, dynamic:F or yarn:F with F above 1, got {self.rope_scaling!r:.40}"
        )

    @property
    def long_input(self) -> LongInput:
        """What is done with long prompts."""
        return LongInput(self.overflow, self.truncation_side, sinks=self.sink_tokens)


@dataclass(frozen=True)
class GenerateConfig:
    """Continue a prompt with a model, or answer it with an encoder-decoder."""

    model: str
    """Model folder or run folder."""
    prompt: str | None = None
    """Text to continue; the empty text begins at the BOS token. An encoder-decoder reads it as its source."""
    prompt_file: str | None = None
    """File with the text to continue; - is standard input."""
    max_tokens: int | None = 128
    """Most tokens to generate; none: as many as the context holds."""
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
    """Keep the smallest set of the most typical tokens whose probability reaches typical_p."""
    repetition_penalty: float = 1.0
    """Divide (multiply when negative) the logits of tokens already in prompt or answer."""
    presence_penalty: float = 0.0
    """Subtract from the logits of tokens already in the answer."""
    frequency_penalty: float = 0.0
    """Subtract this times the count of a token in the answer."""
    logit_bias: dict[str, float] | None = None
    """Token id to added logit, for example {50256: -100}."""
    seed: int = 0
    """The seed decides the sample."""
    n: int = 1
    """Number of independent answers."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Further token ids that end the answer."""
    ignore_eos: bool = False
    """Go on past the model's own stop tokens."""
    json_schema: str | None = None
    """File with a JSON schema that the answer must match."""
    json_object: bool = False
    """The answer must be a JSON object."""
    regex: str | None = None
    """The whole answer must match this regular expression."""
    choice: tuple[str, ...] = ()
    """The answer must be one of these texts."""
    grammar: str | None = None
    """File with a Lark grammar that the answer must match."""
    beams: int = 1
    """Above 1: search for the likeliest answers with so many beams, in place of sampling; n of them come out."""
    length_penalty: float = 1.0
    """Of a beam search: an answer's log-probability counts over its length to this power."""
    early_stopping: bool | Literal["never"] = False
    """Of a beam search: true stops at as many finished answers as beams, never when no better one can come."""
    beam_groups: int = 1
    """Above 1: diverse beam search, the beams in so many groups whose answers differ."""
    diversity_penalty: float = 0.0
    """Of a diverse search: what a token loses for each beam of the groups before that chose it in the same step."""
    penalty_alpha: float = 0.0
    """Above 0: contrastive search among the top_k likeliest tokens, in place of sampling."""
    logprobs: int | None = None
    """Log-probabilities of the chosen token and this many alternatives, in --json."""
    prompt_logprobs: bool = False
    """Log-probabilities of the prompt's tokens, in --json."""
    overflow: Literal["refuse", "truncate", "sinks"] = "refuse"
    """What is done with a prompt that, with its answer, outgrows the context: refuse, truncate (cut it), or sinks (go
    on: the first sink_tokens and the last ones are visible)."""
    sink_tokens: int = 4
    """How many tokens at the beginning of a text sinks keeps."""
    truncation_side: Side = "left"
    """Where truncate cuts: left keeps the end, right the beginning."""
    prefill_chunk: int = 512
    """Prompt tokens a step."""
    threads: int = 0
    """CPU threads; 0 is one for each core."""
    parallel: SplitConfig = field(default_factory=SplitConfig)
    """Processes of a launcher (torchrun) that share the model."""

    def sampling(self, max_tokens: int, constraint: Constraint | None = None) -> Sampling:
        """The request's Sampling with this `max_tokens`. Raises ConfigError for a bias whose key is no token id."""
        biases = []
        for key, bias in (self.logit_bias or {}).items():
            if not key.isdecimal():
                raise ConfigError(f"logit_bias: expected token ids as keys, got {key!r:.40}")
            biases.append((int(key), bias))
        return Sampling(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple(biases),
            seed=self.seed,
            n=self.n,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            logprobs=self.logprobs,
            constraint=constraint,
        )


@dataclass(frozen=True)
class FillConfig:
    """Which masks to fill."""

    model: str
    """Model folder or run folder of an encoder with a masked-language-model output."""
    text: str | None = None
    """A text with [MASK] (or <mask>, as the tokenizer has it) where a token is wanted."""
    file: str | None = None
    """File with a text a line; - is standard input."""
    top_k: int = 5
    """Tokens for each mask."""
    threads: int = 0
    """CPU threads; 0 is one for each core."""

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= 1000:
            raise ConfigError(f"top_k: expected 1 to 1000, got {self.top_k}")
        check_threads(self.threads)


@dataclass(frozen=True)
class PredictConfig:
    """What to answer with a task head, or to write with an encoder-decoder."""

    model: str
    """Model folder or run folder of a model with a task head, or of an encoder-decoder."""
    text: str | None = None
    """A text to classify or score, or to write another for."""
    pair: str | None = None
    """A second text, for a head on pairs."""
    file: str | None = None
    """File of rows, in the forms that `finetune` reads; they may lack their answers."""
    column: str = ""
    """Column of the text in the file's rows; empty: text, sentence, sentence1, premise…"""
    pair_column: str = ""
    """Column of the second text; empty: text_pair, sentence2, hypothesis…, where a row has one."""
    header: bool = True
    """Whether the first line of a table names its columns."""
    max_tokens: int = 0
    """Longest row in tokens; 0: the model's context."""
    stride: int = 128
    """Tokens that neighbouring windows of a question's context share."""
    prefix: str = ""
    """Encoder-decoders: what stands before every source, as in tuning."""
    answer_tokens: int = 0
    """Encoder-decoders: most tokens of an answer; 0: as many as the context holds."""
    beams: int = 1
    """Encoder-decoders: above 1 a beam search of this width, else the likeliest token each time."""
    length_penalty: float = 1.0
    """Of a beam search: an answer's log-probability counts over its length to this power."""
    threads: int = 0
    """CPU threads; 0 is one for each core."""

    def __post_init__(self) -> None:
        check_threads(self.threads)
        for name, least in (("max_tokens", 0), ("stride", 0), ("answer_tokens", 0), ("beams", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class ChatConfig:
    """Talk to an instruction-tuned model in the terminal."""

    model: str
    """Model folder or run folder."""
    system: str | None = None
    """System message at the head of the conversation."""
    max_tokens: int | None = None
    """Most tokens of one answer; none: as many as the context holds."""
    temperature: float = 0.7
    """0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens whose probability reaches top_p."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the likeliest."""
    repetition_penalty: float = 1.0
    """Divide (multiply when negative) the logits of tokens already in prompt or answer."""
    seed: int = 0
    """The seed decides the answers."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; not part of it."""
    overflow: Literal["refuse", "truncate", "sinks"] = "refuse"
    """What is done with a message that outgrows the context: refuse it, truncate (leave the oldest turns out), or sinks
    (go on: the first sink_tokens and the last ones of the whole conversation are visible)."""
    sink_tokens: int = 4
    """How many tokens at the beginning of a conversation sinks keeps."""
    threads: int = 0
    """CPU threads; 0 is one for each core."""
