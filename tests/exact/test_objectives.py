"""Micro-batches of any size give the gradient of the whole batch, for every objective and each of its terms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fledge.batch import Batch, slice_rows
from fledge.data import denoise_batches
from fledge.device import pick
from fledge.log import RunLog
from fledge.train.checkpointing import State
from fledge.train.config import TrainConfig
from fledge.train.loop import Loop, Run
from fledge.train.signals import StopRequest
from tests.data.corrupted import stories
from tests.recipes.objectives import FAMILIES, config_of, recipe_of

CASES = [*FAMILIES.items(), ("prefix", "llama"), ("masked", "roberta"), ("masked+next", "big_bird")]


def gradient(recipe, batch: Batch, micro_rows: int, weights=None) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Of the loop's own accumulation."""
    recipe.model.zero_grad()
    config = TrainConfig(rows=8, micro_rows=micro_rows)
    run = Run(Path("."), config, config, pick("cpu"), recipe, RunLog(Path("unused"), rank=1))
    loop = Loop(run, State(), StopRequest())
    terms = loop.accumulate(batch, weights or recipe.weights(batch))
    return {name: p.grad.clone() for name, p in recipe.model.named_parameters() if p.grad is not None}, terms


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    largest = max(float(g.abs().max()) for g in a.values())
    return max(float((a[name] - b[name]).abs().max()) for name in a) / largest


@pytest.mark.parametrize(("objective", "family"), CASES, ids=lambda value: value)
def test_micro_batches_of_1_and_2_rows_give_the_gradient_of_8(objective, family):
    torch.manual_seed(0)
    recipe = recipe_of(config_of(objective, family))
    recipe.model.double().train()
    batch = recipe.batch(3)
    whole, terms = gradient(recipe, batch, 8)
    assert len(terms) == (2 if "+" in objective else 1)
    for micro_rows in (1, 2):
        parts, same = gradient(recipe, batch, micro_rows)
        assert distance(whole, parts) < 1e-5  # a loss is summed in float32
        assert same == pytest.approx(terms, rel=1e-5)


@pytest.mark.parametrize("objective", ["masked", "masked+next", "denoise"])
def test_the_mean_of_means_is_another_gradient(objective):
    """The control: each micro-batch divided by its own weights."""
    recipe = recipe_of(config_of(objective), stories(40, 3) if objective == "denoise" else None)  # rows of any length
    recipe.model.double().train()
    batch = recipe.batch(3)
    whole, _ = gradient(recipe, batch, 8)
    total: dict[str, torch.Tensor] = {}
    for row in range(8):
        part = slice_rows(batch, row, row + 1)
        recipe.model.zero_grad()
        weights = recipe.weights(part)
        sum(term.total / weights[name] / 8 for name, term in recipe.loss(part).terms.items()).backward()
        for name, p in recipe.model.named_parameters():
            if p.grad is not None:
                total[name] = total.get(name, 0) + p.grad
    assert distance(whole, total) > 1e-3


def test_one_weight_for_both_terms_is_another_gradient():
    """The control of two terms: rows counted as tokens."""
    recipe = recipe_of(config_of("masked+next"))
    recipe.model.double().train()
    batch = recipe.batch(3)
    right = recipe.weights(batch)
    assert right["masked"] == float(batch.weight.sum()) and right["next_sentence"] == 8.0
    whole, _ = gradient(recipe, batch, 2)
    shared, _ = gradient(recipe, batch, 2, dict.fromkeys(right, sum(right.values())))
    assert distance(whole, shared) > 1e-2


PACKED = [("masked", "bert"), ("masked", "roberta"), ("spans", "t5"), ("denoise", "bart"), ("prefix", "t5")]


def epoch_loss(objective: str, family: str, layout: str) -> tuple[float, float]:
    """Nats and targets of every row once, with rows `packed` or `padded`."""
    config = config_of(objective, family, data={"layout": layout}, model={"context_tokens": 160})
    recipe = recipe_of(config, stories(12, 6))
    recipe.model.eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in recipe.model.parameters():
            parameter.normal_()  # initial weights hardly attend to anything
        sums = [(sum(float(term.total) for term in recipe.loss(b).terms.values()), float(b.weight.sum()))
                for b in recipe.held_out]  # fmt: skip
    shapes = {type(batch.layout).__name__ for batch in recipe.held_out}
    assert ("Packed" in shapes) == (layout == "packed")
    nats, targets = (sum(column) for column in zip(*sums, strict=True))
    return nats, targets


@pytest.mark.parametrize(("objective", "family"), PACKED)
def test_an_epoch_of_packed_rows_has_the_loss_of_padded_ones(objective, family):
    """Corruption is keyed by the segment, not by its row, and a segment sees itself and its own source alone."""
    (packed, n), (padded, m) = (epoch_loss(objective, family, layout) for layout in ("packed", "padded"))
    assert n == m and packed == pytest.approx(padded, rel=1e-5)


def test_targets_beside_another_source_have_another_loss(monkeypatch):
    """The control of packed sources: the documents of each source row in reversed order."""
    packed, _ = epoch_loss("spans", "t5", "packed")
    real = denoise_batches.laid

    def reversed_sources(rows, *rest):
        return real([row[::-1] if row[0].ids is row[0].targets else row for row in rows], *rest)

    monkeypatch.setattr(denoise_batches, "laid", reversed_sources)
    assert abs(epoch_loss("spans", "t5", "packed")[0] / packed - 1) > 1e-4
