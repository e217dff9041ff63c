"""Pairs of segments: what follows what, in which share, cut how; and nothing but (seed, epoch, number) decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fledge.batch import Padded, slice_rows
from fledge.data.masked_batches import PairBatches
from fledge.data.masking import MaskingConfig
from fledge.data.pairs import Pairs, PairsConfig, truncated
from fledge.data.sentences import sentence_bounds, sentence_marks
from fledge.data.shards import shard_of
from fledge.errors import DataError
from tests.data.corrupted import chi_square, plain_documents, stories, story, wordpiece

WHOLE = PairsConfig(short=0.0)


def place_of(shard, ids: np.ndarray) -> list[tuple[int, int]]:
    """(document, offset) of every place where `ids` stands in a document."""
    found = []
    for document in range(shard.n_documents):
        text = shard.document(document).astype(np.int64)
        for at in range(len(text) - len(ids) + 1):
            if np.array_equal(text[at : at + len(ids)], ids):
                found.append((document, at))
    return found


def follows(shard, a: np.ndarray, b: np.ndarray) -> bool:
    return any((document, at + len(a)) in place_of(shard, b) for document, at in place_of(shard, a))


def test_sentences_end_where_their_marks_say():
    tokenizer = wordpiece()
    text = 'Anna watched the dog. "Felix followed?" Ben painted seventeen candles! Emma'
    ids = np.array(tokenizer.encode(text))
    bounds = sentence_bounds(ids, sentence_marks(tokenizer), 99)
    parts = [tokenizer.decode(ids[a:b].tolist()) for a, b in zip(bounds, bounds[1:], strict=False)]
    assert len(parts) == 4 and "watched the dog." in parts[0] and parts[2].startswith("ben") and parts[3] == "emma"
    whole = sentence_bounds(np.full(50, 40), sentence_marks(tokenizer), 20)
    assert whole.tolist() == [0, 16, 33, 50]  # too long: equal pieces


def test_the_second_segment_goes_on_with_the_first_unless_the_answer_says_no():
    shard = stories(4, 60)
    pairs = Pairs(shard, wordpiece(), WHOLE, "next", 5000, seed=1)  # nothing is cut
    right = other = 0
    for number in range(24):
        pair = pairs.pair(number, number % len(pairs))
        if pair.answer:
            mine = {document for document, _ in place_of(shard, pair.a)}
            assert not mine & {document for document, _ in place_of(shard, pair.b)}
            other += 1
        else:
            assert follows(shard, pair.a, pair.b)
            right += 1
    assert right > 0 and other > 0


def test_a_swapped_pair_is_in_order_the_other_way_round():
    shard = stories(3, 60)
    pairs = Pairs(shard, wordpiece(), WHOLE, "order", 5000, seed=1)  # nothing is cut
    answers = set()
    for number in range(20):
        pair = pairs.pair(number, number % len(pairs))
        first, second = (pair.b, pair.a) if pair.answer else (pair.a, pair.b)
        assert follows(shard, first, second)
        assert not follows(shard, second, first)  # the control
        answers.add(pair.answer)
    assert answers == {0, 1}


@pytest.mark.parametrize("relation", ["next", "order"])
def test_half_of_the_pairs_are_changed(relation):
    shard = stories(20, 60)
    pairs = Pairs(shard, wordpiece(), PairsConfig(), relation, 60, seed=1)
    answers = [pairs.pair(epoch, n).answer for epoch in range(2000 // len(pairs) + 1) for n in range(len(pairs))]
    counts = np.bincount(answers, minlength=2)
    assert counts.sum() >= 2000 and chi_square(counts, np.array([0.5, 0.5])) < 10.83  # p = 0.001, 1 degree
    assert chi_square(counts, np.array([0.44, 0.56])) > 10.83  # the control


def test_every_other_document_is_as_likely():
    pairs = Pairs(plain_documents(6, 30), wordpiece(), PairsConfig(changed=1.0, short=0.0), "next", 60, seed=1)
    firsts = [pairs.pair(epoch, 0) for epoch in range(800)]  # of a chunk of the first document
    assert all(pair.a.max() == 60 and 60 not in pair.b for pair in firsts)
    counts = np.bincount([pair.b[pair.b >= 60][0] - 61 for pair in firsts], minlength=5)
    assert chi_square(counts, np.full(5, 0.2)) < 18.47  # p = 0.001, 4 degrees
    assert chi_square(counts, np.array([0.3, 0.175, 0.175, 0.175, 0.175])) > 18.47  # the control


def test_pairs_fit_the_row_and_short_ones_are_met():
    pairs = Pairs(stories(6, 60), wordpiece(), PairsConfig(short=0.5), "order", 40, seed=1)
    sizes = [len(p.a) + len(p.b) for epoch in range(10) for n in range(len(pairs)) for p in [pairs.pair(epoch, n)]]
    assert max(sizes) == 40 and min(sizes) < 25
    assert all(len(p.a) and len(p.b) for n in range(len(pairs)) for p in [pairs.pair(0, n)])
    full = Pairs(stories(6, 60), wordpiece(), WHOLE, "order", 40, seed=1)
    assert np.mean([len(p.a) + len(p.b) == 40 for n in range(len(full)) for p in [full.pair(0, n)]]) > 0.8


def test_the_longer_segment_is_cut_first_at_both_ends():
    a, b = np.arange(100), np.arange(100, 130)
    firsts = set()
    for number in range(40):
        left, right = truncated(a, b, 60, number)
        assert len(left) == len(right) == 30 and np.array_equal(right, b)
        assert np.array_equal(left, np.arange(left[0], left[0] + 30))
        firsts.add(int(left[0]))
    assert len(firsts) > 5 and 20 < np.mean(list(firsts)) < 50
    left, right = truncated(a, b, 41, "x")
    assert (len(left), len(right)) in ((20, 21), (21, 20))
    assert truncated(a, b, 130, "x")[0] is not None and len(truncated(a, b, 130, "x")[0]) == 100


def test_next_sentences_need_two_documents():
    with pytest.raises(DataError, match="expected two documents"):
        Pairs(stories(1), wordpiece(), WHOLE, "next", 60, 1)
    assert len(Pairs(stories(1), wordpiece(), WHOLE, "order", 60, 1)) > 0
    with pytest.raises(DataError, match="a document of two sentences"):
        Pairs(shard_of([[40, 41], [42]]), wordpiece(), WHOLE, "order", 60, 1)


def test_a_batch_of_pairs_is_bert_s():
    tokenizer = wordpiece()
    cls, sep = tokenizer.special["cls"], tokenizer.special["sep"]
    batches = PairBatches(stories(4), tokenizer, MaskingConfig(), PairsConfig(), "next", 64, 8, seed=1)
    batch = batches.batch(0)
    assert isinstance(batch.layout, Padded) and batch.answers.shape == (8,) and batch.tokens.ids.shape == (8, 64)
    for row in range(8):
        n = batch.layout.lengths[row]
        ids, kind = batch.targets[row, :n], batch.tokens.kind[row, :n]
        seps = (ids == sep).nonzero()[:, 0].tolist()
        assert ids[0] == cls and len(seps) == 2 and seps[1] == n - 1
        assert (kind[: seps[0] + 1] == 0).all() and (kind[seps[0] + 1 :] == 1).all()
        assert (batch.weight[row][(ids == sep).nonzero()] == 0).all() and batch.weight[row, 0] == 0
    again = PairBatches(stories(4), tokenizer, MaskingConfig(), PairsConfig(), "next", 64, 8, seed=1).batch(0)
    assert torch.equal(again.tokens.ids, batch.tokens.ids) and torch.equal(again.answers, batch.answers)
    part = slice_rows(batch, 2, 5)
    assert torch.equal(part.answers, batch.answers[2:5]) and torch.equal(part.tokens.kind, batch.tokens.kind[2:5])


def test_another_epoch_pairs_otherwise():
    pairs = Pairs(stories(8, 60), wordpiece(), PairsConfig(), "next", 60, seed=1)
    same = [np.array_equal(pairs.pair(0, n).a, pairs.pair(1, n).a) for n in range(len(pairs))]
    assert np.mean(same) < 0.5
    other = Pairs(stories(8, 60), wordpiece(), PairsConfig(), "next", 60, seed=2)
    assert np.mean([np.array_equal(pairs.pair(0, n).a, other.pair(0, n).a) for n in range(len(pairs))]) < 0.5


def test_stories_differ():
    assert story(1, 5) != story(2, 5)
