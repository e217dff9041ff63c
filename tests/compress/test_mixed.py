"""Bits by sensitivity: the best choice within a budget, and what a unit does to the loss alone."""

from __future__ import annotations

import itertools

import pytest
import torch

from fledge.compress.mixed import STEPS, Option, Sensitivity, choose, mean_loss, sensitivities
from fledge.compress.quantize import quantize
from fledge.errors import ConfigError
from fledge.model.quantization import INT8, int4
from fledge.model.quantized_files import quantized_maps
from tests.compress.tiny import ids, logits, tiny


def drawn(seed: int, n_units: int = 6) -> list[Sensitivity]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for n in range(n_units):
        size = int(torch.randint(1, 9, (1,), generator=generator)) * 1000
        rises = torch.rand(3, generator=generator).sort(descending=True).values.tolist()
        schemes = (int4(32), INT8, None)
        options = tuple(
            Option(scheme, float(bits * size), 0.0 if scheme is None else rise)
            for scheme, bits, rise in zip(schemes, (5, 8, 32), rises, strict=True)
        )
        found.append(Sensitivity(f"unit {n}", size, options))
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [5.5, 7.0, 12.0])
def test_the_choice_is_the_best_of_all_combinations(seed, budget):
    found = drawn(seed)
    n_weights = sum(one.n_weights for one in found)
    chosen = choose(found, budget)
    assert sum(option.bits for option in chosen.values()) <= budget * n_weights
    # each unit's bits are rounded up to a step of the budget: so much less may be left than there is
    tight = budget * (1 - len(found) / STEPS)
    fitting = [
        sum(option.increase for option in combination)
        for combination in itertools.product(*(one.options for one in found))
        if sum(option.bits for option in combination) <= tight * n_weights
    ]
    assert sum(option.increase for option in chosen.values()) <= min(fitting) + 1e-12


def test_a_budget_that_nothing_fits_is_refused_and_a_large_one_keeps_everything():
    with pytest.raises(ConfigError, match=r"budget_bits: expected at least 5\.\d+, got 4"):
        choose(drawn(0), 4.0)
    assert {option.scheme for option in choose(drawn(0), 33.0).values()} == {None}


def test_a_units_sensitivity_is_the_loss_when_it_alone_is_rounded_and_the_model_is_left_as_it_was():
    model = tiny(noise=0.2)
    rows = ids(6, 40)
    before, expected = logits(model), mean_loss(model, rows)
    found = sensitivities(model, rows, 32)
    assert torch.equal(logits(model), before) and not quantized_maps(model)
    assert len(found) == 8
    one = found[3]
    quantize(model, {one.unit: int4(32)})
    assert len(quantized_maps(model)) == 1
    (option,) = (option for option in one.options if option.scheme == int4(32))
    assert mean_loss(model, rows) - expected == pytest.approx(option.increase, abs=1e-6)
    rises = {
        bits: sum(abs(o.increase) for s in found for o in s.options if o.scheme == bits) for bits in (INT8, int4(32))
    }
    assert rises[INT8] < 0.3 * rises[int4(32)]
