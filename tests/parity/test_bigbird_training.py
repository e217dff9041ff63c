"""BigBird's random blocks in training: with the blocks that transformers draws, ours are its states and gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

from fledge.batch import OneDocument, one_document
from fledge.model.folder import load_model
from fledge.nn.config import BigBird
from fledge.nn.visibility import blocks_of
from tests.parity.encoders import ids_for, reference
from tests.parity.reference import limit


@pytest.mark.parametrize("length", [42, 60])
def test_with_the_same_blocks_training_equals_transformers(length, tmp_path, monkeypatch):
    """Theirs draws blocks for each layer and head from numpy's generator; here one for all, so that ours, which has
    one for all layers and heads of a seed, can be given the same."""
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    theirs = reference("bigbird", **no_dropout)
    theirs.save_pretrained(tmp_path)
    drawn: list[np.ndarray] = []
    draw = BigBirdBlockSparseAttention._bigbird_block_rand_mask_with_head

    def one_for_all(self, *args, **kwargs):
        blocks = draw(self, *args, **kwargs)
        drawn.append(blocks[0])
        return [drawn[0] for _ in blocks]

    monkeypatch.setattr(BigBirdBlockSparseAttention, "_bigbird_block_rand_mask_with_head", one_for_all)
    ids = ids_for(2, length)
    expected = theirs.train()(ids).logits
    n_blocks = length // 3

    def chosen(pattern: BigBird, n: int) -> tuple[tuple[int, ...], ...]:
        assert n == n_blocks and not pattern.fixed
        every = tuple(range(n))
        middle = ({0, row - 1, row, row + 1, n - 1, *drawn[0][row - 1].tolist()} for row in range(1, n - 1))
        return every, *(tuple(sorted(blocks)) for blocks in middle), every

    mine = load_model(tmp_path).train()
    for block in mine.encoder.blocks():
        sight = block.attention.sight
        block.attention.sight = replace(sight, pattern=replace(sight.pattern, fixed=False))
    by_seed = mine(one_document(ids), OneDocument())
    monkeypatch.setattr("fledge.nn.pieces.blocks_of", chosen)
    got = mine(one_document(ids), OneDocument())
    assert (got - expected).abs().max() <= limit(expected)
    assert (by_seed - expected).abs().max() > limit(expected)  # the control: other blocks
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (got * weight).sum().backward()
    (expected * weight).sum().backward()
    pair = (mine.embedding.weight.grad, theirs.get_input_embeddings().weight.grad)
    keep = torch.arange(len(pair[1])) != theirs.config.pad_token_id  # their table gives padding no gradient
    assert (pair[0][: len(keep)] - pair[1])[keep].abs().max() <= 10 * limit(pair[1])


def test_our_blocks_are_drawn_by_seed_and_block_and_are_new_ones():
    pattern = BigBird(4, 3, seed=1)
    rows = blocks_of(pattern, 30)
    for row in range(1, 29):
        near = {0, row - 1, row, row + 1, 29}
        assert near < set(rows[row]) and len(rows[row]) == len(near) + 3
    assert rows == blocks_of(pattern, 30) and rows != blocks_of(replace(pattern, seed=2), 30)
