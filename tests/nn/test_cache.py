"""Blocks of keys and values: what is written through a table is read through it, exactly or within int8's step."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from fledge.batch import Cached
from fledge.nn.cache import BLOCK_TOKENS, KeyValueCache

HEADS, CHANNELS = 3, 8


def cache_of(int8: bool = False) -> KeyValueCache:
    return KeyValueCache(((HEADS, CHANNELS), None), 12, 64, int8=int8)


def straight(table: tuple[int, ...]) -> int:
    return Cached((table,), (0,), (1,), (0,)).straight[0]


@pytest.mark.parametrize("table", [(0, 1, 2, 3), (8, 9, 10, 11), (3, 1, 9, 4), (2, 7, 8, 9), (7, 8, 2, 3)])
def test_what_is_written_through_a_table_is_read_through_it(table):
    cache, chance = cache_of(), random.Random(1)
    k, v = torch.randn(2, 64, HEADS, CHANNELS).unbind(0)
    start = 0
    while start < 64:
        end = min(64, start + chance.choice([1, 1, 5, 16, 30]))
        cache.write(0, table, start, k[start:end], v[start:end])
        begin = chance.randrange(end)
        keys, values = cache.read(0, table, straight(table), begin, end)
        assert torch.equal(keys, k[begin:end].transpose(0, 1)) and torch.equal(values, v[begin:end].transpose(0, 1))
        start = end
    for entry, block in enumerate(table):  # where the layout says that it stands
        part = slice(entry * BLOCK_TOKENS, (entry + 1) * BLOCK_TOKENS)
        there = slice(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS)
        assert torch.equal(cache.keys[0][:, there], k[part].transpose(0, 1))


@pytest.mark.parametrize(
    ("table", "entry"),
    [((5,), 0), ((4, 5, 6), 0), ((6, 5, 4), 2), ((1, 5, 6), 1), ((-1, -1, 8, 9), 2), ((4, 5, 7), 2)],
)
def test_a_table_says_from_where_on_it_is_a_run_which_is_read_without_a_copy(table, entry):
    assert straight(table) == entry
    cache, end = cache_of(), len(table) * BLOCK_TOKENS
    for begin in range(entry * BLOCK_TOKENS, end):
        keys, _ = cache.read(0, table, entry, begin, end)
        assert keys.untyped_storage().data_ptr() == cache.keys[0].untyped_storage().data_ptr()
        assert keys.shape == (HEADS, end - begin, CHANNELS)


@pytest.mark.parametrize("table", [(0, 1), (5, 2)])
def test_int8_keeps_each_number_within_half_a_step_of_its_token_and_head(table):
    cache = cache_of(int8=True)
    k = torch.randn(32, HEADS, CHANNELS) * torch.logspace(-3, 3, 32)[:, None, None]
    k[7] = 0
    cache.write(0, table, 0, k[:20], -k[:20])
    cache.write(0, table, 20, k[20:], -k[20:])
    keys, values = cache.read(0, table, straight(table), 0, 32)
    step = np.abs(k.numpy()).max(-1) / 127
    error = np.abs(keys.transpose(0, 1).numpy() - k.numpy())
    assert (error <= step[..., None] * 0.5001).all() and torch.equal(values, -keys)
    assert (error > step[..., None] * 0.3).any()  # the control: it is no copy
    assert cache.keys[0].dtype == torch.int8
    place = torch.tensor([block * BLOCK_TOKENS + i for block in table for i in range(BLOCK_TOKENS)])
    assert np.allclose(cache.key_scales[0][:, place].numpy(), step.T)
    assert cache.keys[0][:, place].abs().amax(-1).T[torch.arange(32) != 7].eq(127).all()


def test_what_int8_wrote_is_never_changed_by_later_tokens():
    cache = cache_of(int8=True)
    small, large = torch.randn(5, HEADS, CHANNELS), 1000 * torch.randn(3, HEADS, CHANNELS)
    cache.write(0, (4, 2), 0, small, small)
    before = cache.read(0, (4, 2), 1, 0, 5)[0].clone()
    cache.write(0, (4, 2), 5, large, large)
    assert torch.equal(cache.read(0, (4, 2), 1, 0, 5)[0], before)


def test_a_state_can_be_asked_for_again_after_its_tokens_were_computed():
    cache = cache_of()
    one, two = (torch.ones(1), torch.ones(1)), (2 * torch.ones(1), torch.ones(1))
    cache.keep_state(1, 0, 0, 10, one)
    cache.keep_state(1, 0, 10, 11, two)
    assert cache.state(1, 0, 11) is two and cache.state(1, 0, 10) is one  # a pass that failed half-way is tried again
    cache.keep_state(1, 0, 10, 11, two)
    assert cache.state(1, 0, 10) is one
    assert cache.state(1, 0, 0) is None and cache.state(1, 0, 5) is None and cache.state(1, 1, 10) is None
