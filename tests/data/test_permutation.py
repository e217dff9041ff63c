"""The keyed order is a permutation, depends on its key alone and looks like chance."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.data import permutation
from fledge.data.permutation import KeyedPermutation, keyed_numbers


@given(st.integers(1, 5000), st.integers())
def test_every_item_comes_once(size, key):
    assert sorted(KeyedPermutation(size, key).at(np.arange(size)).tolist()) == list(range(size))


def test_one_round_more_for_items_beyond_the_size_is_needed():
    once = [KeyedPermutation(11, key).walk(np.arange(11, dtype=np.uint64)) for key in range(20)]  # 3·4 pairs
    assert any(sorted(items.tolist()) != list(range(11)) for items in once)


def test_places_worked_out_alone_equal_the_table(monkeypatch):
    table = KeyedPermutation(1000, "a", 1).at(np.arange(1000))
    monkeypatch.setattr(permutation, "MOST_TABULATED", 0)
    alone = KeyedPermutation(1000, "a", 1)
    assert alone.table is None
    assert [int(alone.at(np.array([place]))[0]) for place in range(1000)] == table.tolist()


def test_a_large_size_needs_no_table():
    order = KeyedPermutation(10**12, 0)
    items = order.at(np.arange(10**12 - 1000, 10**12))
    assert order.table is None
    assert len(set(items.tolist())) == 1000
    assert (items < 10**12).all()


def test_keys_give_different_orders_and_equal_keys_the_same():
    orders = {tuple(KeyedPermutation(50, seed, epoch).at(np.arange(50))) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100
    assert KeyedPermutation(50, 3, 4).at(np.arange(50)).tolist() == KeyedPermutation(50, np.int64(3), 4).table.tolist()


def test_the_order_is_fixed_for_ever():
    """A change here changes what every resumed run reads next."""
    assert KeyedPermutation(10, 1, 0).table.tolist() == [0, 9, 6, 5, 8, 4, 1, 7, 3, 2]
    expected = [int.from_bytes(hashlib.sha256(name).digest()[:8], "little") for name in (b"a/1#0", b"a/1#1")]
    assert keyed_numbers("a", 1, count=2).tolist() == expected


@pytest.mark.parametrize("size", [7, 40])
def test_an_item_stands_anywhere_equally_often(size):
    keys = 200 * size
    counts = np.bincount([int(KeyedPermutation(size, key).at(np.array([0]))[0]) for key in range(keys)], minlength=size)
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert chi_square < size + 5 * np.sqrt(2 * size)  # mean size - 1, deviation √(2·size)
    shifted = np.bincount([(key * key) % size for key in range(keys)], minlength=size)  # the control: squares
    assert ((shifted - 200) ** 2 / 200).sum() > size + 5 * np.sqrt(2 * size)
