"""From the inputs of a request to rows of token ids: framed, checked, cut where asked for. Imports no torch."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from fledge.engine.overflow import LongInput, cut
from fledge.errors import RequestError, TokenizerError
from fledge.serve.errors import ApiError
from fledge.serve.service import IN_THREAD_CHARACTERS, Service
from fledge.serve.vector_wire import MAX_INPUT_TOKENS, VectorCall

ONLY = "overflow: expected refuse or truncate here, got {}; a text becomes one vector and nothing goes on past it"


@dataclass(frozen=True)
class Rows:
    """Each input's ids, and how many of its tokens were cut off."""

    ids: tuple[tuple[int, ...], ...]
    n_cut: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.ids))


async def read_rows(service: Service, call: VectorCall) -> Rows:
    """The rows of a call, in its order. Raises RequestError, ApiError 400 for a text outside the vocabulary."""
    policy = replace(service.config.engine.long_input, **{"side": "right", **call.long_input})
    if policy.policy not in ("refuse", "truncate"):
        raise RequestError(ONLY.format(policy.policy), "overflow", "unsupported_parameter")
    texts = [text for text in call.inputs if isinstance(text, str)]
    for text in texts:
        service.refuse_hopeless(len(text), "input")
    in_thread = sum(map(len, texts)) > IN_THREAD_CHARACTERS
    encoded = iter(await asyncio.to_thread(encode, service, texts) if in_thread else encode(service, texts))
    ids, n_cut = [], []
    for number, given in enumerate(call.inputs):
        place = "input" if len(call.inputs) == 1 else f"input[{number}]"
        if isinstance(given, str):
            row, lost = fitted(service, next(encoded), policy, place, call.add_special_tokens)
        else:
            row, lost = fitted(service, given, policy, place, False)
            check_ids(service, row, place)
        ids.append(row)
        n_cut.append(lost)
    rows = Rows(tuple(ids), tuple(n_cut))
    most = min(MAX_INPUT_TOKENS, service.config.vectors.max_waiting_tokens)
    if rows.n_tokens > most:
        message = f"input: expected at most {most} tokens in all inputs, got {rows.n_tokens}; send several requests"
        raise RequestError(message, "input", "context_length_exceeded")
    return rows


def encode(service: Service, texts: list[str]) -> list[list[int]]:
    """The ids of texts as the model was trained to read them, without their frame."""
    facts = service.engine.facts
    whole = [facts.get("prompt", "") + text for text in texts]
    try:
        return service.model.tokenizer.encode_batch([one.lower() for one in whole] if facts.get("lower") else whole)
    except TokenizerError:
        raise ApiError(400, "The text can't be encoded with this model's vocabulary.", "input") from None


def fitted(
    service: Service, given: list[int] | tuple[int, ...], policy: LongInput, place: str, framed: bool
) -> tuple[tuple[int, ...], int]:
    """One input as a row, `framed` by the tokenizer's special tokens, and how many of its own tokens were cut off.
    Raises RequestError for a row that is too long, or that holds nothing."""
    most, frame = service.context_tokens or 0, service.model.tokenizer.frame
    n_frame = len(frame(()).ids) if framed else 0
    room = min(policy.most or most, most) if policy.policy == "truncate" else policy.most or len(given) + n_frame
    kept = tuple(given)
    if len(given) + n_frame > room:
        kept = cut(given, max(1, room - n_frame), policy.side)
    row = frame(kept).ids if framed else kept
    if len(row) > most:
        raise RequestError(
            f'{place}: expected at most {most} tokens, got {len(row)}; shorten it, or send truncation "auto"',
            "input",
            "context_length_exceeded",
        )
    if not row:
        raise RequestError(f"{place}: expected at least one token, got none", "input")
    return row, len(given) - len(kept)


def check_ids(service: Service, ids: tuple[int, ...], place: str) -> None:
    vocab_size = service.model.tokenizer.vocab_size
    outside = next((token for token in ids if not 0 <= token < vocab_size), None)
    if outside is not None:
        raise RequestError(f"{place}: expected token ids in 0..{vocab_size - 1}, got {outside}", "input")
