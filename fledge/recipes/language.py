"""Next-token training, the recipe behind `pretrain` and `sft`: batches in, Σ weight · nats out, and the load balance of
mixtures of experts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from fledge.batch import PADDING, Batch, Loss, Term, Tokens
from fledge.data.mixture import SourcePlan
from fledge.errors import ConfigError
from fledge.model.folder import save_description, save_model
from fledge.model.transformer import Transformer
from fledge.nn.feedforward import Experts, load_balance
from fledge.recipes.held_out import HeldOut, overall
from fledge.text.tokenizer import Tokenizer
from fledge.train.config import TrainConfig
from fledge.train.recipe import Totals, added_up


class BatchSource(Protocol):
    """Training batches as a pure function of their index."""

    def batch(self, index: int) -> Batch: ...


def whole_folder(model: Transformer, folder: Path, tokenizer: Tokenizer) -> None:
    save_model(model, folder, tokenizer, card=False)


@dataclass
class LanguageRecipe:
    """Train `model` on `source`; validate on `held_out` batches (a sequence made as it is read), or on those of each of
    a mixture's `sources`. `plan`: what the run reads of them."""

    model: Transformer
    tokenizer: Tokenizer
    source: BatchSource
    held_out: Sequence[Batch]
    data_digest: str
    parents: dict[str, str] = field(default_factory=dict)
    sources: tuple[HeldOut, ...] = ()
    plan: Sequence[SourcePlan] = ()
    totals: Totals = added_up
    writes: Callable[[Transformer, Path, Tokenizer], None] = whole_folder
    """How the model is written: whole, or what was trained beside a base."""
    kind: str = "model"
    """Of what is written, for its card."""

    def batch(self, index: int) -> Batch:
        return self.source.batch(index)

    def weights(self, batch: Batch) -> dict[str, float]:
        nats = {"nats": float(batch.weight.sum())}
        return nats | {"balance": 1.0} if balanced_layers(self.model) else nats

    def loss(self, batch: Batch) -> Loss:
        total = self.model.loss_sum(batch.tokens, batch.layout, batch.targets, batch.weight, batch.source)
        terms = {"nats": Term(total, float(batch.weight.sum()))}
        if balanced_layers(self.model):
            # a product of two means over the batch: that of parts is another
            terms["balance"] = Term(balance(self.model, batch.tokens), 1.0, coupled=True)
        return Loss(terms)

    def validate(self, rows: int) -> dict[str, float]:
        """The figures of `measured`; of a mixture by source too, `rows` shared evenly between them."""
        if not self.sources:
            return self.measured(self.held_out, rows)
        each = -(-rows // len(self.sources))
        return overall([(source, self.measured(source.batches, each)) for source in self.sources])

    def measured(self, held_out: Sequence[Batch], rows: int) -> dict[str, float]:
        """`val_loss`: nats per held-out target; `val_tokens`: how many. `rows` > 0 takes evenly spaced batches."""
        nats, weight = self.totals(held_out, spaced(held_out, rows), self.sums) or (0.0, 0.0)
        return {"val_loss": nats / weight if weight else math.nan, "val_tokens": weight}

    def sums(self, batch: Batch) -> list[float]:
        """Of a held-out batch: nats and weight."""
        batch = batch.to(self.model.embedding.weight.device)
        total = self.model.loss_sum(batch.tokens, batch.layout, batch.targets, batch.weight, batch.source)
        return [float(total), float(batch.weight.sum())]

    def save(self, folder: Path) -> None:
        self.writes(self.model, folder, self.tokenizer)

    def describe(self, folder: Path) -> None:
        save_description(self.model, self.model.embedding.weight.dtype, folder, self.tokenizer)


def balanced_layers(model: Transformer) -> list[Experts]:
    """The mixtures of experts that ask for a load-balancing loss."""
    return [part for part in model.modules() if isinstance(part, Experts) and part.config.balance]


def balance(model: Transformer, tokens: Tokens) -> Tensor:
    """What load balancing adds to the loss after a pass in training: the mean over layers of coefficient · top_k ·
    `load_balance`. The factor makes a coefficient mean what it does in transformers, which counts each of a token's
    top_k choices as one (and multiplies shares and probabilities of all layers together where we go layer by layer).
    """
    layers = balanced_layers(model)
    there = tokens.doc != PADDING
    return sum(part.config.balance * part.config.top_k * load_balance(part, there) for part in layers) / len(layers)  # type: ignore[return-value]


def row_tokens_of(train: TrainConfig, context_tokens: int) -> int:
    """Tokens of a training row. Raises ConfigError if they exceed the model's context."""
    if train.row_tokens > context_tokens:
        raise ConfigError(f"train.row_tokens: expected at most the context of {context_tokens}, got {train.row_tokens}")
    return train.row_tokens or context_tokens


def spaced(batches: Sequence[Batch], rows: int) -> list[int]:
    """Indices of about `rows` rows' worth of batches, evenly spaced; all for `rows` 0."""
    n_batches = len(batches)
    if not n_batches or not rows:
        return list(range(n_batches))
    wanted = min(n_batches, max(1, -(-rows // max(1, len(batches[0].targets)))))
    return sorted({index * n_batches // wanted for index in range(wanted)})
