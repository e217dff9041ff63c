"""Whole answers outside a server: of beam searches, and the texts that an encoder-decoder writes for texts that it
reads, greedily or by beams, the same in evaluation and in `fledge predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fledge.engine.beam import text_of
from fledge.engine.length import answer_room
from fledge.engine.request import BeamSearch, Completion, Request, Sampling

if TYPE_CHECKING:
    from fledge.engine.core import Engine


def written(
    engine: Engine, sources: Sequence[tuple[int, ...]], max_tokens: int = 0, beams: int = 1, length_penalty: float = 1.0
) -> list[str]:
    """A text for each source, in order, of at most `max_tokens` (0: what the context holds). Raises RequestError for a
    source that the model can't read."""
    room = answer_room(1, max_tokens or None, engine.context_tokens)
    sampling = Sampling(max_tokens=room, temperature=0)
    requests = [Request(f"source {n}", (), sampling, source_ids=ids) for n, ids in enumerate(sources)]
    if beams == 1:
        return [one.text for one in engine.complete(requests)]
    search = BeamSearch(beams, room, length_penalty)
    return [beam_completions(engine, request, search, 1)[0][0].text for request in requests]


def beam_completions(
    engine: Engine, request: Request, search: BeamSearch, n: int
) -> tuple[list[Completion], list[float]]:
    """The `n` best answers of a search, and their scores; prompt and source are the request's. Raises as
    `Engine.complete`."""
    sampling = Sampling(max_tokens=search.max_tokens, n=n)
    found = engine.complete([replace(request, sampling=sampling, search=search)])
    return found, [one.score for one in found if one.score is not None]


def completion_of(engine: Engine, prompt_ids: Sequence[int], index: int, token_ids: tuple[int, ...]) -> Completion:
    """The completion that an answer's tokens, a stop token included, are."""
    text, reason = text_of(engine.tokenizer, prompt_ids, token_ids, engine.stop_ids)
    return Completion("search", index, text, token_ids, (), reason)
