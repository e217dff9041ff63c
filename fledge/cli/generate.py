"""`fledge generate MODEL --prompt TEXT`: standard output is the prompt's text, its continuation and one newline; of an
encoder–decoder, which reads the prompt as its source, the answer and one newline."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fledge.engine.config import EngineConfig, GenerateConfig
from fledge.engine.constraint import Constraint
from fledge.engine.length import answer_room
from fledge.engine.overflow import LongInput
from fledge.engine.request import BeamSearch, Completion, Request, TokenLogprob
from fledge.engine.source import check_length, cut_source, source_of
from fledge.engine.stub_spec import is_stub
from fledge.errors import ConfigError, DataError, EngineError, RequestError
from fledge.log import say, silent

if TYPE_CHECKING:
    from fledge.engine.core import Engine
    from fledge.text.tokenizer import Tokenizer

REQUEST_ID = "generate"
ANY_VOCABULARY = 2**31
KEYS = {"n_beams": "beams", "n_groups": "beam_groups", "alpha": "penalty_alpha", "source": "prompt"}
"""What a key of the engine's is called here."""
PARSER_ERROR = re.compile(r"at .* error: (.+?) 1 \| %llguidance.*")
"""What the parser of a regular expression says of the grammar around it."""
NOT_OF_SEARCH = (
    "min_tokens", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "logit_bias", "stop", "stop_token_ids", "ignore_eos", "logprobs", "prompt_logprobs",
    "json_schema", "json_object", "regex", "choice", "grammar",
)  # fmt: skip


def generate(config: GenerateConfig, json: bool = False) -> dict[str, Any]:
    """Continue a prompt, or answer it: text on standard output (as it comes on a terminal), all figures in the result.

    Raises ConfigError (a setting, or no prompt), RequestError (too long) and what loading the model raises. Without a
    max_tokens of one's own a prompt that leaves less than the usual one gets what is left.
    """
    constraint = read_constraint(config)
    check_settings(config, constraint)
    prompt = "" if silent() and config.prompt_file == "-" else read_prompt(config)
    from fledge.engine.ranks import shared_engine

    how = EngineConfig(
        n_slots=max(config.n, config.beams),
        prefill_chunk=config.prefill_chunk,
        threads=config.threads,
        parallel=config.parallel,
    )
    with shared_engine(config.model, how) as engine:
        try:
            return {} if engine is None else answered(engine, config, prompt, constraint, json)
        except RequestError as error:
            if error.code == "context_length_exceeded":
                raise
            raise refusal(error) from None


def refusal(error: RequestError) -> ConfigError:
    """A request that can't be, as the wrong flag that it is here."""
    name, colon, rest = PARSER_ERROR.sub(r"\1", str(error)).partition(":")
    return ConfigError(f"{KEYS.get(name, name)}{colon}{rest}")


def answered(
    engine: Engine, config: GenerateConfig, prompt: str, constraint: Constraint | None, json: bool
) -> dict[str, Any]:
    """What `generate` gives, by an engine that has nothing else to do."""
    request, n_cut = request_of(engine, config, prompt, constraint)
    before = "" if engine.reads_source else prompt
    scores: list[float] = []
    began = time.perf_counter()
    if searches(config):
        completions, scores = search(engine, config, request)
        if not json:
            write_completions(before, completions)
    elif not json and config.n == 1 and sys.stdout.isatty():
        completions = stream(engine, request, before)
    else:
        completions = engine.complete([request])
        if not json:
            write_completions(before, completions)
    seconds = time.perf_counter() - began
    result = report(config, prompt, request, completions, seconds, engine.tokenizer)
    if n_cut:
        result["cut_tokens"] = n_cut
        fate = "are hidden" if config.overflow == "sinks" else "were cut off"
        say(f"the prompt was too long: {n_cut} of its tokens {fate}")
    short = request.sampling.max_tokens < (config.max_tokens or 0)
    if short and any(one.finish_reason == "length" for one in completions):
        say(f"the answer was cut: the context of {engine.context_tokens} tokens is full")
    for choice, score in zip(result["choices"], scores, strict=False):
        choice["score"] = score
    return result


def request_of(
    engine: Engine, config: GenerateConfig, prompt: str, constraint: Constraint | None
) -> tuple[Request, int]:
    """What is asked of the engine, and how many tokens were cut off. Raises ConfigError, RequestError (too long)."""
    source_ids: tuple[int, ...] = ()
    long_input = LongInput(config.overflow, config.truncation_side, sinks=config.sink_tokens)
    if engine.reads_source:
        if config.prompt_logprobs:
            raise ConfigError(
                "prompt_logprobs: expected a decoder alone, got a model that reads the prompt as its source and gives "
                "it no probability; leave it out"
            )
        source_ids = source_of(engine.tokenizer, prompt)
        if not source_ids:
            raise ConfigError("prompt: expected some text, got none; this model has no EOS token to read alone")
        most, n_given = engine.runner.source_tokens, len(source_ids)
        source_ids = cut_source(engine.tokenizer, source_ids, long_input, most)
        check_length(len(source_ids), most)
    prompt_ids = (engine.runner.start_id,) if engine.reads_source else encode_prompt(engine.tokenizer, prompt)
    context_tokens, usual = engine.context_tokens, config.max_tokens == GenerateConfig.max_tokens
    max_tokens = None if usual and (config.max_tokens or 0) >= context_tokens else config.max_tokens
    if not engine.reads_source:
        n_given = len(prompt_ids)
        prompt_ids = long_input.cut(prompt_ids, max_tokens, context_tokens, engine.tokenizer.bos_id)
    n_prompt = len(prompt_ids)
    longest = context_tokens if searches(config) else long_input.longest(context_tokens, engine.reach_tokens)
    max_tokens = config.max_tokens or long_input.open_tokens(context_tokens)
    if usual and max_tokens is not None:
        max_tokens = min(max_tokens, max(1, longest - n_prompt))
    sampling = config.sampling(answer_room(n_prompt, max_tokens, longest), constraint)
    request = Request(
        REQUEST_ID, prompt_ids, sampling, "", config.prompt_logprobs, source_ids=source_ids, long_input=long_input
    )
    return request, n_given - request.prompt_tokens + engine.hidden(request)


def search(engine: Engine, config: GenerateConfig, request: Request) -> tuple[list[Completion], list[float]]:
    """(completions, their scores, none from contrastive search): what takes the place of sampling."""
    from fledge.engine.writing import beam_completions, completion_of

    prompt_ids, max_tokens = request.prompt_ids, request.sampling.max_tokens
    if config.penalty_alpha > 0:
        if is_stub(config.model):
            raise ConfigError("penalty_alpha: expected a model, got a stub, which has no vectors")
        if engine.reads_source:
            raise ConfigError("penalty_alpha: expected a decoder, got an encoder-decoder; leave it out, or set beams")
        from fledge.engine.contrastive import ContrastiveSearch, contrastive_search

        contrast = ContrastiveSearch(config.penalty_alpha, config.top_k, max_tokens)
        model = engine.runner.model  # type: ignore[attr-defined]  # a Runner: no stub
        ids = contrastive_search(model, prompt_ids, contrast, engine.stop_ids, engine.vocab_size)
        return [completion_of(engine, prompt_ids, 0, ids)], []
    wanted = BeamSearch(
        config.beams, max_tokens, config.length_penalty, config.early_stopping, config.beam_groups,
        config.diversity_penalty,
    )  # fmt: skip
    return beam_completions(engine, request, wanted, config.n)


def searches(config: GenerateConfig) -> bool:
    return config.beams > 1 or config.penalty_alpha > 0


def check_settings(config: GenerateConfig, constraint: Constraint | None) -> None:
    """Refuse impossible settings before a model is loaded. Raises ConfigError."""
    if searches(config):
        plain = {item.name: item.default for item in fields(GenerateConfig)}
        others = ("beams", "n") if config.penalty_alpha > 0 else ("top_k",)
        for name in (*NOT_OF_SEARCH, *others):
            if getattr(config, name) != plain[name]:
                raise ConfigError(f"{name}: does not go with a search, which does not sample; leave it out")
    if config.penalty_alpha > 0 and config.parallel.several:
        raise ConfigError("penalty_alpha: expected a model of one process, got a shared one; leave parallel out")
    if config.beam_groups > 1 and not searches(config):
        raise ConfigError(f"beam_groups: expected beams above 1 to divide into groups, got {config.beams}; set beams")
    try:
        config.sampling(1 if config.max_tokens is None else config.max_tokens, constraint).validated(ANY_VOCABULARY)
    except RequestError as error:
        raise ConfigError(str(error)) from None


def read_constraint(config: GenerateConfig) -> Constraint | None:
    """What the answer must match, files read. Raises ConfigError for two at once, DataError for a file."""
    given: list[Constraint] = []
    for kind, path in (("json_schema", config.json_schema), ("grammar", config.grammar)):
        if path is not None:
            given.append(Constraint(kind, read_file(path), kind))  # type: ignore[arg-type]
    if config.json_object:
        given.append(Constraint("json_object", name="json_object"))
    if config.regex is not None:
        given.append(Constraint("regex", config.regex, "regex"))
    if config.choice:
        given.append(Constraint("choice", config.choice, "choice"))
    if len(given) > 1:
        raise ConfigError(f"{given[1].name}: expected one constraint, got {given[0].name} beside it")
    return given[0] if given else None


def read_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read as UTF-8 text ({type(error).__name__})") from None


def read_prompt(config: GenerateConfig) -> str:
    """The prompt's text, from `prompt` or from `prompt_file`. Raises ConfigError or DataError."""
    if (config.prompt is None) == (config.prompt_file is None):
        raise ConfigError("prompt: expected one of --prompt TEXT and --prompt-file FILE (- is standard input)")
    if config.prompt_file is None:
        text = config.prompt or ""
    else:
        try:
            data = sys.stdin.buffer.read() if config.prompt_file == "-" else Path(config.prompt_file).read_bytes()
        except OSError as error:
            raise DataError(f"{config.prompt_file}: can't be read ({error.strerror})") from None
        text = data.decode("utf-8", "surrogateescape")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"prompt: expected UTF-8 text, got another byte at character {error.start}") from None
    return text


def encode_prompt(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """[BOS] + the text's ids; no BOS when the tokenizer has none. Raises ConfigError when that is nothing."""
    start = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    ids = (*start, *tokenizer.encode(text))
    if not ids:
        raise ConfigError("prompt: expected some text, got none; this model has no BOS token to begin with")
    return ids


def stream(engine: Engine, request: Request, prompt: str) -> list[Completion]:
    """Write prompt and answer while they come. Raises EngineError when the model fails."""
    from fledge.engine.core import Gathered

    gathered = Gathered()
    show(prompt)
    engine.submit(request)
    while engine.has_work:
        for event in engine.step():
            if event.error is not None:
                raise EngineError(event.error)
            gathered.add(event)
            show(event.text)
    show("\n")
    return [gathered.completion(request.id, 0)]


def write_completions(prompt: str, completions: list[Completion]) -> None:
    if not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # a file's bytes don't hang on the locale
    for completion in completions:
        if len(completions) > 1:
            say(f"answer {completion.index + 1} of {len(completions)}:")
        show(prompt + completion.text + "\n")


def show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def report(
    config: GenerateConfig,
    prompt: str,
    request: Request,
    completions: list[Completion],
    seconds: float,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """The result as plain values; log-probabilities only when asked for. Natural logarithms."""
    generated_tokens = sum(len(completion.token_ids) for completion in completions)
    choices = []
    for completion in completions:
        choice: dict[str, Any] = {
            "index": completion.index,
            "text": completion.text,
            "token_ids": list(completion.token_ids),
            "finish_reason": completion.finish_reason,
        }
        if config.logprobs is not None:
            choice["logprobs"] = [logprob_entry(tokenizer, one) for one in completion.logprobs]
        choices.append(choice)
    result: dict[str, Any] = {
        "prompt": prompt,
        "prompt_tokens": request.prompt_tokens,
        "generated_tokens": generated_tokens,
        "seconds": round(seconds, 4),
        "tokens_per_second": round(generated_tokens / max(seconds, 1e-9), 2),
        "choices": choices,
    }
    if config.prompt_logprobs:
        known = completions[0].prompt_logprobs or ()
        result["prompt_logprobs"] = [None if one is None else logprob_entry(tokenizer, one) for one in known]
    return result


def logprob_entry(tokenizer: Tokenizer, one: TokenLogprob) -> dict[str, Any]:
    entry: dict[str, Any] = {"token_id": one.token_id, "token": token_text(tokenizer, one.token_id)}
    entry["logprob"] = one.logprob
    entry["top"] = [
        {"token_id": token, "token": token_text(tokenizer, token), "logprob": value} for token, value in one.top
    ]
    return entry


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token to look at: a special token's name, else its bytes as text, with � for a part of a character."""
    if tokenizer.is_special(token):
        return tokenizer.token_of(token)
    return tokenizer.token_bytes(token).decode("utf-8", "replace")
