"""From a completion's prompt, text or ids, to what the engine reads: encoded, checked, cut where that was asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fledge.engine.overflow import LongInput
from fledge.engine.source import check_length, cut_source, framed
from fledge.errors import RequestError
from fledge.serve.service import Service
from fledge.serve.wire import DEFAULT_COMPLETION_TOKENS, Call, CompletionCall


@dataclass(frozen=True)
class Prompt:
    """A prompt's ids; `n_added` of them are ours (BOS), and `n_cut` of its tokens were cut off or are hidden."""

    ids: tuple[int, ...]
    n_added: int
    n_cut: int


def long_input(service: Service, call: Call) -> LongInput:
    """What to do with a long prompt: the server's word, and the call's where it has one."""
    own = service.config.engine.long_input
    return replace(own, **call.long_input) if call.long_input else own


def longest(service: Service, call: Call) -> int:
    """Prompt and answer of a call have at most so many tokens together. Raises RequestError."""
    return long_input(service, call).longest(service.context_tokens or 0, service.reach_tokens)


async def read_prompt(service: Service, call: CompletionCall, prompt: str | tuple[int, ...]) -> Prompt:
    """A text begins with BOS once, ids are used as they are. Raises RequestError."""
    tokenizer = service.model.tokenizer
    added: tuple[int, ...] = ()
    if isinstance(prompt, tuple):
        given = prompt
    else:
        if call.add_special_tokens and tokenizer.bos_id is not None:
            added = (tokenizer.bos_id,)
        given = (*added, *await service.encode(prompt))
        if not given:
            raise RequestError("prompt: expected at least one token, got an empty text", "prompt")
    context_tokens = service.context_tokens or 0
    policy = long_input(service, call)
    ids = policy.cut(given, call.max_tokens, context_tokens, tokenizer.bos_id, DEFAULT_COMPLETION_TOKENS)
    if isinstance(prompt, tuple):
        call.answer_tokens(len(ids), longest(service, call))  # its length first: it may be millions
        check_ids(service, ids)
    n_cut = len(given) - len(ids) + policy.hidden(len(ids), context_tokens)
    return Prompt(ids, len(added) if ids[:1] == added else 0, n_cut)


def prompt_text(service: Service, prompt: str | tuple[int, ...], read: Prompt) -> str:
    """What an echo puts before the answer: the prompt as it was given, or what was not cut off."""
    if isinstance(prompt, str) and not read.n_cut:
        return prompt
    return service.model.tokenizer.decode(list(read.ids[read.n_added :]))


async def read_source(service: Service, call: CompletionCall, prompt: str | tuple[int, ...]) -> Prompt:
    """A source: a text stands in the tokenizer's frame, which is not cut; ids are used as they are."""
    tokenizer, most, policy = service.model.tokenizer, service.source_tokens, long_input(service, call)
    longest(service, call)
    if isinstance(prompt, tuple):
        ids = policy.cut(prompt, 1, most + 1)
        check_length(len(ids), most)  # first: it may be millions
        check_ids(service, ids)
        return Prompt(ids, 0, len(prompt) - len(ids))
    text = tuple(await service.encode(prompt))
    whole = framed(tokenizer, text) if call.add_special_tokens else text
    source = cut_source(tokenizer, whole, policy, most)
    if not source:
        raise RequestError("prompt: expected at least one token, got an empty text", "prompt")
    check_length(len(source), most)
    return Prompt(source, 0, len(whole) - len(source))


def check_ids(service: Service, ids: tuple[int, ...]) -> None:
    vocab_size = service.model.tokenizer.vocab_size
    outside = next((token for token in ids if not 0 <= token < vocab_size), None)
    if outside is not None:
        raise RequestError(f"prompt: expected token ids in 0..{vocab_size - 1}, got {outside}", "prompt")
