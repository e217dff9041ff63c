"""Texts that an encoder-decoder writes for texts that it reads: greedily, or by beams. The same in evaluation and in
`fledge predict`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fledge.engine.length import answer_room
from fledge.engine.request import Request, Sampling

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
    from fledge.engine.beam import BeamSearch, beam_completions

    search = BeamSearch(beams, room, length_penalty)
    return [beam_completions(engine, request, search, 1)[0][0].text for request in requests]
