"""Losses of preferences: their formulas by hand in 64 bits, and trl's own on the same numbers."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fledge.align import losses_preference as losses
from tests.align.theirs import BETAS, CENTRING, DIVERGED, FILE, GAMMA, PAIRS, REWARDS, SMOOTHING

THEIRS = json.loads(FILE.read_text())
WEIGHTS = {"good_weight": 1.25, "bad_weight": 0.75}


def sums(side: str) -> list[float]:
    return [sum(pair[side]) for pair in PAIRS]


def means(side: str) -> list[float]:
    return [sum(pair[side]) / len(pair[side]) for pair in PAIRS]


def ratios(side: str, of_means: bool = False) -> list[float]:
    place = ("chosen", "rejected").index(side)
    found = [sum(pair[side]) - pair["reference"][place] for pair in PAIRS]
    return [x / len(pair[side]) for x, pair in zip(found, PAIRS, strict=True)] if of_means else found


def pair(of, **kind) -> list[torch.Tensor]:
    return [torch.tensor(of(side, **kind), dtype=torch.float64) for side in ("chosen", "rejected")]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(name: str, beta: float) -> list[float]:
    """Written from the papers' formulas, pair by pair."""
    of = {"dpo": ratios, "hinge": ratios, "dpo smoothed": sums, "orpo": means, "simpo": means}.get(name)
    sides = (ratios("chosen", True), ratios("rejected", True)) if of is None else (of("chosen"), of("rejected"))
    found = []
    for chosen, rejected in zip(*sides, strict=True):
        z = beta * (chosen - rejected)
        found.append({
            "dpo": lambda z=z: -math.log(sigmoid(z)),
            "dpo of means": lambda z=z: -math.log(sigmoid(z)),
            "dpo smoothed": lambda z=z: -(1 - SMOOTHING) * math.log(sigmoid(z)) - SMOOTHING * math.log(sigmoid(-z)),
            "hinge": lambda z=z: max(0.0, 1 - z),
            "ipo": lambda c=chosen, r=rejected: (c - r - 1 / (2 * beta)) ** 2,
            "simpo": lambda z=z: -math.log(sigmoid(z - GAMMA)),
            "orpo": lambda c=chosen, r=rejected: -math.log(sigmoid(
                math.log(math.exp(c) / (1 - math.exp(c))) - math.log(math.exp(r) / (1 - math.exp(r)))
            )),
        }[name]())  # fmt: skip
    return found


def ours(name: str, beta: float) -> torch.Tensor:
    return {
        "dpo": lambda: losses.dpo(*pair(ratios), beta),
        "dpo of means": lambda: losses.dpo(*pair(ratios, of_means=True), beta),
        "dpo smoothed": lambda: losses.dpo(*pair(sums), beta, SMOOTHING),
        "hinge": lambda: losses.hinge(*pair(ratios), beta),
        "ipo": lambda: losses.ipo(*pair(ratios, of_means=True), beta),
        "simpo": lambda: losses.simpo(*pair(means), beta, GAMMA),
        "orpo": lambda: losses.orpo(*pair(means)),
    }[name]()


NAMES = ("dpo", "dpo of means", "dpo smoothed", "hinge", "ipo", "simpo", "orpo")


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_its_formula_and_trls(name, beta):
    found = ours(name, beta)
    assert found.tolist() == pytest.approx(by_hand(name, beta), abs=1e-6)
    theirs = torch.tensor(THEIRS[str(beta)][name])
    weight = beta if name == "orpo" else 1.0  # theirs has the weight inside
    assert (weight * found).tolist() == pytest.approx(theirs.tolist(), rel=2e-6, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_worse_order_costs_more(name):
    """The control: with the answers changed round no loss stays what it was, but where they are equally good."""
    swapped = {"chosen": [-0.5, -1.0], "rejected": [-1.5, -2.0]}
    good, bad = (torch.tensor(values, dtype=torch.float64) for values in swapped.values())
    of = {"hinge": losses.hinge, "ipo": losses.ipo, "simpo": lambda c, r, b: losses.simpo(c, r, b, GAMMA),
          "orpo": lambda c, r, _: losses.orpo(c, r)}.get(name, losses.dpo)  # fmt: skip
    assert (of(bad, good, 0.5) > of(good, bad, 0.5) + 0.1).all()


@pytest.mark.parametrize("beta", BETAS)
def test_kto_is_its_formula_and_trls(beta):
    scores = [x for both in zip(ratios("chosen"), ratios("rejected"), strict=True) for x in both]
    good = [True, False] * len(PAIRS)
    z = max(0.0, sum(DIVERGED) / len(DIVERGED))
    assert float(losses.kto_divergence(torch.tensor(DIVERGED, dtype=torch.float64))) == pytest.approx(z, abs=1e-9)
    assert float(losses.kto_divergence(-torch.tensor(DIVERGED).abs())) == 0
    wanted = [
        1.25 * (1 - sigmoid(beta * (s - z))) if is_good else 0.75 * (1 - sigmoid(beta * (z - s)))
        for s, is_good in zip(scores, good, strict=True)
    ]
    found = losses.kto(torch.tensor(scores, dtype=torch.float64), torch.tensor(good), z, beta, **WEIGHTS)
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)
    assert float(found.mean()) == pytest.approx(THEIRS[str(beta)]["kto"], abs=1e-6)
    other = losses.kto(torch.tensor(scores, dtype=torch.float64), torch.tensor(good), 0.0, beta, **WEIGHTS)
    assert float(other.mean()) != pytest.approx(THEIRS[str(beta)]["kto"], abs=1e-3)  # the control


def test_the_divergence_has_no_gradient():
    mismatched = torch.tensor([0.5, 1.0], requires_grad=True)
    assert not losses.kto_divergence(mismatched).requires_grad


def test_rewards_margins_and_centring_are_their_formulas_and_trls():
    chosen, rejected, margin = (torch.tensor(column, dtype=torch.float64) for column in zip(*REWARDS, strict=True))
    found = losses.bradley_terry(chosen, rejected, margin)
    wanted = [-math.log(sigmoid(c - r - m)) for c, r, m in REWARDS]
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)
    assert found.tolist() == pytest.approx(THEIRS["bradley_terry"], rel=1e-6, abs=1e-6)
    centred = found + CENTRING * losses.centring(chosen, rejected)
    assert centred.tolist() == pytest.approx(THEIRS["centred"], rel=1e-6, abs=1e-6)
    assert losses.bradley_terry(chosen, rejected).tolist() != pytest.approx(wanted, abs=1e-3)  # the control


def test_a_margin_asks_for_more_of_dpo_and_simpo():
    chosen, rejected, margin = torch.tensor([-1.0]), torch.tensor([-2.0]), torch.tensor([0.7])
    assert float(losses.dpo(chosen, rejected, 0.5, 0.0, margin)) == pytest.approx(-math.log(sigmoid(0.5 - 0.7)))
    assert float(losses.simpo(chosen, rejected, 2.0, 0.5 + margin)) == pytest.approx(-math.log(sigmoid(2 - 1.2)))


def test_odds_of_a_certain_answer_are_finite_and_have_a_gradient():
    log_p = torch.tensor([0.0, -1e-9, -200.0], requires_grad=True)
    odds = losses.log_odds(log_p)
    assert torch.isfinite(odds).all() and float(odds[2].detach()) == pytest.approx(-200.0)
    odds.sum().backward()
    assert torch.isfinite(log_p.grad).all()
