"""How beams share a cache: a token a step of each, copies of unfinished blocks, the best of many continuations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fledge.engine.beam import beam_search, best_of, log_softmax
from fledge.engine.request import BeamSearch
from fledge.engine.row import Row
from fledge.engine.stub import StubRunner
from fledge.errors import EngineError
from fledge.nn.cache import BLOCK_TOKENS, KeyValueCache

VOCAB, PROMPT = 11, tuple(n % 11 for n in range(21))  # which ends within a block


class Recording(StubRunner):
    """Remembers the rows it was given."""

    def __init__(self, forgets: bool = False):
        super().__init__(VOCAB, 8, 128)
        self.forgets, self.rows = forgets, []

    def forward(self, rows: list[Row]) -> list[np.ndarray]:
        self.rows += rows
        return super().forward([replace(row, copied=None) for row in rows] if self.forgets else rows)


def plain(search: BeamSearch) -> list[tuple[tuple[int, ...], float]]:
    """The beams that a search keeps where nothing stops, by the logits of whole texts."""
    runner, beams = StubRunner(VOCAB, 8, 128), [(PROMPT, 0.0)]
    for _ in range(search.max_tokens):
        found = []
        for ids, total in beams:
            log_p = log_softmax(runner.logits_after(list(ids))[None])[0]
            found += [((*ids, token), total + float(log_p[token])) for token in range(VOCAB)]
        beams = sorted(found, key=lambda one: -one[1])[: search.n_beams]
    return [(ids[len(PROMPT) :], total / search.max_tokens) for ids, total in beams]


@pytest.mark.parametrize("n_beams", [2, 5, 8])
def test_each_beam_computes_one_token_a_step_and_finds_what_whole_texts_find(n_beams):
    runner, search = Recording(), BeamSearch(n_beams, max_tokens=40)
    found = beam_search(runner, PROMPT, search, (), VOCAB)
    expected = plain(search)
    assert [one.token_ids for one in found] == [ids for ids, _ in expected]
    np.testing.assert_allclose([one.score for one in found], [score for _, score in expected], atol=1e-5)
    prompt, *rest = runner.rows
    assert len(prompt.ids) == len(PROMPT) and {len(row.ids) for row in rest} == {1}
    assert any(row.copied for row in rest)


def test_the_control_a_runner_that_copies_nothing_is_found_out():
    with pytest.raises(EngineError, match="goes on from written tokens"):
        beam_search(Recording(forgets=True), PROMPT, BeamSearch(5, max_tokens=40), (), VOCAB)


@pytest.mark.parametrize("int8", [False, True])
def test_a_copied_block_holds_what_the_first_one_does_in_every_layer(int8):
    cache = KeyValueCache(((2, 3), None, (1, 5)), 6, 96, int8=int8)
    generator = torch.Generator().manual_seed(1)
    for layer, (heads, channels) in ((0, (2, 3)), (2, (1, 5))):
        for block in range(6):
            k, v = torch.randn(2, BLOCK_TOKENS, heads, channels, generator=generator)
            cache.write(layer, (block,), 0, k, v)
    before = [cache.read(layer, (block,), 0, 0, BLOCK_TOKENS) for layer in (0, 2) for block in range(6)]
    before = [(k.clone(), v.clone()) for k, v in before]
    cache.copy([(4, 1), (0, 5)])
    source = {1: 4, 5: 0}
    for at, layer in enumerate((0, 2)):
        for block in range(6):
            for found, wanted in zip(
                cache.read(layer, (block,), 0, 0, BLOCK_TOKENS), before[6 * at + source.get(block, block)], strict=True
            ):
                assert torch.equal(found, wanted)


def test_the_best_of_many_are_the_first_of_all_sorted():
    draw = np.random.default_rng(0)
    for _ in range(300):
        totals = draw.standard_normal((draw.integers(1, 9), draw.integers(1, 400))).astype(np.float32)
        totals = np.round(totals) if draw.random() < 0.5 else totals  # many equal ones
        totals[draw.random(totals.shape) < draw.choice([0, 0.5])] = -np.inf
        n = int(draw.integers(1, 2 * totals.size))
        flat = totals.ravel()
        order = sorted(range(flat.size), key=lambda i: (-flat[i], i))[:n]
        assert best_of(totals, n) == [(i // totals.shape[1], i % totals.shape[1], float(flat[i])) for i in order]
