"""What a request asks for: OpenAI's chat and completion bodies as frozen values, every type checked. Imports no torch.

Ranges that belong to sampling itself are checked by `Sampling.validated`; here stands what is the wire's alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Sized
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fledge.engine.beam import check_search
from fledge.engine.length import answer_room
from fledge.engine.request import (
    MAX_BEAMS,
    MAX_BIASES,
    MAX_STOP_TOKEN_IDS,
    MAX_STOPS,
    MAX_TOP_LOGPROBS,
    BeamSearch,
    Sampling,
)
from fledge.errors import RequestError
from fledge.serve.constraint import read_constraint
from fledge.serve.fields import Fields, words, wrong
from fledge.serve.truncation import TRUNCATION_FIELDS, read_long_input
from fledge.text.chat import Message

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
MAX_PROMPTS = 64
MAX_RANDOM_SEED = 2**32  # short enough to be read off a screen, and exact in JavaScript
MAX_MESSAGES = 4096
MAX_OWN_STOP_IDS = MAX_STOP_TOKEN_IDS - 16  # the chat format's ends of a turn come on top

SAMPLING_FIELDS = TRUNCATION_FIELDS | words(
    "max_tokens temperature top_p n stream stream_options stop presence_penalty frequency_penalty logit_bias seed "
    "logprobs user model top_k min_p typical_p repetition_penalty stop_token_ids ignore_eos min_tokens response_format "
    "guided_json guided_regex guided_choice guided_grammar structured_outputs return_token_ids "
    "use_beam_search beam_width best_of length_penalty early_stopping num_beams penalty_alpha"
)
CHAT_FIELDS = SAMPLING_FIELDS | words(
    "messages max_completion_tokens top_logprobs tools tool_choice parallel_tool_calls functions function_call "
    "modalities audio prediction web_search_options store metadata moderation reasoning_effort "
    "verbosity service_tier safety_identifier prompt_cache_key prompt_cache_retention prompt_cache_options"
)
COMPLETION_FIELDS = SAMPLING_FIELDS | words("prompt echo suffix add_special_tokens")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Call:
    """What chat and completions share. `max_tokens` and `seed` are None when the caller left them open; `limit_name` is
    what the caller called `max_tokens`, `long_input` what is said of a prompt that is too long, `search` how to search
    for the answers in place of drawing them, and `width_name` the field that says by how many beams."""

    prompt_name: ClassVar[str] = "prompt"

    model: str | None
    sampling: Sampling
    max_tokens: int | None
    limit_name: str
    seed: int | None
    stream: bool
    include_usage: bool
    long_input: dict[str, Any]
    return_token_ids: bool
    search: BeamSearch | None
    width_name: str

    @property
    def n_places(self) -> int:
        """Answers to a prompt that are in work at once."""
        return self.sampling.n if self.search is None else self.search.n_beams

    def check_ranges(self, vocab_size: int) -> None:
        """Every range, before any prompt is encoded or anything allocated. Raises RequestError."""
        most = self.max_tokens if self.max_tokens is not None else 2**31 - 1
        sampling = replace(self.sampling, max_tokens=most, seed=self.seed or 0).validated(vocab_size)
        if self.search is not None:
            check_search(sampling, self.search)

    def check_room(self, prompt_tokens: int, max_tokens: int, facts: dict[str, Any]) -> None:
        """Raise RequestError for a search that an engine of these `facts` has no room for."""
        if self.search is None:
            return
        n_beams = self.search.n_beams
        need = n_beams * -(-(prompt_tokens + max_tokens) // facts["block_tokens"])
        if n_beams > facts["n_slots"] or need > facts["n_blocks"]:
            raise RequestError(
                f"{self.width_name}: expected at most {facts['n_slots']} beams and {facts['n_blocks']} blocks of cache "
                f"for all, got {n_beams} and {need}; ask for fewer beams or tokens",
                self.width_name,
            )

    def answer_tokens(self, prompt_tokens: int, context_tokens: int) -> int:
        """What `max_tokens` says, or all that the context leaves. Raises RequestError that names the caller's field."""
        return answer_room(prompt_tokens, self.max_tokens, context_tokens, self.prompt_name, self.limit_name)

    def sampling_for(
        self, prompt_tokens: int, context_tokens: int, vocab_size: int, open_tokens: int | None
    ) -> Sampling:
        """The sampling of one prompt, open tokens and seed filled in. Raises RequestError.

        The one rule everywhere: prompt tokens + max_tokens <= context_tokens. Without max_tokens: `open_tokens`, or
        what the context leaves if that is less (None: all that it leaves).
        """
        wanted = self.answer_tokens(prompt_tokens, context_tokens)
        if self.max_tokens is None and open_tokens is not None:
            wanted = min(wanted, open_tokens)
        seed = self.seed if self.seed is not None else secrets.randbelow(MAX_RANDOM_SEED)
        return replace(self.sampling, max_tokens=wanted, seed=seed).validated(vocab_size)


@dataclass(frozen=True)
class ChatCall(Call):
    prompt_name: ClassVar[str] = "messages"

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class CompletionCall(Call):
    """`prompts` are texts or token ids; ids are used as they are, texts get the BOS token when the model has one."""

    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool
    add_special_tokens: bool


def read_chat(tree: dict[str, Any]) -> ChatCall:
    """The body of /v1/chat/completions. Raises RequestError naming the field."""
    fields = Fields(tree)
    refuse_unsupported(fields)
    messages = fields.array("messages")
    if tree.get("truncation_side") == "right":
        message = "truncation_side: of a chat the oldest turns are left out; expected left, got right"
        raise RequestError(message, "truncation_side", "unsupported_parameter")
    if not messages:
        raise RequestError("messages: expected at least one message", "messages")
    if len(messages) > MAX_MESSAGES:
        raise too_many("messages", f"{MAX_MESSAGES} messages", messages)
    wanted, top = fields.flag("logprobs"), fields.integer("top_logprobs")
    if top is not None and not wanted:
        raise RequestError("top_logprobs: expected logprobs to be true beside it", "top_logprobs")
    if top is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
        raise wrong("top_logprobs", f"0..{MAX_TOP_LOGPROBS}", top)
    completion_tokens = fields.integer("max_completion_tokens")
    max_tokens = fields.integer("max_tokens")
    if None not in (completion_tokens, max_tokens) and completion_tokens != max_tokens:
        raise RequestError("max_tokens: differs from max_completion_tokens; send one of them", "max_tokens")
    if completion_tokens is not None and not 1 <= completion_tokens < 2**31:
        raise wrong("max_completion_tokens", "at least 1 and below 2^31", completion_tokens)
    shared = read_shared(fields, logprobs=(top or 0) if wanted else None)
    if max_tokens is None and completion_tokens is not None:
        shared |= {"max_tokens": completion_tokens, "limit_name": "max_completion_tokens"}
    return ChatCall(messages=tuple(read_message(i, item) for i, item in enumerate(messages)), **shared)


def read_completion(tree: dict[str, Any]) -> CompletionCall:
    """The body of /v1/completions. Raises RequestError naming the field."""
    fields = Fields(tree)
    if fields.has("suffix") and tree["suffix"] != "":
        raise RequestError("suffix: this model does not fill in the middle; leave suffix out", "suffix")
    logprobs = fields.integer("logprobs")
    if logprobs is not None and not 0 <= logprobs <= MAX_TOP_LOGPROBS:
        raise wrong("logprobs", f"0..{MAX_TOP_LOGPROBS}", logprobs)
    shared = read_shared(fields, logprobs)
    return CompletionCall(
        prompts=read_prompts(tree.get("prompt")),
        echo=fields.flag("echo"),
        add_special_tokens=fields.flag("add_special_tokens", True),
        **shared,
    )


def read_shared(fields: Fields, logprobs: int | None) -> dict[str, Any]:
    stream = fields.flag("stream")
    options = Fields(fields.mapping("stream_options"))
    if fields.has("stream_options") and not stream:
        raise RequestError("stream_options: expected stream to be true beside it", "stream_options")
    for name in ("include_usage", "include_obfuscation"):
        if options.has(name) and not isinstance(options.tree[name], bool):
            raise wrong(f"stream_options.{name}", "true or false", options.tree[name])
    fields.text("user")
    plain = Sampling()
    search, width_name = read_search(fields, stream)
    sampling = Sampling(
        temperature=fields.number("temperature", plain.temperature),
        top_p=fields.number("top_p", plain.top_p),
        min_p=fields.number("min_p", plain.min_p),
        typical_p=fields.number("typical_p", plain.typical_p),
        repetition_penalty=fields.number("repetition_penalty", plain.repetition_penalty),
        presence_penalty=fields.number("presence_penalty", plain.presence_penalty),
        frequency_penalty=fields.number("frequency_penalty", plain.frequency_penalty),
        top_k=read_top_k(fields),
        min_tokens=fields.integer("min_tokens", 0) or 0,
        n=given(fields.integer("n"), 1),
        logit_bias=read_logit_bias(fields.mapping("logit_bias")),
        stop=read_stop(fields.tree.get("stop")),
        stop_token_ids=read_ids("stop_token_ids", fields.array("stop_token_ids"), MAX_OWN_STOP_IDS),
        ignore_eos=fields.flag("ignore_eos"),
        logprobs=logprobs,
        constraint=read_constraint(fields),
    )
    return {
        "model": fields.text("model"),
        "sampling": sampling,
        "max_tokens": fields.integer("max_tokens"),
        "limit_name": "max_tokens",
        "seed": fields.integer("seed"),
        "stream": stream,
        "include_usage": options.flag("include_usage"),
        "long_input": read_long_input(fields),
        "return_token_ids": fields.flag("return_token_ids"),
        "search": search,
        "width_name": width_name,
    }


def read_search(fields: Fields, stream: bool) -> tuple[BeamSearch | None, str]:
    """The beam search that is asked for, by vLLM's and transformers' names, or None, and the field that says how wide
    it is. Raises RequestError, for contrastive search too."""
    if fields.number("penalty_alpha", 0):
        message = "penalty_alpha: not supported here, as contrastive search reads all of the text for each token"
        raise RequestError(f"{message}; leave it out, or use fledge generate", "penalty_alpha", "unsupported_parameter")
    n, best_of, width = given(fields.integer("n"), 1), fields.integer("best_of"), fields.integer("beam_width")
    penalty, stopping = fields.number("length_penalty", 1.0), fields.tree.get("early_stopping")
    if not (stopping is None or isinstance(stopping, bool) or stopping == "never"):
        raise wrong("early_stopping", 'true, false or "never"', stopping)
    if fields.integer("num_beams", 1) != 1:
        message = "num_beams: not a name of this server; send use_beam_search and beam_width"
        raise RequestError(message, "num_beams", "unsupported_parameter")
    if not fields.flag("use_beam_search"):
        if best_of is not None and best_of != n:
            raise wrong("best_of", "the same number as n", best_of)
        told = {"beam_width": width is not None, "length_penalty": penalty != 1, "early_stopping": bool(stopping)}
        for name in (name for name, changes in told.items() if changes):
            raise RequestError(f"{name}: expected use_beam_search to be true beside it", name)
        return None, "n"
    if stream:
        message = "stream: expected false beside use_beam_search: its answers are known at its end"
        raise RequestError(message, "stream", "unsupported_parameter")
    if None not in (best_of, width) and best_of != width:
        raise RequestError("beam_width: differs from best_of; send one of them", "beam_width")
    name = "beam_width" if width is not None else "best_of" if best_of is not None else "n"
    beams = given(width, given(best_of, n))
    if not 1 <= beams <= MAX_BEAMS:
        raise wrong(name, f"1..{MAX_BEAMS}", beams)
    constraint = read_constraint(fields)
    if constraint is not None:
        message = f"{constraint.name}: does not go with a beam search, which does not sample; leave it out"
        raise RequestError(message, constraint.name, "unsupported_parameter")
    return BeamSearch(beams, length_penalty=penalty, early_stopping=stopping or False), name


def given(value: int | None, default: int) -> int:
    return default if value is None else value


def read_top_k(fields: Fields) -> int:
    """-1 is what other servers write for "all tokens"."""
    top_k = given(fields.integer("top_k"), 0)
    return 0 if top_k == -1 else top_k


def read_message(index: int, item: Any) -> Message:
    place = f"messages[{index}]"
    if not isinstance(item, dict):
        raise wrong(place, "an object with role and content", item)
    role = item.get("role")
    if not isinstance(role, str):
        raise wrong(f"{place}.role", "a string", role)
    if role not in ROLES:
        raise wrong(f"{place}.role", "system, developer, user or assistant", role)
    for name in ("tool_calls", "function_call", "audio"):
        if item.get(name):
            raise RequestError(f"{place}.{name}: this server does not support it", "messages", "unsupported_parameter")
    return Message(ROLES[role], read_content(f"{place}.content", item.get("content")))


def read_content(place: str, content: Any) -> str:
    """Text, or a list of text parts, joined without anything between them."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong(place, "a string or an array of text parts", content)
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, dict):
            raise wrong(f"{place}[{i}]", "an object with type and text", part)
        if part.get("type") != "text":
            raise wrong(f"{place}[{i}].type", '"text" (this model reads text only)', part.get("type"))
        if not isinstance(part.get("text"), str):
            raise wrong(f"{place}[{i}].text", "a string", part.get("text"))
        texts.append(part["text"])
    return "".join(texts)


def read_prompts(prompt: Any) -> tuple[str | tuple[int, ...], ...]:
    """A text, a list of texts, token ids, or a list of lists of token ids."""
    if isinstance(prompt, str):
        return (prompt,)
    if not isinstance(prompt, list):
        raise wrong("prompt", "a string, an array of strings or of token ids", prompt)
    if not prompt:
        raise RequestError("prompt: expected at least one prompt, got an empty array", "prompt")
    if not isinstance(prompt[0], str | list):
        return (read_ids("prompt", prompt),)
    if len(prompt) > MAX_PROMPTS:
        raise too_many("prompt", f"{MAX_PROMPTS} prompts", prompt)
    return tuple(read_prompt(f"prompt[{i}]", item, type(prompt[0])) for i, item in enumerate(prompt))


def read_prompt(place: str, item: Any, expected: type) -> str | tuple[int, ...]:
    if not isinstance(item, expected):
        raise wrong(place, "a string" if expected is str else "an array of token ids", item)
    if not isinstance(item, list):
        return str(item)
    if not item:
        raise RequestError(f"{place}: expected at least one token id, got an empty array", "prompt")
    return read_ids(place, item)


def read_ids(place: str, ids: list[Any], most: int | None = None) -> tuple[int, ...]:
    if most is not None and len(ids) > most:
        raise too_many(place, f"{most} token ids", ids)
    if set(map(type, ids)) - {int}:  # no loop: there may be millions
        i = next(i for i, item in enumerate(ids) if type(item) is not int)
        raise wrong(f"{place}[{i}]", "a token id", ids[i])
    return tuple(ids)


def too_many(place: str, most: str, got: Sized) -> RequestError:
    return RequestError(f"{place}: expected at most {most}, got {len(got)}", place)


def read_stop(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list):
        raise wrong("stop", f"a string or up to {MAX_STOPS} strings", stop)
    if len(texts) > MAX_STOPS:
        raise too_many("stop", f"{MAX_STOPS} strings", texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise wrong(f"stop[{i}]", "a string", text)
    return tuple(texts)


def read_logit_bias(mapping: dict[str, Any]) -> tuple[tuple[int, float], ...]:
    if len(mapping) > MAX_BIASES:
        raise too_many("logit_bias", f"{MAX_BIASES} token ids", mapping)
    pairs = []
    for key, bias in mapping.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise wrong("logit_bias", "token ids as keys", key)
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise wrong(f"logit_bias.{key}", "a number", bias)
        pairs.append((int(key), float(bias)))
    return tuple(pairs)


def refuse_unsupported(fields: Fields) -> None:
    """Fields whose silent neglect would change what the caller gets."""
    refused = {
        "tools": bool(fields.tree.get("tools")),
        "tool_choice": fields.tree.get("tool_choice") not in (None, "none", "auto"),
        "functions": bool(fields.tree.get("functions")),
        "audio": fields.has("audio"),
        "modalities": fields.tree.get("modalities") not in (None, ["text"]),
        "prediction": fields.has("prediction"),
        "web_search_options": fields.has("web_search_options"),
    }
    for name, present in refused.items():
        if present:
            raise RequestError(f"{name}: not supported by this server; leave it out", name, "unsupported_parameter")
