"""From the inputs of a request to rows of token ids: framed, checked, cut where asked for. Imports no torch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fledge.engine.overflow import LongInput, cut
from fledge.errors import RequestError, TokenizerError
from fledge.serve.errors import ApiError
from fledge.serve.service import IN_THREAD_CHARACTERS, Service
from fledge.serve.vector_wire import MAX_INPUT_TOKENS, VectorCall

T = TypeVar("T")
ONLY = "overflow: expected refuse or truncate here, got {}; a text is read as one row and nothing goes on past it"


@dataclass(frozen=True)
class Rows:
    """Each input's ids, and how many of its tokens were cut off; `kinds` and `top_k` as a RowRequest has them."""

    ids: tuple[tuple[int, ...], ...]
    n_cut: tuple[int, ...]
    kinds: tuple[tuple[int, ...], ...] = ()
    top_k: int = 0

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.ids))


async def read_rows(service: Service, call: VectorCall) -> Rows:
    """The rows of a call, in its order. Raises RequestError, ApiError 400 for a text outside the vocabulary."""
    policy = cut_policy(service, call.long_input)
    texts = [text for text in call.inputs if isinstance(text, str)]
    for text in texts:
        service.refuse_hopeless(len(text), "input")
    encoded = iter(await in_thread(texts, lambda: encode(service, texts)))
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
    check_total(service, rows.n_tokens, "input")
    return rows


def check_total(service: Service, n_tokens: int, param: str) -> None:
    """Raises RequestError for more tokens than one request may have in all its rows."""
    most = min(MAX_INPUT_TOKENS, service.config.vectors.max_waiting_tokens)
    if n_tokens > most:
        message = f"{param}: expected at most {most} tokens in all inputs, got {n_tokens}; send several requests"
        raise RequestError(message, param, "context_length_exceeded")


def cut_policy(service: Service, long_input: dict[str, Any]) -> LongInput:
    """What happens to a text that is too long. Raises RequestError for a way that only writing has."""
    policy = replace(service.config.engine.long_input, **{"side": "right", **long_input})
    if policy.policy not in ("refuse", "truncate"):
        raise RequestError(ONLY.format(policy.policy), "overflow", "unsupported_parameter")
    return policy


async def in_thread(texts: Iterable[str], work: Callable[[], T], param: str = "input") -> T:
    """`work`, in a thread where the texts are long. Raises ApiError 400 for a text outside the vocabulary."""
    try:
        return await asyncio.to_thread(work) if sum(map(len, texts)) > IN_THREAD_CHARACTERS else work()
    except TokenizerError:
        raise ApiError(400, "The text can't be encoded with this model's vocabulary.", param) from None


def encode(service: Service, texts: list[str]) -> list[list[int]]:
    """The ids of texts as the model was trained to read them, without their frame."""
    facts = service.engine.facts
    whole = [facts.get("prompt", "") + text for text in texts]
    return service.model.tokenizer.encode_batch([one.lower() for one in whole] if facts.get("lower") else whole)


def fitted(
    service: Service, given: list[int] | tuple[int, ...], policy: LongInput, place: str, framed: bool
) -> tuple[tuple[int, ...], int]:
    """One input as a row, `framed` by the tokenizer's special tokens, and how many of its own tokens were cut off.
    Raises RequestError for a row that is too long, or that holds nothing."""
    param = place.partition("[")[0]
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
            param,
            "context_length_exceeded",
        )
    if not row:
        raise RequestError(f"{place}: expected at least one token, got none", param)
    return row, len(given) - len(kept)


def check_ids(service: Service, ids: tuple[int, ...], place: str) -> None:
    vocab_size = service.model.tokenizer.vocab_size
    outside = next((token for token in ids if not 0 <= token < vocab_size), None)
    if outside is not None:
        raise RequestError(f"{place}: expected token ids in 0..{vocab_size - 1}, got {outside}", "input")
