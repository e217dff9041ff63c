"""Mixed precision: what each unit's rounding does to the loss alone, and the bits that lose least within a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fledge.batch import OneDocument, one_document
from fledge.compress.calibration import batches
from fledge.compress.quantize import rounded
from fledge.compress.units import Unit, fitting, units_of
from fledge.errors import ConfigError
from fledge.log import Progress
from fledge.model.quantization import INT8, Scheme, int4
from fledge.model.transformer import Transformer

STEPS = 4000  # of a budget that choices are compared in


@dataclass(frozen=True)
class Option:
    """A way to keep a unit: `scheme` (None: as it is), its bits in all, and the nats a token that the loss rises."""

    scheme: Scheme | None
    bits: float
    increase: float


@dataclass(frozen=True)
class Sensitivity:
    """A unit with its options."""

    unit: str
    n_weights: int
    options: tuple[Option, ...]


@torch.no_grad()
def sensitivities(model: Transformer, rows: Tensor, group: int) -> list[Sensitivity]:
    """Of every unit: how much the loss on `rows` int64 [R, T] rises when it alone is rounded to 4 bits, or to 8. The
    model is as before when this is done."""
    units = units_of(model)
    before = mean_loss(model, rows)
    progress = Progress("sensitivity", len(units))
    found = []
    for done, unit in enumerate(units, 1):
        width = unit.weights[0].dtype.itemsize * 8
        options = [Option(None, float(width * unit.n_weights), 0.0)]
        for scheme in dict.fromkeys((fitting(unit, int4(group))[0], INT8)):
            rounded(model, unit, scheme)
            increase = mean_loss(model, rows) - before
            put_back(model, unit)
            options.append(Option(scheme, scheme.bits_per_weight(unit.inputs) * unit.n_weights, increase))
        options.sort(key=lambda option: option.bits)  # of equal rises the fewer bits are chosen
        found.append(Sensitivity(unit.name, unit.n_weights, tuple(options)))
        progress.update(done)
    progress.close()
    return found


def put_back(model: Transformer, unit: Unit) -> None:
    for name, one in unit.maps.items():
        owner, _, last = name.removesuffix(".weight").rpartition(".")
        setattr(model.get_submodule(owner), last, one)


@torch.no_grad()
def mean_loss(model: nn.Module, rows: Tensor) -> float:
    """Nats a token of rows [R, T] under a causal model, the first of each row left out."""
    assert isinstance(model, Transformer)
    total = 0.0
    device = model.embedding.weight.device
    for ids in batches(rows):
        ids = ids.to(device)
        weight = torch.ones(ids[:, 1:].shape, device=device)
        total += float(model.loss_sum(one_document(ids[:, :-1]), OneDocument(), ids[:, 1:], weight))
    return total / rows[:, 1:].numel()


def choose(found: Sequence[Sensitivity], budget_bits: float) -> dict[str, Option]:
    """One option for each unit, the sum of the rises least and the bits a weight on average within `budget_bits`.

    Rises are taken to add up, and a rise below 0 to be none. Solved by dynamic programming over the budget in STEPS
    steps, bits rounded up, so that the budget holds exactly. Raises ConfigError for a budget that nothing fits.
    """
    n_weights = sum(one.n_weights for one in found)
    step = budget_bits * n_weights / STEPS
    costs = np.zeros(STEPS + 1)  # the least rise of the units so far, by the steps that they may take
    taken = []
    for one in found:
        rises = np.full((len(one.options), STEPS + 1), np.inf)
        for row, option in zip(rises, one.options, strict=True):
            n_steps = math.ceil(option.bits / step)
            row[n_steps:] = costs[: max(0, STEPS + 1 - n_steps)] + max(0.0, option.increase)
        costs = rises.min(0)
        taken.append(rises.argmin(0))
    if math.isinf(costs[STEPS]):
        least = sum(min(option.bits for option in one.options) for one in found) / n_weights
        raise ConfigError(
            f"budget_bits: expected at least {least * (1 + len(found) / STEPS):.3f}, got {budget_bits}: with scales "
            "and zero points no map takes fewer"
        )
    chosen: dict[str, Option] = {}
    left = STEPS
    for one, which in zip(reversed(found), reversed(taken), strict=True):
        chosen[one.unit] = one.options[which[left]]
        left -= math.ceil(chosen[one.unit].bits / step)
    return {one.unit: chosen[one.unit] for one in found}
