"""Contrastive search: each token is likely and unlike what stands before it.

Of the `top_k` likeliest tokens the one with the highest (1 - alpha) p - alpha s is taken, s being the largest cosine
between the last layer's vector of this token and of any before it. Source: Su et al. 2022 (arXiv 2202.06417), eq. 5.

It computes all of the text anew for each token, `top_k` times side by side: vectors of the past are needed, which no
cache holds. Meant for texts of some hundred tokens.

K candidates, T tokens so far, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fledge.batch import OneDocument, one_document
from fledge.engine.length import answer_room
from fledge.engine.request import check
from fledge.errors import EngineError, RequestError
from fledge.model.transformer import Transformer

MAX_CANDIDATES = 64


@dataclass(frozen=True)
class ContrastiveSearch:
    """How to search; alpha 0 is greedy."""

    alpha: float = 0.6
    top_k: int = 4
    max_tokens: int = 128

    def validated(self) -> ContrastiveSearch:
        """This, after checking every range. Raises RequestError."""
        check(0 <= self.alpha <= 1, "alpha", "0..1", self.alpha)
        check(1 <= self.top_k <= MAX_CANDIDATES, "top_k", f"1..{MAX_CANDIDATES}", self.top_k)
        check(self.max_tokens >= 1, "max_tokens", "at least 1", self.max_tokens)
        return self


@torch.inference_mode()
def contrastive_search(
    model: Transformer,
    prompt_ids: Sequence[int],
    search: ContrastiveSearch,
    stop_ids: Collection[int],
    vocab_size: int,
) -> tuple[int, ...]:
    """The answer's tokens, a stop token included. Raises RequestError (ranges, length) and EngineError (logits that are
    not finite). `vocab_size`: ids that may be chosen."""
    search.validated()
    answer_room(len(prompt_ids), search.max_tokens, model.document_tokens)
    if not prompt_ids or not 0 <= min(prompt_ids) <= max(prompt_ids) < vocab_size:
        raise RequestError(f"prompt: expected some token ids in 0..{vocab_size - 1}", "prompt")
    device = model.embedding.weight.device
    ids_T = torch.tensor(prompt_ids, device=device)
    last_D = model.hidden(one_document(ids_T[None]), OneDocument())[0, -1]
    answer: list[int] = []
    while True:
        logits_V = model.logits(last_D[None])[0].float()
        if not bool(torch.isfinite(logits_V).all()):
            raise EngineError("engine: expected finite logits, got others; check the weights")
        p_K, candidates_K = logits_V.softmax(-1)[:vocab_size].topk(min(search.top_k, vocab_size))
        rows_KT = torch.cat([ids_T.expand(len(candidates_K), -1), candidates_K[:, None]], 1)
        hidden_KTD = model.hidden(one_document(rows_KT), OneDocument()).float()
        unit_KTD = F.normalize(hidden_KTD, dim=-1)
        likeness_K = (unit_KTD[:, :-1] @ unit_KTD[:, -1:, :].transpose(1, 2)).amax((1, 2))
        best = int(((1 - search.alpha) * p_K - search.alpha * likeness_K).argmax())
        token = int(candidates_K[best])
        answer.append(token)
        if token in stop_ids or len(answer) == search.max_tokens:
            return tuple(answer)
        ids_T, last_D = rows_KT[best], hidden_KTD[best, -1].to(last_D.dtype)
