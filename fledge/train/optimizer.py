"""The optimizer and the running mean of the weights that a run's settings ask for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fledge.log import say
from fledge.optim.adamw import AdamW, AdamWConfig
from fledge.optim.average import Average
from fledge.optim.config import GroupConfig
from fledge.optim.muon import Muon
from fledge.optim.optimizer import Optimizer
from fledge.optim.part import ALL, Part
from fledge.train.config import TrainConfig


def new_optimizer(
    model: nn.Module, train: TrainConfig, groups: Sequence[GroupConfig] | None = None, part: Part = ALL
) -> Optimizer:
    """AdamW or Muon over the model's trained parameters, or this process's `part` of them with the `groups` that are in
    it. Raises ConfigError for groups that don't fit the model."""
    groups = train.groups if groups is None else groups
    adamw = AdamWConfig(train.weight_decay, train.beta1, train.beta2, train.epsilon)
    if train.optimizer == "adamw":
        return AdamW(model, adamw, groups, part)
    ratio = train.muon.learning_rate / train.learning_rate if train.muon.learning_rate else 1.0
    made = Muon(model, train.muon, adamw, ratio, groups, part)
    n_moved = sum(matrix.parameter.numel() for matrix in made.matrices)
    say(f"muon moves {len(made.matrices)} matrices ({n_moved:,} parameters), adamw the rest")
    return made


def new_average(model: nn.Module, train: TrainConfig) -> Average | None:
    """The running mean of the weights, if it was asked for."""
    return Average(model, train.ema_decay) if train.ema_decay else None
