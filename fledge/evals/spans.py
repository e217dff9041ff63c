"""Nats of tokens under a model, over any number of stretches of text. With torch.

B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.batch import OneDocument, Tokens, one_document
from fledge.errors import NonFiniteError

BATCH_TOKENS = 8192
LOGITS_AT_ONCE = 1 << 24  # 64 MB in float32


@dataclass(frozen=True)
class Span:
    """Tokens `ids`, of which ids[first:] are scored, each given all before it in the span; 1 ≤ first."""

    ids: tuple[int, ...]
    first: int


def document_spans(ids: Sequence[int], context_tokens: int, stride: int) -> list[Span]:
    """Spans that score each of ids[1:] exactly once.

    A document longer than the context is read in windows of `context_tokens` inputs, each `stride` tokens further on:
    a token is predicted from more than context - stride tokens before it, or from all there are.
    """
    spans, scored = [], 1
    for begin in range(0, max(1, len(ids)), stride):
        end = min(begin + context_tokens + 1, len(ids))
        if scored < end:
            spans.append(Span(tuple(ids[begin:end]), scored - begin))
        scored = end
        if end == len(ids):
            break
    return spans


@torch.inference_mode()
def score_spans(transformer: Any, spans: Sequence[Span], progress: Callable[[int], None] | None = None) -> list[float]:
    """Nats of each span's scored tokens under a `Transformer`, float64 sums of float32 log-probabilities."""
    nats = [0.0] * len(spans)
    device = transformer.embedding.weight.device
    done = 0
    for numbers in batches_of(spans):
        rows = [list(spans[number].ids) for number in numbers]
        hidden_BTD = transformer.hidden(as_rows([row[:-1] for row in rows]).to(device), OneDocument())
        wanted = [(b, t) for b, number in enumerate(numbers) for t in range(spans[number].first - 1, len(rows[b]) - 1)]
        targets = [rows[b][t + 1] for b, t in wanted]
        row_index, place = torch.tensor(wanted, device=device).T
        scored = each_nats(transformer, hidden_BTD[row_index, place], torch.tensor(targets, device=device))
        sums = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, row_index.cpu(), scored.cpu())
        for b, number in enumerate(numbers):
            nats[number] = float(sums[b])
        done += len(numbers)
        if progress is not None:
            progress(done)
    if not all(map(math.isfinite, nats)):
        raise NonFiniteError(
            "evaluate: expected finite log-probabilities, got NaN or infinity; the weights are damaged"
        )
    return nats


def each_nats(transformer: Any, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    """Nats of each target, float64 [N], without ever holding more than LOGITS_AT_ONCE logits."""
    rows = max(1, LOGITS_AT_ONCE // transformer.config.vocab_size)
    pieces = zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
    return torch.cat([F.cross_entropy(transformer.logits(h).float(), t, reduction="none") for h, t in pieces]).double()


def batches_of(spans: Sequence[Span]) -> Iterator[list[int]]:
    """Numbers of spans of like length, so that little is padding, BATCH_TOKENS at most together."""
    order = sorted(range(len(spans)), key=lambda number: -len(spans[number].ids))
    while order:
        rows = max(1, BATCH_TOKENS // max(1, len(spans[order[0]].ids)))
        yield order[:rows]
        order = order[rows:]


def as_rows(rows: list[list[int]]) -> Tokens:
    """Rows of one length. What fills a shorter one up stands after its tokens, where a causal model doesn't look: no
    mask is needed, and the fast kernels stay."""
    longest = max(map(len, rows))
    return one_document(torch.tensor([row + [0] * (longest - len(row)) for row in rows]))
