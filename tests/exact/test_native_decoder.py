"""The compiled decoder against the transformer itself: any family, any company, any chunks, blocks anywhere."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from fledge.batch import OneDocument, one_document
from fledge.engine.native import NativeDecoder, why_not
from fledge.engine.runner import pack_in_place
from fledge.model.folder import load_model
from fledge.nn.cache import BLOCK_TOKENS
from fledge.nn.native import library
from tests.parity.decoder_cases import ALWAYS, CASES, sampled
from tests.parity.reference import limit, some_ids

KNOWN = (*ALWAYS, "gpt2", "opt", "olmo2", "qwen3", "cohere", "stablelm-parallel", "qwen3-moe",
         "cohere-normed-grouped", "stablelm-normed", "olmo-clipped", "olmoe-clipped", "qwen3-moe-dense-first",
         "qwen3-moe-step")  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def kernels():
    assert library.build() is not None, "a C++ compiler is needed here"


def loaded(name, folder):
    CASES[name].model().save_pretrained(folder)
    return load_model(folder).eval()


def new_caches(model, positions, int8=False):
    """Keys and values of each layer, filled with what must never be read."""
    shapes = [(one.mixer.n_kv_heads, positions, one.mixer.head_channels) for one in model.config.decoder.layers]
    if int8:
        return [
            (*(torch.full(shape, 99, dtype=torch.int8) for _ in "kv"), *(torch.full(shape[:2], 1e9) for _ in "kv"))
            for shape in shapes
        ]
    return [tuple(torch.full(shape, 1e9) for _ in "kv") for shape in shapes]


def run(model, ids, caches, seed, rows=None):
    """Logits [B, T, V] of documents that advance by random chunks, several in a step, in shuffled blocks."""
    n_rows, length = ids.shape
    decoder = NativeDecoder(model, caches, length)
    each = -(-length // BLOCK_TOKENS)
    blocks = list(range(caches[0][0].shape[1] // BLOCK_TOKENS))
    chance = random.Random(seed)
    chance.shuffle(blocks)
    tables = [np.array(blocks[each * row : each * (row + 1)], np.int32) for row in range(n_rows)]
    got, place = torch.zeros(n_rows, length, decoder.vocab_size), [0] * n_rows
    while min(place[row] for row in rows or range(n_rows)) < length:
        tokens = []
        for row in rows or range(n_rows):
            n = min(chance.choice([0, 1, 1, 3, 5, 13]), length - place[row])
            tokens += [(row, place[row] + i) for i in range(n)]
            place[row] += n
        if tokens:
            arrays = [np.array([ids[row, at] for row, at in tokens], np.int32)]
            arrays.append(np.array([at for _, at in tokens], np.int32))
            wanted = np.arange(len(tokens), dtype=np.int32)
            logits = decoder.step(*arrays, [tables[row] for row, _ in tokens], wanted)
            for (row, at), values in zip(tokens, logits, strict=True):
                got[row, at] = torch.from_numpy(values)
    return got


@pytest.mark.parametrize("name", sampled(CASES, KNOWN))
@torch.no_grad()
def test_its_logits_are_the_transformers(name, tmp_path):
    model, ids = loaded(name, tmp_path), some_ids()
    reason = why_not(model)
    if reason:
        assert name == "falcon-alibi" or name.startswith("opt-narrow") and "another width" in reason, reason
        return
    whole = model(one_document(ids), OneDocument())
    pack_in_place(model)
    got = run(model, ids, new_caches(model, 64 * len(ids)), seed=1)
    assert (got - whole).abs().max() <= limit(whole)
    assert (got.roll(1, 1) - whole).abs().max() > limit(whole)  # the control


@pytest.mark.parametrize("int8", [False, True])
@torch.no_grad()
def test_chunks_company_blocks_and_threads_leave_every_bit_alone(int8, tmp_path):
    model, ids = pack_in_place(loaded("mistral", tmp_path)), some_ids()
    first = run(model, ids, new_caches(model, 64 * len(ids), int8), seed=1)
    assert torch.equal(run(model, ids, new_caches(model, 64 * len(ids), int8), seed=2), first)
    alone = run(model, ids, new_caches(model, 64 * len(ids), int8), seed=3, rows=[1])
    assert torch.equal(alone[1], first[1])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(run(model, ids, new_caches(model, 64 * len(ids), int8), seed=1), first)
    finally:
        torch.set_num_threads(before)
    changed = ids.clone()
    changed[1, 5] = (changed[1, 5] + 1) % 50  # the control
    other = run(model, changed, new_caches(model, 64 * len(ids), int8), seed=1)
    assert torch.equal(other[0], first[0])
    assert torch.equal(other[1, :5], first[1, :5])
    assert not torch.equal(other[1, 5:], first[1, 5:])


@torch.no_grad()
def test_a_cache_of_int8_stays_near_one_of_floats(tmp_path):
    model, ids = pack_in_place(loaded("llama", tmp_path)), some_ids()
    exact = run(model, ids, new_caches(model, 64 * len(ids)), seed=1)
    near = run(model, ids, new_caches(model, 64 * len(ids), int8=True), seed=1)
    difference = (exact.log_softmax(-1) - near.log_softmax(-1)).abs()
    assert 0 < difference.max() < 0.05


@torch.no_grad()
def test_broken_weights_are_seen_in_the_logits(tmp_path):
    for name in ("llama", "gpt2", "opt"):
        model, ids = loaded(name, tmp_path / name), some_ids()
        model.decoder.layers[0].attention.qkv.k.weight[3, 3] = float("nan")
        pack_in_place(model)
        got = run(model, ids, new_caches(model, 64 * len(ids)), seed=1)
        assert not torch.isfinite(got).any()
