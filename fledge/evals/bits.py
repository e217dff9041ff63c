"""Bits per byte of documents under a model. With torch."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fledge.data.document import Document
from fledge.evals.spans import document_spans, score_spans
from fledge.log import Progress

NORMALISER = "total bits over total UTF-8 bytes; no context across documents; the end-of-document token is not scored"


@dataclass(frozen=True)
class DocumentBits:
    """What each document costs: `bits`, `n_bytes` and scored `n_tokens`, in the order given."""

    bits: list[float]
    n_bytes: list[int]
    n_tokens: list[int]

    @property
    def perplexity(self) -> float:
        """Per token: 2 to the mean of bits; infinite where that exceeds a float."""
        bits = sum(self.bits) / max(1, sum(self.n_tokens))
        return 2**bits if bits < sys.float_info.max_exp else math.inf


def document_ids(tokenizer: Any, text: str) -> list[int]:
    """A document as it is scored: <bos>, where the tokenizer has one, and the text."""
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return start + tokenizer.encode_array(text).tolist()


def first_token(tokenizer: Any) -> str:
    """How the first token of a document is scored, in words."""
    return "uniform over the vocabulary (no <bos>)" if tokenizer.bos_id is None else "given <bos>"


def document_bits(model: Any, documents: Sequence[Document], stride: int, what: str = "evaluate") -> DocumentBits:
    """The bits of each document under a model (see `fledge.load`). Every token of the text is charged once; the first
    without a <bos> before it costs log2 of the vocabulary."""
    context_tokens = model.transformer.document_tokens
    charged = math.log2(model.transformer.config.vocab_size) if model.tokenizer.bos_id is None else 0.0
    spans, owners, bits, n_tokens = [], [], [], []
    for number, document in enumerate(documents):
        ids = document_ids(model.tokenizer, document.text)
        mine = document_spans(ids, context_tokens, stride)
        spans += mine
        owners += [number] * len(mine)
        bits.append(charged)
        n_tokens.append(len(ids) - (model.tokenizer.bos_id is not None))
    progress = Progress(what, len(spans))
    for owner, nats in zip(owners, score_spans(model.transformer, spans, progress.update), strict=True):
        bits[owner] += nats / math.log(2)
    progress.close()
    return DocumentBits(bits, [document.n_bytes for document in documents], n_tokens)
