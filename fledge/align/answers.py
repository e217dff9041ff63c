"""What a model makes of answers laid side by side in rows: the log-probability of each, or its reward.

B rows, T tokens, S answers of a row; document s of a row is its answer s (see `data.preference_batches`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fledge.batch import Batch, OneDocument, one_document
from fledge.errors import ConfigError
from fledge.model.transformer import Transformer
from fledge.nn.losses import exactly_as_written

CHUNK_TARGETS = 2048  # whose logits are there at once
HEAD = "sequence"


def answer_log_probabilities(model: Transformer, batch: Batch, n_answers: int) -> Tensor:
    """Σ log p over each answer's own tokens, in nats: float32 [B, S]; 0 for an answer without any."""
    hidden = model.hidden(batch.tokens, batch.layout, source=batch.source)
    there = batch.weight > 0
    chosen, targets = hidden[there], batch.targets[there]
    parts = []
    for rows in range(0, len(targets), CHUNK_TARGETS):
        part = slice(rows, rows + CHUNK_TARGETS)
        if torch.is_grad_enabled() and len(targets) > CHUNK_TARGETS:
            parts.append(checkpoint(log_probabilities, model, chosen[part], targets[part], use_reentrant=False))
        else:
            parts.append(log_probabilities(model, chosen[part], targets[part]))
    found = torch.cat(parts) if parts else chosen.new_zeros(0)
    of_tokens_BT = torch.zeros_like(batch.weight).masked_scatter(there, found)
    return torch.stack([torch.where(batch.tokens.doc == s, of_tokens_BT, 0.0).sum(1) for s in range(n_answers)], 1)


def log_probabilities(model: Transformer, hidden: Tensor, targets: Tensor) -> Tensor:
    """log p of each target: float32 [N], of hidden [N, D]."""
    return -F.cross_entropy(model.logits(hidden).float(), targets, reduction="none")


def answer_tokens(batch: Batch, n_answers: int) -> Tensor:
    """How many tokens of its own each answer has: float32 [B, S]."""
    there = batch.weight > 0
    return torch.stack([(there & (batch.tokens.doc == s)).sum(1) for s in range(n_answers)], 1).float()


def answer_rewards(model: Transformer, batch: Batch, n_answers: int) -> Tensor:
    """What the head of one label says of each answer's last token: float32 [B, S]. Raises ConfigError for a model
    without such a head."""
    config = next((head for head in model.config.heads if head.name == HEAD), None)
    if config is None or config.labels != 1 or config.take != "last":
        raise ConfigError("reward: expected a decoder with a head of one label on the last token, got another model")
    hidden = model.hidden(batch.tokens, batch.layout)
    n_rows, n_tokens = batch.tokens.ids.shape
    places = torch.arange(n_tokens, device=hidden.device)
    last_BS = torch.stack(
        [torch.where(batch.tokens.doc == s, places, 0).amax(1) for s in range(n_answers)], 1
    )  # fmt: skip
    picked = hidden[torch.arange(n_rows, device=hidden.device)[:, None], last_BS].reshape(n_rows * n_answers, 1, -1)
    alone = one_document(torch.zeros(picked.shape[:2], dtype=torch.int64, device=hidden.device))
    with exactly_as_written(hidden.device.type):  # rewards of 8 bits would be the same for many answers
        found: Tensor = model.heads[HEAD](picked.float(), alone, OneDocument(), None)
    return found.reshape(n_rows, n_answers)
