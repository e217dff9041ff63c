"""Sources: what an encoder reads before its decoder writes. Imports no torch.

A request's source is encoded when the first of its answers runs, for all answers that read it at the same time, and is
forgotten with the last of them. Tenants share none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fledge.engine.prefix import chain_key, root_key
from fledge.engine.row import RunnerFace, Source
from fledge.errors import RequestError
from fledge.text.sides import framed

if TYPE_CHECKING:
    from fledge.engine.overflow import LongInput
    from fledge.engine.request import Request
    from fledge.text.tokenizer import Tokenizer


def named(ids: Sequence[int], *facts: str) -> Source | None:
    """A source by its ids and the facts that must be equal too (tenant, version of the weights); None for no ids."""
    return Source(root_key(*facts, chain_key(b"", ids).hex()), tuple(ids)) if ids else None


def cut_source(tokenizer: Tokenizer, ids: Sequence[int], long_input: LongInput, most: int) -> tuple[int, ...]:
    """A source's ids, of which the encoder reads at most `most`, cut as `long_input` says, inside the frame of special
    tokens if they stand in it. Raises RequestError."""
    frame, whole = framed(tokenizer, ()), tuple(ids)
    text = next(one for one in range(len(frame) + 1) if one not in frame)  # any id to see what stands around it
    n = framed(tokenizer, (text,)).index(text)
    lead, tail = frame[:n], frame[n:]
    if len(whole) < len(frame) or whole[:n] != lead or whole[len(whole) - len(tail) :] != tail:
        return long_input.cut(whole, 1, most + 1)
    inside = replace(long_input, most=max(1, long_input.most - len(frame))) if long_input.most else long_input
    return (*lead, *inside.cut(whole[n : len(whole) - len(tail)], 1, most + 1 - len(frame)), *tail)


class Readers:
    """How many running answers read each source that the runner keeps."""

    def __init__(self, runner: RunnerFace):
        self.runner = runner
        self.counts: Counter[bytes] = Counter()

    def add(self, source: Source) -> bool:
        """One reader more; whether it is the first, for whom the source must be encoded."""
        self.counts[source.name] += 1
        return self.counts[source.name] == 1

    def remove(self, source: Source) -> None:
        """One reader less; the runner forgets what nobody reads."""
        self.counts[source.name] -= 1
        if not self.counts[source.name]:
            del self.counts[source.name]
            self.runner.forget(source.name)


def source_of(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """A text's ids as an encoder reads them, in their frame."""
    return framed(tokenizer, tokenizer.encode(text))


def check_length(source_tokens: int, most: int) -> None:
    """Raise RequestError for a source longer than the encoder's context, or for one where there is no encoder."""
    if source_tokens and not most:
        raise RequestError("source: expected none, got one, and this model is a decoder alone; give a prompt", "source")
    if source_tokens > most:
        raise RequestError(
            f"context: expected a source of at most {most} tokens, got {source_tokens}; shorten it",
            "prompt",
            "context_length_exceeded",
        )


def with_start(request: Request, runner: RunnerFace, vocab_size: int) -> Request:
    """The request, its source checked, with the decoder's start for a prompt that is empty. Raises RequestError."""
    ids, most = request.source_ids, runner.source_tokens
    check_length(len(ids), most)
    if most and not ids:
        raise RequestError("source: expected token ids for the encoder, got none; give source_ids", "source")
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        raise RequestError(f"source: expected token ids in 0..{vocab_size - 1}", "source")
    return replace(request, prompt_ids=(runner.start_id,)) if ids and not request.prompt_ids else request
