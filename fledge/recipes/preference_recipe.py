"""Learning from preferences: rows of answers in, sums of a preference's loss out. B rows, S answers of a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fledge.align import losses_preference as losses
from fledge.align.answers import answer_log_probabilities, answer_tokens
from fledge.batch import Batch, Loss, Term, slice_rows
from fledge.data.preference_batches import PreferenceBatches
from fledge.recipes.language import LanguageRecipe, spaced
from fledge.recipes.preference_config import PreferenceConfig
from fledge.recipes.reference import computing

CHOSEN, REJECTED = 0, 1


@dataclass
class PreferenceRecipe(LanguageRecipe):
    """Pairs. `reference` float32 [N, 2]: the reference's log-probabilities of item n's answers, None without one;
    `margins` float32 [N]."""

    settings: PreferenceConfig = field(default_factory=PreferenceConfig)
    reference: Tensor | None = None
    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Of a pair its margin; of a judged answer 1 if it is good."""

    def weights(self, batch: Batch) -> dict[str, float]:
        found = {"preference": float(len(batch.targets))}
        return found | ({"nats": chosen_tokens(batch)} if self.settings.weight_of_nats else {})

    def loss(self, batch: Batch) -> Loss:
        totals, weight, nats, metrics = self.judged(batch)
        strength = self.settings.strength if self.settings.loss == "orpo" else 1.0
        terms = {"preference": Term(totals, weight, strength)}
        if self.settings.weight_of_nats:
            terms["nats"] = Term(nats, chosen_tokens(batch), self.settings.weight_of_nats)
        return Loss(terms, metrics)

    def judged(self, batch: Batch) -> tuple[Tensor, float, Tensor, dict[str, tuple[float, float]]]:
        """Of a batch: its summed loss, its number of pairs, the nats of the chosen answers, and figures for the log."""
        c, n = self.settings, float(len(batch.targets))
        log_p_BS = answer_log_probabilities(self.model, batch, 2)
        scores_BS = self.scores(log_p_BS, batch)
        chosen, rejected = scores_BS[:, CHOSEN], scores_BS[:, REJECTED]
        found = pair_losses(c, chosen, rejected, self.of(self.values, batch))
        rewards = c.strength * scores_BS.detach()
        apart = rewards[:, CHOSEN] - rewards[:, REJECTED]
        figures = {
            "reward_chosen": rewards[:, CHOSEN], "reward_rejected": rewards[:, REJECTED], "reward_margin": apart,
            "reward_accuracy": (apart > 0).float(), "log_p_chosen": log_p_BS[:, CHOSEN].detach(),
            "log_p_rejected": log_p_BS[:, REJECTED].detach(),
        }  # fmt: skip
        metrics = {name: (float(value.sum()), n) for name, value in figures.items()}
        return found.sum(), n, -log_p_BS[:, CHOSEN].sum(), metrics

    def scores(self, log_p_BS: Tensor, batch: Batch, first: int = 0) -> Tensor:
        """Log-probabilities less the reference's, as means over tokens if so set: [B, S], the reference's answers from
        `first`."""
        n_answers = log_p_BS.shape[1]
        if self.reference is not None:
            log_p_BS = log_p_BS - self.of(self.reference, batch)[:, first : first + n_answers]
        return log_p_BS / answer_tokens(batch, n_answers).clamp(min=1) if self.settings.means else log_p_BS

    def of(self, table: Tensor, batch: Batch) -> Tensor:
        """The rows of a table [N, …] that a batch's items have."""
        assert batch.items is not None
        return table[batch.items.to(table.device)].to(batch.targets.device)

    def measured(self, held_out: Sequence[Batch], rows: int) -> dict[str, float]:
        """`val_loss`, the objective on held-out pairs; their number as `val_pairs`, and the log's figures of them."""
        names = self.names
        sums = self.totals(held_out, spaced(held_out, rows), self.sums) or [0.0] * (4 + 2 * len(names))
        total, n, nats, tokens = sums[:4]
        strength = self.settings.strength if self.settings.loss == "orpo" else 1.0
        loss = strength * total / n if n else math.nan
        if self.settings.weight_of_nats and tokens:
            loss += self.settings.weight_of_nats * nats / tokens
        pairs = zip(names, sums[4::2], sums[5::2], strict=True)
        return {"val_loss": loss, self.counted: n} | {f"val_{k}": a / b if b else math.nan for k, a, b in pairs}

    names = ("reward_chosen", "reward_rejected", "reward_margin", "reward_accuracy", "log_p_chosen", "log_p_rejected")
    counted = "val_pairs"

    def sums(self, batch: Batch) -> list[float]:
        """Of a held-out batch: loss, pairs, nats and tokens of the chosen answers, and each figure's sum and number."""
        batch = batch.to(self.model.embedding.weight.device)
        total, n, nats, metrics = self.judged(batch)
        return [float(total), n, float(nats), chosen_tokens(batch), *(x for name in self.names for x in metrics[name])]


def chosen_tokens(batch: Batch) -> float:
    return float(answer_tokens(batch, 1).sum())


def pair_losses(settings: PreferenceConfig, chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor) -> Tensor:
    """The loss of each pair, by name."""
    beta = settings.strength
    if settings.loss == "dpo":
        return losses.dpo(chosen_P, rejected_P, beta, settings.label_smoothing, margin_P)
    if settings.loss == "hinge":
        return losses.hinge(chosen_P, rejected_P, beta)
    if settings.loss == "ipo":
        return losses.ipo(chosen_P, rejected_P, beta)
    if settings.loss == "simpo":
        return losses.simpo(chosen_P, rejected_P, beta, settings.gamma + margin_P)
    assert settings.loss == "orpo", f"{settings.loss} is no loss of pairs"
    return losses.orpo(chosen_P, rejected_P)


@dataclass
class JudgedRecipe(PreferenceRecipe):
    """Answers that are good or bad by themselves (KTO). A row holds its own answer alone; the one of another prompt,
    which tells how far the model has moved, is read without gradient."""

    precision: str = "float32"
    divergence: Tensor | float = 0.0
    """KTO's z of the batch that is trained on."""
    checks: PreferenceBatches | None = None
    """Where held-out rows come from."""
    readers: int = 1
    """Processes that read rows of their own: each takes a part of a batch's divergence."""

    names = ("reward_good", "reward_bad", "reward_accuracy", "divergence", "log_p_good", "log_p_bad")
    counted = "val_answers"

    def weights(self, batch: Batch) -> dict[str, float]:
        """The number of answers. The divergence is taken here too: of the whole batch, which its micro-batches and the
        processes that read it then share, so that they add up to what the batch gives at once."""
        device = self.model.embedding.weight.device
        was_training = self.model.training
        self.model.eval()
        n_rows = len(batch.targets)
        each = -(-n_rows // self.readers)
        parts = [slice_rows(batch, at, min(at + each, n_rows)) for at in range(0, n_rows, each)]
        with torch.no_grad(), computing(self.precision, device):
            total, n = self.totals(parts, list(range(len(parts))), self.moved)
        self.model.train(was_training)
        self.divergence = losses.kto_divergence(torch.tensor([total / n], device=device))
        return {"preference": float(n_rows)}

    def moved(self, batch: Batch) -> list[float]:
        """Of a part of a batch: the sum of what answers to other prompts score, and their number."""
        found = self.mismatched(batch.to(self.model.embedding.weight.device), self.source)
        return [float(found.double().sum()), float(len(found))]

    def divergence_of(self, batch: Batch, source: object) -> Tensor:
        return losses.kto_divergence(self.mismatched(batch, source))

    def mismatched(self, batch: Batch, source: object) -> Tensor:
        """Scores [B] of the answers to other prompts."""
        assert batch.items is not None and isinstance(source, PreferenceBatches)
        other = source.of((batch.items - source.first).tolist(), slice(1, 2)).to(batch.targets.device)
        log_p_B1 = answer_log_probabilities(self.model, other, 1)
        return self.scores(log_p_B1, other, first=1)[:, 0]

    def judged(self, batch: Batch) -> tuple[Tensor, float, Tensor, dict[str, tuple[float, float]]]:
        c, n = self.settings, float(len(batch.targets))
        log_p = answer_log_probabilities(self.model, batch, 1)
        score = self.scores(log_p, batch)[:, 0]
        good = self.of(self.values, batch) > 0
        found = losses.kto(score, good, self.divergence, c.strength, c.good_weight, c.bad_weight)
        reward, log_p = c.strength * score.detach(), log_p.detach()[:, 0]
        right = (reward > c.strength * self.divergence) == good
        n_good, n_bad = float(good.sum()), float((~good).sum())
        metrics = {
            "reward_good": (float(reward[good].sum()), n_good), "reward_bad": (float(reward[~good].sum()), n_bad),
            "reward_accuracy": (float(right.sum()), n), "divergence": (float(self.divergence) * n, n),
            "log_p_good": (float(log_p[good].sum()), n_good), "log_p_bad": (float(log_p[~good].sum()), n_bad),
        }  # fmt: skip
        return found.sum(), n, found.new_zeros(()), metrics

    def sums(self, batch: Batch) -> list[float]:
        """As for pairs; each held-out batch has a divergence of its own."""
        batch = batch.to(self.model.embedding.weight.device)
        before = self.divergence
        self.divergence = self.divergence_of(batch, self.checks)
        found = super().sums(batch)
        self.divergence = before
        return found
