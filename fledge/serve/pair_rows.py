"""Two texts as a row of token ids, laid out as in training, or as a row each. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fledge.errors import RequestError
from fledge.serve.pair_wire import PairCall
from fledge.serve.service import Service
from fledge.serve.task_rows import reader_of, refuse_left
from fledge.serve.vector_rows import Rows, check_total, cut_policy, encode, fitted, in_thread


@dataclass(frozen=True)
class Pair:
    """Two texts, and where in the body the second stood."""

    first: str
    second: str
    place: str

    @property
    def param(self) -> str:
        """The field of the body."""
        return self.place.partition("[")[0].partition(".")[0]


async def lay_scored(service: Service, call: PairCall) -> Rows:
    """A row of both texts of each pair for a head; for a model of vectors a row of each first text, then of each second
    one. Raises RequestError for texts that are too long, ApiError 400 for one outside the vocabulary."""
    if service.engine.facts["purpose"] == "embed":
        return await lay_apart(service, call)
    firsts = call.firsts * (len(call.seconds) if len(call.firsts) == 1 else 1)
    pairs = [
        Pair(first, second, call.place(1, number))
        for number, (first, second) in enumerate(zip(firsts, call.seconds, strict=True))
    ]
    return await lay_pairs(service, pairs, call.long_input)


async def lay_pairs(service: Service, pairs: Sequence[Pair], long_input: dict[str, Any]) -> Rows:
    """A row of each pair, the longer text cut first where both are too long together and may be cut. Raises
    RequestError."""
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.first, pair.second)))
    for pair in pairs:
        service.refuse_hopeless(max(len(pair.first), len(pair.second)), pair.param)
    rows = await in_thread(texts, lambda: laid_pairs(service, pairs, texts, long_input), pairs[0].param)
    check_total(service, rows.n_tokens, pairs[0].param)
    return rows


def laid_pairs(service: Service, pairs: Sequence[Pair], texts: list[str], long_input: dict[str, Any]) -> Rows:
    tokenizer, policy, reader = service.model.tokenizer, cut_policy(service, long_input), reader_of(service)
    refuse_left(policy.side, "two texts")
    most = min(policy.most or reader.max_tokens, reader.max_tokens)
    refuses = policy.policy == "refuse" and not policy.most
    ids_of = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
    reader, frame = replace(reader, max_tokens=most), reader.frame_tokens(True)
    framed, n_cut = [], []
    for pair in pairs:
        first, second = ids_of[pair.first], ids_of[pair.second]
        n_tokens = len(first) + len(second) + frame
        if refuses and n_tokens > most:
            raise RequestError(
                f"{pair.place}: expected at most {most} tokens with the text it goes with, got {n_tokens}; shorten "
                'one of them, or send truncation "auto"',
                pair.param,
                "context_length_exceeded",
            )
        row = reader.row(first, second)
        framed.append(row)
        n_cut.append(n_tokens - len(row.ids))
    kinds = [reader.kinds_of(row) for row in framed]
    told = () if None in kinds else tuple(one for one in kinds if one is not None)
    return Rows(tuple(row.ids for row in framed), tuple(n_cut), told)


async def lay_apart(service: Service, call: PairCall) -> Rows:
    """A row of each text. Raises RequestError."""
    policy, found = cut_policy(service, call.long_input), []
    for side, some in enumerate((call.firsts, call.seconds)):
        for text in some:
            service.refuse_hopeless(len(text), call.names[side])
        encoded = await in_thread(some, partial(encode, service, list(some)), call.names[side])
        found += [fitted(service, ids, policy, call.place(side, n), True) for n, ids in enumerate(encoded)]
    rows = Rows(tuple(row for row, _ in found), tuple(lost for _, lost in found))
    check_total(service, rows.n_tokens, call.names[1])
    return rows
