"""What answers are worth: verifiable rewards and reward models, summed; and the judge beside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from fledge.align.rewards import REWARDS
from fledge.align.rl_config import RewardConfig
from fledge.align.sandbox import check_sandbox
from fledge.batch import padded
from fledge.errors import ConfigError, NonFiniteError
from fledge.model.folder import find_model, load_model
from fledge.model.transformer import Transformer
from fledge.recipes.prompts import Prompt
from fledge.text.tokenizer import Tokenizer


class Scorer:
    """The rewards of a config, ready to be asked. Raises ConfigError for what can't be had here."""

    def __init__(self, rewards: Sequence[RewardConfig], judge: Sequence[RewardConfig], tokenizer: Tokenizer):
        if not rewards:
            raise ConfigError("rewards: expected at least one, got none; set rewards=[{kind: number}], say")
        self.rewards, self.judge = named(rewards), named(judge)
        every = (*self.rewards.values(), *self.judge.values())
        if any(config.kind == "code" for config in every):
            check_sandbox()
        self.models = {c.path: RewardModel(c.path, tokenizer) for c in every if c.kind == "model"}

    def reward(self, prompt: Prompt, ids: Sequence[int], text: str) -> tuple[dict[str, float], float]:
        """The parts by name, and their weighted sum."""
        parts = {name: self.part(config, prompt, ids, text) for name, config in self.rewards.items()}
        return parts, sum(self.rewards[name].weight * value for name, value in parts.items())

    def judged(self, prompt: Prompt, ids: Sequence[int], text: str) -> float | None:
        """What the judge says; None without one."""
        if not self.judge:
            return None
        return sum(config.weight * self.part(config, prompt, ids, text) for config in self.judge.values())

    def part(self, config: RewardConfig, prompt: Prompt, ids: Sequence[int], text: str) -> float:
        if config.kind == "model":
            value = self.models[config.path].score(prompt.ids, ids)
        else:
            value = REWARDS[config.kind](text, ids, prompt.row, config)
        if not math.isfinite(value):
            raise NonFiniteError(f"{prompt.at}: expected a finite reward of kind {config.kind}, got {value}")
        return value


def named(configs: Sequence[RewardConfig]) -> dict[str, RewardConfig]:
    """Each by its kind; a kind's second one and so on with a number."""
    found: dict[str, RewardConfig] = {}
    for config in configs:
        n = sum(other.kind == config.kind for other in found.values())
        found[f"{config.kind}_{n + 1}" if n else config.kind] = config
    return found


class RewardModel:
    """A model folder with one number for a whole text: a sequence head of one label. Raises ConfigError for another."""

    def __init__(self, path: str, tokenizer: Tokenizer):
        folder = find_model(path)
        self.model: Transformer = load_model(folder).requires_grad_(False)
        heads = [head for head in self.model.config.heads if head.labels == 1 and head.take != "each"]
        if len(heads) != 1:
            raise ConfigError(
                f"rewards.path: expected a reward model in {path}, a head of one label on the whole text, got "
                f"{', '.join(f'{h.name} of {h.labels}' for h in self.model.config.heads) or 'none'}"
            )
        if Tokenizer.load(Path(folder)).digest != tokenizer.digest:
            raise ConfigError(f"rewards.path: expected a reward model of the policy's tokenizer, got another in {path}")
        self.head = heads[0].name

    @torch.no_grad()
    def score(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> float:
        """The head's number for prompt and answer as one text."""
        tokens, layout = padded([[*prompt_ids, *ids]])
        return float(self.model.head(self.head, tokens, layout)[0, 0])
