"""The vocabulary shared by several processes: its embedding, its output product, and cross-entropy without ever holding
all logits of a token in one place. N targets, D width, v entries of this process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from fledge.batch import Tokens
from fledge.model.config import ModelConfig
from fledge.model.transformer import Transformer
from fledge.parallel.exchange import Enter, Leave, gathered, summed
from fledge.parallel.mesh import Line

CHUNK_ROWS = 1024


class Vocabulary:
    """Which entries are this process's: `sizes` of all, `first` of its own, of which `used` are tokens."""

    def __init__(self, line: Line, config: ModelConfig):
        self.line, whole = line, config.vocab_size
        base, rest = divmod(whole, line.size)
        self.sizes = [base + (index < rest) for index in range(line.size)]
        self.first = sum(self.sizes[: line.index])
        n_tokens = config.tokens or whole
        firsts = [sum(self.sizes[:index]) for index in range(line.size)]
        self.all_used = [max(0, min(size, n_tokens - at)) for size, at in zip(self.sizes, firsts, strict=True)]
        self.used = self.all_used[line.index]


class VocabularyTransformer(Transformer):
    """A Transformer whose embedding, output matrix and output bias have some of the vocabulary's rows."""

    vocabulary: Vocabulary

    def embed(self, tokens: Tokens) -> Tensor:
        if tokens.embeds is not None:
            return tokens.embeds
        vocabulary = self.vocabulary
        row = tokens.ids - vocabulary.first
        here = (row >= 0) & (row < vocabulary.sizes[vocabulary.line.index])
        found = self.embedding(torch.where(here, row, 0)) * here[..., None]
        return Leave.apply(found, vocabulary.line)

    @property
    def output_matrix(self) -> Tensor:
        matrix = self.embedding.weight if self.output is None else self.output.weight
        assert isinstance(matrix, Tensor)
        return matrix[: self.vocabulary.used]

    def own_logits(self, hidden: Tensor) -> Tensor:
        """[..., v]: those of this process's entries."""
        hidden = Enter.apply(self.before_output(hidden), self.vocabulary.line)
        logits = self.product(hidden, self.vocabulary.used)
        cap = self.config.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def logits(self, hidden: Tensor) -> Tensor:
        """All of them, without a gradient: for validations."""
        own = self.own_logits(hidden)
        return gathered(own, self.vocabulary.line, self.vocabulary.all_used, own.dim() - 1)

    def nats(self, hidden: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """Σ weight · nats of targets [...] told from hidden states [..., D]."""
        hidden, targets, weight = hidden.flatten(0, -2), targets.flatten(), weight.flatten()
        there = weight > 0
        hidden, targets, weight = hidden[there], targets[there], weight[there]
        if self.config.logit_softcap is not None:
            return OwnCrossEntropy.apply(self.own_logits(hidden), targets, weight, self.vocabulary)
        bias = None if self.output_bias is None else self.output_bias[: self.vocabulary.used]
        hidden = Enter.apply(self.before_output(hidden), self.vocabulary.line)
        return FusedOwnCrossEntropy.apply(hidden, self.output_matrix, bias, targets, weight, self.vocabulary)

    def loss_sum(self, tokens, layout, targets, weight, source=None) -> Tensor:  # type: ignore[no-untyped-def,override]
        return self.nats(self.hidden(tokens, layout, source=source), targets, weight)


def nats_and_gradient(logits: Tensor, targets: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """−log p(target) [N] and p − y [N, v], from this process's logits float32 [N, v], which are overwritten. What goes
    between processes is three numbers a target."""
    line, rows = vocabulary.line, torch.arange(len(logits), device=logits.device)
    most = logits.amax(1) if logits.shape[1] else logits.new_full((len(logits),), -torch.inf)
    dist.all_reduce(most, dist.ReduceOp.MAX, group=line.group)
    place = targets - vocabulary.first
    here = (place >= 0) & (place < logits.shape[1])
    shifted = logits.sub_(most[:, None])
    of_target = shifted.new_zeros(len(targets))
    of_target[here] = shifted[rows[here], place[here]]
    p = shifted.exp_()
    total, of_target = summed(torch.stack((p.sum(1), of_target)), line)
    p.div_(total[:, None])
    p[rows[here], place[here]] -= 1
    return total.log() - of_target, p


class OwnCrossEntropy(torch.autograd.Function):
    """Σ weight · nats from this process's logits [N, v]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weight: Tensor, vocabulary: Vocabulary) -> Tensor:
        nats, gradient = nats_and_gradient(logits.float().clone(), targets, vocabulary)
        ctx.save_for_backward((gradient * weight[:, None]).to(logits.dtype))
        return (nats * weight).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None, None


class FusedOwnCrossEntropy(torch.autograd.Function):
    """The output product with this process's rows of the matrix [v, D], and Σ weight · nats: in chunks of targets whose
    logits become their own gradient. The gradient for hidden [N, D] is of this process's entries alone."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weight: Tensor,
        vocabulary: Vocabulary,
    ) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        grad_hidden, grad_matrix = torch.empty_like(hidden), torch.zeros_like(matrix)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        for start in range(0, len(hidden), CHUNK_ROWS):
            some = slice(start, start + CHUNK_ROWS)
            logits = F.linear(hidden[some], matrix, bias).float()
            nats, gradient = nats_and_gradient(logits, targets[some], vocabulary)
            total += (nats * weight[some]).sum()
            scaled = gradient.mul_(weight[some, None]).to(hidden.dtype)
            grad_hidden[some] = scaled @ matrix
            grad_matrix.addmm_(scaled.t(), hidden[some])
            if grad_bias is not None:
                grad_bias += scaled.sum(0)
        ctx.save_for_backward(grad_hidden, grad_matrix, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return (*(None if g is None else g * grad for g in ctx.saved_tensors), None, None, None)


def split_vocabulary(model: Transformer, vocabulary: Vocabulary, cut: Callable[..., None]) -> None:
    """Keep this process's rows of what has one for each entry."""
    cut(model.embedding, "weight", 0, vocabulary.sizes)
    if model.output is not None:
        cut(model.output, "weight", 0, vocabulary.sizes)
        cut(model.output, "bias", 0, vocabulary.sizes)
    cut(model, "output_bias", 0, vocabulary.sizes)
    model.__class__ = VocabularyTransformer
    model.vocabulary = vocabulary  # type: ignore[assignment]
