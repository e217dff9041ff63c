"""Batches for encoder–decoders and prefix LMs: what stands where; a slice of a batch is the smaller batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fledge.batch import GLOBAL, OneDocument, Packed, Padded, slice_rows
from fledge.data.denoise import prefix_split, span_corruption, text_noise
from fledge.data.denoise_batches import DenoiseBatches, PrefixBatches
from fledge.data.keyed_batches import EveryRow
from fledge.data.noise import NoiseConfig
from fledge.data.segments import Segments
from fledge.data.spans import SpansConfig, text_tokens
from fledge.text.extend import extended, sentinels
from tests.data.corrupted import stories, wordpiece

TOKENIZER = extended(wordpiece(), sentinels())
START = 0


def batches(
    name: str = "spans", rows: int = 4, source_tokens: int = 64, n: int = 5, layout: str = "padded"
) -> DenoiseBatches:
    made = {
        "spans": lambda: span_corruption(TOKENIZER, SpansConfig()),
        "denoise": lambda: text_noise(TOKENIZER, NoiseConfig(mean_span=0.4)),  # puts more masks in than it takes out
        "prefix": lambda: prefix_split(TOKENIZER),
    }
    most = text_tokens(source_tokens, SpansConfig())[0] if name == "spans" else source_tokens - 2
    segments = Segments(stories(n, tokenizer=TOKENIZER), TOKENIZER, most, least=2)
    return DenoiseBatches(segments, made[name](), START, 0, (source_tokens, source_tokens), rows, 1, layout)


@pytest.mark.parametrize("name", ["spans", "denoise", "prefix"])
def test_the_decoder_reads_the_target_one_place_later(name):
    for index in range(3):
        batch = batches(name).batch(index)
        assert batch.source is not None
        for row, length in enumerate(batch.layout.lengths if isinstance(batch.layout, Padded) else [64] * 4):
            ids, targets = batch.tokens.ids[row, :length], batch.targets[row, :length]
            assert ids[0] == START and torch.equal(ids[1:], targets[:-1])
            assert (batch.weight[row, :length] == 1).all() and (batch.weight[row, length:] == 0).all()
            assert (batch.tokens.doc[row, length:] == -1).all()
        assert batch.source[0].ids.shape[1] <= 64
        assert batch.n_tokens == int((batch.tokens.doc >= 0).sum() + (batch.source[0].doc >= 0).sum())


def test_full_segments_fill_the_source_exactly():
    made = batches(n=1)
    batch = made.made([(0, 0), (3, 0)])
    assert batch.source[0].ids.shape == (2, 64) and isinstance(batch.source[1], OneDocument)
    assert isinstance(batch.layout, OneDocument)


@pytest.mark.parametrize("name", ["spans", "denoise", "prefix"])
def test_a_slice_keeps_source_and_target_together(name):
    batch = batches(name).batch(1)
    for start, stop in ((0, 1), (1, 3), (0, 4)):
        part = slice_rows(batch, start, stop)
        assert torch.equal(part.source[0].ids, batch.source[0].ids[start:stop])
        assert torch.equal(part.targets, batch.targets[start:stop])
        if isinstance(batch.source[1], Padded):
            assert part.source[1].lengths == batch.source[1].lengths[start:stop]
    assert torch.equal(batch.to(torch.device("cpu")).source[0].ids, batch.source[0].ids)


@pytest.mark.parametrize("name", ["spans", "denoise", "prefix"])
def test_a_batch_depends_on_seed_and_index_alone(name):
    one, two = batches(name), batches(name)
    two.batch(7)
    assert all(torch.equal(one.batch(i).source[0].ids, two.batch(i).source[0].ids) for i in (2, 0))
    first, second = one.made([(0, 1)]), one.made([(1, 1)])
    assert not (
        first.source[0].ids.shape == second.source[0].ids.shape
        and torch.equal(first.source[0].ids, second.source[0].ids)
    )
    held = [batch.source[0].ids for batch in EveryRow(batches(name))]
    assert all(torch.equal(a, b.source[0].ids) for a, b in zip(held, EveryRow(batches(name)), strict=True))


def documents(batch) -> list[tuple]:
    """Source, decoder's ids and targets of every document."""
    found = []
    for row in range(len(batch.targets)):
        read, written = batch.source[0].doc[row], batch.tokens.doc[row]
        assert int(read.max()) == int(written.max())
        for doc in range(int(read.max()) + 1):
            assert batch.source[0].pos[row][read == doc].tolist() == list(range(int((read == doc).sum())))
            of_source = batch.source[0].ids[row][read == doc]
            of_target = (batch.tokens.ids[row][written == doc], batch.targets[row][written == doc])
            found.append(tuple(tuple(ids.tolist()) for ids in (of_source, *of_target)))
    return found


@pytest.mark.parametrize("name", ["spans", "denoise", "prefix"])
def test_packed_rows_hold_the_documents_of_padded_ones(name):
    packed, padded = (batches(name, layout=layout) for layout in ("packed", "padded"))
    assert packed.rows_per_epoch < padded.rows_per_epoch
    some = packed.made([(0, row) for row in range(packed.rows_per_epoch)])
    assert isinstance(some.layout, Packed) and isinstance(some.source[1], Packed)
    assert len(some.layout.cu_seqlens) == len(some.source[1].cu_seqlens)
    assert sorted(documents(some)) == sorted(documents(padded.made([(0, row) for row in range(padded.rows_per_epoch)])))
    for start in range(packed.rows_per_epoch):
        part = slice_rows(some, start, start + 1)
        assert len(part.layout.cu_seqlens) == len(part.source[1].cu_seqlens)


def test_an_epoch_reads_every_text_once():
    made = batches("prefix", rows=3)
    end = TOKENIZER.special["sep"]
    seen = []
    for batch in EveryRow(made):
        for row in range(len(batch.targets)):
            source = batch.source[0].ids[row][batch.source[0].doc[row] >= 0]
            target = batch.targets[row][batch.tokens.doc[row] >= 0]
            seen += [*source.tolist(), *target.tolist()]
    text = np.asarray(stories(5, tokenizer=TOKENIZER).tokens)
    assert sorted(t for t in seen if t != end) == sorted(text.tolist())


def test_a_prefix_is_seen_whole_and_only_the_rest_is_trained_on():
    made = PrefixBatches(stories(9, 4), wordpiece(), 120, 4, seed=1)
    batch = made.batch(0)
    assert isinstance(batch.layout, Packed)
    for row in range(4):
        for doc in range(int(batch.tokens.doc[row].max()) + 1):
            here = batch.tokens.doc[row] == doc
            kind, weight = batch.tokens.kind[row][here], batch.weight[row][here]
            ids, targets = batch.tokens.ids[row][here], batch.targets[row][here]
            prefix = int((kind == GLOBAL).sum())
            assert prefix >= 2 and (kind[:prefix] == GLOBAL).all()  # [CLS] and a token at least
            assert (weight[: prefix - 1] == 0).all() and (weight[prefix - 1 :] == 1).all() and len(weight) > prefix
            assert torch.equal(ids[1:], targets[:-1])
    other = PrefixBatches(stories(9, 4), wordpiece(), 120, 4, seed=1)
    assert torch.equal(other.batch(5).weight, made.batch(5).weight)
    assert not torch.equal(made.made([(0, 0)]).weight, made.made([(1, 0)]).weight)
