"""AWQ's folds change nothing in full precision; what has no exact fold gets none."""

from __future__ import annotations

import pytest
import torch

from fledge.compress import folds
from fledge.compress.quantize import Settings, quantize, uniform
from fledge.compress.units import units_of
from fledge.model.folder import load_model
from fledge.model.quantization import int4
from tests.compress.tiny import ids, logits, tiny
from tests.parity.decoder_cases import CASES

FAMILIES = {
    "llama": ({"kv_heads": 2}, {"qkv", "out", "inward", "down"}),  # fewer values than heads
    "gpt2": ({}, {"qkv", "out", "inward"}),  # LayerNorm and biases; GELU is not linear
    "opt": ({}, {"qkv", "out", "inward", "down"}),  # ReLU
    "gemma2": ({"kv_heads": 2, "head_channels": 16, "window": 8}, {"qkv", "out", "inward", "down"}),  # 1 + weight
    "olmo2": ({}, {"out", "down"}),  # no norm before
    "gpt_neox": ({}, {"qkv", "out", "inward"}),  # parallel, a norm for each
    "gptj": ({}, {"out"}),  # parallel, one norm for both
    "mixtral": ({"experts": 4, "experts_per_token": 2}, {"qkv", "out", "down"}),  # the router reads the norm
}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_fold_leaves_what_the_model_computes(name):
    more, expected = FAMILIES[name]
    model = tiny(name, **more)
    before = logits(model).double()
    folded = {}
    for unit in units_of(model):
        fold = folds.fold_of(unit)
        if fold is None:
            continue
        drawn = torch.rand(unit.inputs, generator=torch.Generator().manual_seed(len(folded))) * 3 + 0.3
        weight = unit.weights[0].clone()
        folds.apply(fold, unit, fold.tie(drawn))
        assert not torch.equal(weight, unit.weights[0])
        folded[unit.name] = unit
    assert {name.rpartition(".")[2] for name in folded} == expected
    assert (logits(model).double() - before).norm() / before.norm() < 2e-5
    # the control: scales of heads that share a value are not free
    unit = next(one for unit_name, one in folded.items() if unit_name.endswith("out"))
    for one in unit.maps.values():
        one.weight.data *= drawn[: unit.inputs].roll(1) if unit.inputs <= len(drawn) else 1.5
    assert (logits(model).double() - before).norm() / before.norm() > 1e-3


def test_values_that_are_cut_off_take_no_scale(tmp_path):
    CASES["olmo-clipped"].model().save_pretrained(tmp_path)
    found = {unit.name.rpartition(".")[2] for unit in units_of(load_model(tmp_path)) if folds.fold_of(unit)}
    assert found == {"down"}


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_methods_that_look_at_text_lose_less_of_the_logits_than_rounding(method):
    lost = {}
    for settings in (Settings("rtn"), Settings(method)):
        model = tiny(noise=0.15)
        before = logits(model, ids(8, 48))
        outcomes = quantize(model, uniform(model, int4(32)), settings, ids(32, 48, seed=3))
        lost[settings.method] = float((logits(model, ids(8, 48)) - before).square().mean())
        if settings.method == "awq":
            assert all(one.folded for one in outcomes)
    assert lost[method] < lost["rtn"]
