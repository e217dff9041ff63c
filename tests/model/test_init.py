"""Named initialisations keep the variance they promise; tests are statistical with 5 sigma margins."""

from __future__ import annotations

import math

import pytest
import torch

from fledge.model.config import InitConfig, ShapeConfig
from fledge.model.families import family
from fledge.model.init import initialise
from fledge.model.transformer import build

SHAPE = {"width": 128, "layers": 4, "heads": 4, "context_tokens": 64, "vocab_size": 300, "hidden": 512}


def started(init: InitConfig, seed: int = 1):
    config = family("gpt2").build(ShapeConfig("gpt2", **SHAPE, init=init))
    return initialise(build(config, "cpu"), seed)


def deviation(tensor: torch.Tensor) -> float:
    return float(tensor.detach().double().std())


@pytest.mark.parametrize(
    ("name", "up", "down"),
    [
        ("normal", 0.02, 0.02),
        ("gpt2_scaled", 0.02, 0.02 / math.sqrt(8)),
        ("xavier", math.sqrt(2 / (128 + 512)), math.sqrt(2 / (128 + 512))),
        ("he", math.sqrt(2 / 128), math.sqrt(2 / 512)),
    ],
)
def test_an_initialisation_has_the_variance_it_promises(name, up, down):
    block = started(InitConfig(name)).decoder.layers[0].ffn
    n = 128 * 512
    assert deviation(block.inward.up.weight) == pytest.approx(up, rel=5 / math.sqrt(2 * n))
    assert deviation(block.down.weight) == pytest.approx(down, rel=5 / math.sqrt(2 * n))


def test_constant_weights_are_constant_and_norms_are_one():
    model = started(InitConfig("constant", 0.01))
    assert model.decoder.layers[1].attention.out.weight.detach().flatten().tolist() == pytest.approx([0.01] * 128 * 128)
    assert bool((model.decoder.norm.weight == 1).all()) and bool((model.decoder.norm.bias == 0).all())


def test_the_seed_decides_the_weights():
    first, same, other = started(InitConfig(), 1), started(InitConfig(), 1), started(InitConfig(), 2)
    assert torch.equal(first.embedding.weight, same.embedding.weight)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    assert not torch.equal(first.decoder.layers[0].ffn.down.weight, first.decoder.layers[1].ffn.down.weight)
