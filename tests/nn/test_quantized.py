"""Maps of whole numbers give what numpy's exact arithmetic gives, a row whatever its neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fledge.errors import ConfigError
from fledge.nn import quantized
from fledge.nn.linear import Joined, Linear, pack
from fledge.nn.native import library
from fledge.nn.native.linear import NativeLinear
from fledge.nn.quantized import Int4Linear, Int8Linear, exact_product, in_bytes, int8_rows, nibbles

INPUTS, OUTPUTS = 128, 24


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(low: int, high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed))


def int8_map(seed: int = 0, outputs: int = OUTPUTS, inputs: int = INPUTS) -> Int8Linear:
    weight = whole(-127, 127, outputs, inputs, seed=seed).to(torch.int8)
    return Int8Linear(weight, numbers(outputs, seed=seed).abs() / 100, numbers(outputs, seed=seed + 1))


def int4_map(seed: int = 0, group: int = 32, outputs: int = OUTPUTS) -> Int4Linear:
    shape = (outputs, INPUTS // group)
    packed = in_bytes(whole(0, 15, outputs, INPUTS, seed=seed))
    zero = whole(0, 15, *shape, seed=seed).to(torch.uint8)
    return Int4Linear(packed, numbers(*shape, seed=seed).abs() / 10, zero, numbers(outputs, seed=seed + 1))


def rows_in_numpy(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    scale = np.abs(x.numpy()).max(1, keepdims=True) / np.float32(127)
    safe = np.where(scale == 0, np.float32(1), scale)
    return np.clip(np.rint(x.numpy() / safe), -127, 127).astype(np.int64), scale


def test_an_int8_map_is_numpys_exact_sum_times_both_scales():
    one, x = int8_map(), numbers(7, INPUTS, seed=3)
    x[2] = 0
    codes, scale = rows_in_numpy(x)
    exact = (codes @ one.weight.numpy().astype(np.int64).T).astype(np.float32)
    expected = exact * (scale * one.scale.numpy()) + one.bias.detach().numpy()
    assert np.array_equal(one(x).detach().numpy(), expected)
    assert np.array_equal(one(x)[2].detach().numpy(), one.bias.detach().numpy())  # a row of zeros


@pytest.mark.parametrize("group", [32, 64, 128])
def test_an_int4_map_sums_its_groups_in_rising_order(group):
    one, x = int4_map(group=group), numbers(5, INPUTS, seed=3)
    codes, scale = rows_in_numpy(x)
    q = nibbles(one.packed).numpy().astype(np.int64)
    total = np.zeros((5, OUTPUTS), np.float32)
    for g in range(INPUTS // group):
        part = slice(g * group, (g + 1) * group)
        zero = one.zero.numpy()[:, g].astype(np.int64)
        inner = codes[:, part] @ q[:, part].T - zero * codes[:, part].sum(1, keepdims=True)
        total += inner.astype(np.float32) * one.scale.numpy()[:, g]
    assert np.array_equal(one(x).detach().numpy(), scale * total + one.bias.detach().numpy())


def test_a_map_is_near_the_matrix_that_its_numbers_stand_for():
    x = numbers(9, INPUTS, seed=5)
    for one in (int8_map(), int4_map()):
        expected = x @ one.dequantized().t() + one.bias
        assert (one(x) - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("one", [int8_map(), int4_map()], ids=["int8", "int4"])
def test_a_rows_bits_do_not_depend_on_its_neighbours(one):
    x = numbers(40, INPUTS, seed=4)
    together = one(x)
    assert all(torch.equal(one(x[i : i + 1])[0], together[i]) for i in range(0, 40, 7))
    loud = x.clone()
    loud[1:] *= 1000
    assert torch.equal(one(loud)[0], together[0])
    # the control: plain floating point does depend
    weight = numbers(OUTPUTS, 4096, seed=1)
    many = numbers(64, 4096, seed=2)
    alone = torch.cat([torch.nn.functional.linear(row[None], weight) for row in many])
    assert not torch.equal(alone, torch.nn.functional.linear(many, weight))


def test_halves_are_rounded_to_even():
    codes, scale = int8_rows(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]]))
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2]] and scale.item() == 1.0


def test_both_ways_to_multiply_are_exact_at_the_extremes(monkeypatch):
    x = torch.full((3, 3000), 127, dtype=torch.int8)
    x[1], x[2, ::2] = -127, -127
    weight = torch.full((2, 3000), -128, dtype=torch.int8)
    weight[1, ::3] = 127
    expected = x.long() @ weight.long().t()
    assert expected.abs().max() > 2**24  # a sum in float32 alone would round
    assert torch.equal(exact_product(x, weight).long(), expected)
    monkeypatch.setattr(quantized, "whole_numbers_multiply", lambda device: False)
    assert torch.equal(exact_product(x, weight).long(), expected)
    monkeypatch.setattr(quantized, "EXACT_INPUTS", 1 << 20)  # the control: pieces that are too long
    far = whole(100, 127, 40, 3000).to(torch.int8)
    assert not torch.equal(exact_product(far, far).long(), far.long() @ far.long().t())


@pytest.mark.parametrize("inputs", [1, 2, 3, 65])
def test_few_inputs_are_multiplied_exactly_too(inputs):
    x, weight = whole(-127, 127, 9, inputs).to(torch.int8), whole(-127, 127, 17, inputs, seed=1).to(torch.int8)
    assert torch.equal(exact_product(x, weight).long(), x.long() @ weight.long().t())


@pytest.mark.parametrize("make", [int8_map, int4_map], ids=["int8", "int4"])
def test_joined_maps_give_the_same_bits_packed_and_apart(make, monkeypatch):
    joined = Joined(INPUTS, {"q": OUTPUTS, "k": 8})
    maps = [make(seed=1), make(seed=2, outputs=8)]
    maps[1].bias = None
    joined.q, joined.k = maps
    x = numbers(2, 3, INPUTS, seed=6)
    expected = torch.cat([one(x) for one in maps], -1)
    assert library.build() is not None, "a C++ compiler is needed here"
    native = pack(joined)
    monkeypatch.setenv("FLEDGE_NATIVE", "0")
    packed = pack(joined)
    assert type(packed) is type(maps[0]) and isinstance(native, NativeLinear)
    assert torch.equal(joined(x), expected) and torch.equal(packed(x), expected)
    assert torch.equal(native(x), expected) if make is int8_map else torch.allclose(native(x), expected, atol=1e-5)


def test_joined_maps_that_differ_stay_apart():
    joined = Joined(INPUTS, {"q": OUTPUTS, "k": OUTPUTS})
    joined.q = int8_map()
    joined.k = Linear(INPUTS, OUTPUTS)
    torch.nn.init.normal_(joined.k.weight)
    x = numbers(2, INPUTS)
    assert pack(joined) is joined
    assert torch.equal(joined(x), torch.cat([joined.q(x), joined.k(x)], -1))


def test_parts_that_do_not_fit_are_refused():
    weight, scale = torch.zeros(4, 64, dtype=torch.int8), torch.ones(4)
    for wrong in (lambda: Int8Linear(weight, torch.ones(5)), lambda: Int8Linear(weight.float(), scale)):
        with pytest.raises(ConfigError, match="expected"):
            wrong()
    packed, zero = torch.zeros(4, 48, dtype=torch.uint8), torch.zeros(4, 2, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="group: expected one of"):
        Int4Linear(packed, torch.ones(4, 2), zero)
    with pytest.raises(ConfigError, match="inputs: expected at most"):
        Int8Linear(torch.zeros(1, 140_000, dtype=torch.int8), torch.ones(1))
