"""GRPO, RLOO and PPO as what the one recipe asks of a method: what it makes of a rollout, and its loss of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fledge.align.advantage import gae, group_advantages, rloo_advantages, whitened
from fledge.align.policy import clipped_loss, is_clipped, k3, token_weights, whole_weight
from fledge.align.ppo import next_kl, shaped_rewards, value_loss
from fledge.align.rl_config import GrpoConfig, PpoConfig
from fledge.batch import Batch
from fledge.recipes.rollout_file import Rollout


@dataclass(frozen=True)
class Learned:
    """Of a micro-batch's n answer tokens, each [n]: log p and entropy of the policy of now at the sampling's
    temperature, values if there is a head, and what each token counts."""

    log_p: Tensor
    entropy: Tensor
    values: Tensor | None
    weight: Tensor
    columns: dict[str, Tensor]


class Method(Protocol):
    """How rewards become a loss."""

    def columns(self, rollout: Rollout, n_samples: int) -> dict[str, Tensor]:
        """What the loss reads of each token besides `old` and `reference`: [N, L], 0 behind an answer's end."""

    def token_weights(self, lengths: list[int]) -> list[float]:
        """What each token of answers of these lengths counts."""

    def weights(self, batch: Batch) -> dict[str, float]:
        """What each term is divided by."""

    def terms(self, learned: Learned) -> dict[str, Tensor]:
        """Each term's sum."""

    def coefficients(self) -> dict[str, float]:
        """The terms and what they count."""

    def clipped(self, learned: Learned) -> Tensor:
        """bool [n]: tokens whose objective is clipped."""

    @property
    def follows(self) -> bool:
        """Whether a rollout's weight of the distance goes by the rollout before."""

    def next_kl(self, before: Rollout | None) -> float:
        """The weight of the distance in the rewards of the rollout after `before`."""


@dataclass(frozen=True)
class Grpo:
    """GRPO, or RLOO. `max_tokens`: of an answer, for normalise=constant."""

    config: GrpoConfig
    max_tokens: int

    def columns(self, rollout: Rollout, n_samples: int) -> dict[str, Tensor]:
        rewards = torch.tensor([answer.reward for answer in rollout.answers], dtype=torch.float64)
        away = [sum(o - r for o, r in zip(a.old, a.reference, strict=True)) for a in rollout.answers]
        rewards = rewards - rollout.kl * torch.tensor(away, dtype=torch.float64)
        if self.config.advantage == "rloo":
            advantages = rloo_advantages(rewards, n_samples)
        else:
            advantages = group_advantages(rewards, n_samples, self.config.by_deviation)
        longest = max(len(answer.token_ids) for answer in rollout.answers)
        return {"advantage": advantages[:, None].expand(-1, longest)}

    def token_weights(self, lengths: list[int]) -> list[float]:
        return token_weights(lengths, self.config.normalise)

    def weights(self, batch: Batch) -> dict[str, float]:
        whole = whole_weight(batch.weight, self.config.normalise, self.max_tokens)
        return dict.fromkeys(self.coefficients(), whole)

    def coefficients(self) -> dict[str, float]:
        more = {"kl": self.config.kl, "entropy": -self.config.entropy}
        return {"policy": 1.0, **{name: value for name, value in more.items() if value}}

    def terms(self, learned: Learned) -> dict[str, Tensor]:
        columns, config = learned.columns, self.config
        each = {
            "policy": clipped_loss(learned.log_p, columns["old"], columns["advantage"], config.clip, config.high),
            "kl": k3(learned.log_p, columns["reference"]),
            "entropy": learned.entropy,
        }
        return {name: (learned.weight * each[name]).sum() for name in self.coefficients()}

    def clipped(self, learned: Learned) -> Tensor:
        columns, config = learned.columns, self.config
        return is_clipped(learned.log_p, columns["old"], columns["advantage"], config.clip, config.high)

    @property
    def follows(self) -> bool:
        return False

    def next_kl(self, before: Rollout | None) -> float:
        return self.config.kl_in_reward


@dataclass(frozen=True)
class Ppo:
    """PPO with a value head."""

    config: PpoConfig

    def columns(self, rollout: Rollout, n_samples: int) -> dict[str, Tensor]:
        answers, config = rollout.answers, self.config
        lengths = torch.tensor([len(answer.token_ids) for answer in answers])
        old, reference, values = (
            torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(getattr(answer, name), dtype=torch.float64) for answer in answers], batch_first=True
            )
            for name in ("old", "reference", "values")
        )
        rewards = torch.tensor([answer.reward for answer in answers], dtype=torch.float64)
        shaped = shaped_rewards(rewards, old, reference, lengths, rollout.kl)
        advantages = gae(shaped, values, lengths, config.gamma, config.gae_lambda)
        there = torch.arange(old.shape[1]) < lengths[:, None]
        returns = torch.where(there, advantages + values, 0.0)
        chosen = whitened(advantages, there) if config.whiten else advantages
        return {"advantage": chosen, "value": values, "return": returns}

    def token_weights(self, lengths: list[int]) -> list[float]:
        return token_weights(lengths, "token")

    def weights(self, batch: Batch) -> dict[str, float]:
        return dict.fromkeys(self.coefficients(), whole_weight(batch.weight, "token", 0))

    def coefficients(self) -> dict[str, float]:
        more = {"entropy": -self.config.entropy} if self.config.entropy else {}
        return {"policy": 1.0, "value": self.config.value, **more}

    def terms(self, learned: Learned) -> dict[str, Tensor]:
        columns, config = learned.columns, self.config
        assert learned.values is not None
        each = {
            "policy": clipped_loss(learned.log_p, columns["old"], columns["advantage"], config.clip, config.clip),
            "value": value_loss(learned.values, columns["value"], columns["return"], config.value_clip),
            "entropy": learned.entropy,
        }
        return {name: (learned.weight * each[name]).sum() for name in self.coefficients()}

    def clipped(self, learned: Learned) -> Tensor:
        columns, clip = learned.columns, self.config.clip
        return is_clipped(learned.log_p, columns["old"], columns["advantage"], clip, clip)

    @property
    def follows(self) -> bool:
        return self.config.kl_target > 0

    def next_kl(self, before: Rollout | None) -> float:
        if before is None:
            return self.config.kl
        return next_kl(before.kl, before.figures["kl_answer"], len(before.answers), self.config)
