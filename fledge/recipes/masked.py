"""Masked language models, alone or with a second task on pairs of segments: next sentence or sentence order.

Each of the two terms is divided by a weight of its own, known from the data: masked tokens, and rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from fledge.batch import Batch, Loss, Term
from fledge.data.keyed_batches import KeyedBatches
from fledge.data.masked_batches import MaskedBatches, PairBatches
from fledge.data.shards import Shard
from fledge.errors import ConfigError
from fledge.model.config import ModelConfig
from fledge.model.transformer import Transformer
from fledge.nn.losses import cross_entropy_sum, fused_cross_entropy_sum
from fledge.parallel.vocabulary import VocabularyTransformer
from fledge.recipes.config import PretrainConfig
from fledge.recipes.language import LanguageRecipe, spaced
from fledge.recipes.reading import Reading, keyed_reading
from fledge.text.tokenizer import Tokenizer

RELATION_HEADS = ("next_sentence", "sentence_order")
PAIRED = ("masked+next", "masked+order")


@dataclass
class MaskedRecipe(LanguageRecipe):
    """`relation`: the head that tells how a row's two segments are related; empty: there is none."""

    relation: str = ""

    def weights(self, batch: Batch) -> dict[str, float]:
        found = {"masked": float(batch.weight.sum())}
        return found | {self.relation: float(len(batch.targets))} if self.relation else found

    def loss(self, batch: Batch) -> Loss:
        hidden = self.model.hidden(batch.tokens, batch.layout)
        weights = self.weights(batch)
        terms = {"masked": Term(masked_nats(self.model, hidden, batch), weights["masked"])}
        if self.relation:
            answers = relation_logits(self.model, self.relation, hidden, batch)
            assert batch.answers is not None
            total = F.cross_entropy(answers.float(), batch.answers, reduction="sum")
            terms[self.relation] = Term(total, weights[self.relation])
        return Loss(terms)

    def measured(self, held_out: Sequence[Batch], rows: int) -> dict[str, float]:
        """`val_loss`: the objective on held-out rows whose masks never change; `val_masked_loss` (nats a masked token)
        and `val_masked_accuracy`; with pairs also the head's `val_NAME_loss` and `val_NAME_accuracy`."""
        names = ("masked", self.relation) if self.relation else ("masked",)
        sums = self.totals(held_out, spaced(held_out, rows), self.sums) or [0.0] * 3 * len(names)
        figures = {"val_loss": 0.0, "val_tokens": sums[2]}
        for place, name in enumerate(names):
            nats, right, n = sums[3 * place : 3 * place + 3]
            figures |= {
                f"val_{name}_loss": nats / n if n else math.nan,
                f"val_{name}_accuracy": right / n if n else math.nan,
            }
            figures["val_loss"] += figures[f"val_{name}_loss"]
        return figures

    def sums(self, batch: Batch) -> list[float]:
        """Of a held-out batch: nats, right answers and all, of masked tokens and of the head's rows."""
        batch = batch.to(self.model.embedding.weight.device)
        hidden = self.model.hidden(batch.tokens, batch.layout)
        there = batch.weight > 0
        asked = [(self.model.logits(hidden[there]), batch.targets[there])]
        if self.relation:
            assert batch.answers is not None
            asked.append((relation_logits(self.model, self.relation, hidden, batch), batch.answers))
        found: list[float] = []
        for logits, targets in asked:
            found.append(float(F.cross_entropy(logits.float(), targets, reduction="sum")))
            found += [float((logits.argmax(-1) == targets).sum()), float(len(targets))]
        return found


def masked_nats(model: Transformer, hidden: Tensor, batch: Batch) -> Tensor:
    """Σ weight · nats of the masked tokens: only these meet the output product. hidden [B, T, D]."""
    there = batch.weight > 0
    hidden, targets, weight = hidden[there], batch.targets[there], batch.weight[there]
    if isinstance(model, VocabularyTransformer):
        return model.nats(hidden, targets, weight)
    if model.config.logit_softcap is not None:
        return cross_entropy_sum(model.logits(hidden), targets, weight)
    matrix = model.output_matrix
    bias = None if model.output_bias is None else model.output_bias[: matrix.shape[0]]
    return fused_cross_entropy_sum(model.before_output(hidden), matrix, targets, weight, bias)


def relation_logits(model: Transformer, name: str, hidden: Tensor, batch: Batch) -> Tensor:
    """What the head says of each row, [B, 2], from states that the masked tokens were told from too."""
    found: Tensor = model.heads[name](hidden, batch.tokens, batch.layout, None)
    return found


def relation_of(config: ModelConfig, objective: str) -> str:
    """The name of the head that an objective of pairs trains; '' for masks alone. Raises ConfigError."""
    if config.decoder is not None or not config.lm:
        raise ConfigError(
            f"objective: {objective} expects an encoder with a masked-LM head, got {config.family}; choose "
            "model.family=bert, roberta, albert … with model.task=lm or pretraining"
        )
    if objective not in PAIRED:
        return ""
    heads = [head.name for head in config.heads if head.name in RELATION_HEADS]
    if not heads:
        raise ConfigError(
            f"objective: {objective} expects a head for two segments, got a {config.family} without one; choose "
            "model.family=bert, albert or big_bird with model.task=pretraining, or objective=masked"
        )
    return heads[0]


def masked_reading(config: PretrainConfig, tokenizer: Tokenizer, model: ModelConfig, row_tokens: int) -> Reading:
    """How objectives `masked`, `masked+next` and `masked+order` read a shard."""
    masking, data = config.masking, config.data

    def batches(shard: Shard, rows: int, seed: int) -> KeyedBatches:
        return MaskedBatches(
            shard, tokenizer, masking, row_tokens, rows, seed, data.layout, data.cross_documents
        )  # fmt: skip

    def pairs(shard: Shard, rows: int, seed: int) -> KeyedBatches:
        kinds, how = model.stack.inputs.kinds > 1, "next" if config.objective == "masked+next" else "order"
        return PairBatches(shard, tokenizer, masking, config.pairs, how, row_tokens, rows, seed, kinds)  # type: ignore[arg-type]

    return keyed_reading(pairs if config.objective in PAIRED else batches)
