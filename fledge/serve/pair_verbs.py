"""/score and /rerank: how far one text answers another, by a head that reads both at once or by the angle between their
vectors.

N pairs, F first texts, W numbers of a vector.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from fledge.engine.reading import shares_of
from fledge.serve.ids import new_reply_id
from fledge.serve.pair_rows import lay_scored
from fledge.serve.pair_wire import RERANK_FIELDS, SCORE_FIELDS, PairCall, read_rerank, read_score
from fledge.serve.service import Service
from fledge.serve.vector_replies import usage
from fledge.serve.vector_routes import Verb
from fledge.serve.vector_rows import Rows


def told_scores(service: Service, call: PairCall, rows: Rows, numbers: list[np.ndarray]) -> dict[str, Any]:
    """The score of each pair, in their order."""
    scores = scores_of(service, call, numbers)
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
    head = {"id": new_reply_id("score"), "object": "list", "created": int(time.time()), "model": service.model.name}
    return {**head, "data": data, "usage": usage(rows.n_tokens)}


def told_ranking(service: Service, call: PairCall, rows: Rows, numbers: list[np.ndarray]) -> dict[str, Any]:
    """The best documents, best first; of equal ones the earlier first."""
    scores = scores_of(service, call, numbers)
    results = []
    for index in sorted(range(len(scores)), key=lambda n: -scores[n])[: call.top_n]:
        one: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
        if call.with_texts:
            one["document"] = {"text": call.seconds[index]}
        results.append(one)
    head = {"id": new_reply_id("rerank"), "model": service.model.name}
    return {**head, "results": results, "usage": usage(rows.n_tokens)}


def scores_of(service: Service, call: PairCall, numbers: list[np.ndarray]) -> list[float]:
    """A head's number of each pair, through a sigmoid where its folder and the caller want it; else the cosine."""
    facts = service.engine.facts
    found = np.concatenate(numbers).astype(np.float64)
    if facts["purpose"] == "embed":
        found = cosines(found[: len(call.firsts)], found[len(call.firsts) :])
    elif facts["share"] and call.use_activation:
        found = shares_of(found, several=True)
    scores: list[float] = found.reshape(-1).tolist()
    return scores


def cosines(firsts_FW: np.ndarray, seconds_NW: np.ndarray) -> np.ndarray:
    """float64 [N]; F is N or 1. A vector of length 0 is near nothing."""
    lengths = np.linalg.norm(firsts_FW, axis=1) * np.linalg.norm(seconds_NW, axis=1)
    return np.asarray((firsts_FW * seconds_NW).sum(1) / np.maximum(lengths, 1e-12))


SCORE = Verb("score", SCORE_FIELDS, read_score, lay_scored, told_scores)
RERANK = Verb("score", RERANK_FIELDS, read_rerank, lay_scored, told_ranking)
