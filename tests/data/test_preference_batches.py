"""Rows of preferences: what stands where, what is cut, and that slices of a batch are its rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fledge.batch import OneDocument, Packed, Padded, slice_rows
from fledge.data.keyed_batches import EveryRow
from fledge.data.preference_batches import PreferenceBatches, fitted
from fledge.errors import DataError
from fledge.text.chat import Rendered


def rendered(prompt: int, answer: int, first: int = 0) -> Rendered:
    ids = list(range(first, first + prompt + answer))
    return Rendered(ids, [False] * prompt + [True] * answer)


ROWS = [
    [rendered(3, 4), rendered(3, 2, 50)],
    [rendered(2, 1), rendered(2, 9, 60)],
    [rendered(5, 5), rendered(5, 5, 70)],
]


def items(cut=True, most=10):
    return fitted(ROWS, most, cut)


def test_longer_answers_are_cut_or_their_pair_is_left_out():
    cut = items(True, 8)
    assert (len(cut.items), cut.n_cut, cut.n_too_long, cut.n_same) == (3, 2, 0, 0)
    assert max(len(one.ids) for item in cut.items for one in item.answers) == 8
    left = items(False, 8)
    assert (len(left.items), left.n_cut, left.n_too_long) == (1, 0, 2) and left.items[0].number == 1


def test_a_pair_that_the_cut_leaves_without_an_answer_or_a_difference_is_left_out():
    found = fitted([[rendered(5, 5), rendered(5, 1, 70)], [rendered(2, 9), rendered(2, 8)], ROWS[0]], 5, True)
    assert (len(found.items), found.n_too_long) == (1, 2)
    same = fitted([[rendered(2, 2), rendered(2, 2)], ROWS[0]], 10, True)
    assert (len(same.items), same.n_same, same.n_too_long) == (1, 1, 0)


def test_a_row_holds_both_answers_each_a_document_with_its_prompt():
    batch = EveryRow(PreferenceBatches(items().items, 3, 0, pad_id=9))[0]
    assert isinstance(batch.layout, Packed) and batch.items.tolist() == [0, 1, 2]
    first = batch.tokens.doc[0]
    assert batch.tokens.ids[0, first == 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.targets[0, first == 1].tolist() == [51, 52, 53, 54]
    assert batch.weight[0, first == 0].tolist() == [0, 0, 1, 1, 1, 1]
    assert batch.weight[0, first == 1].tolist() == [0, 0, 1, 1]
    assert batch.tokens.pos[0, first == 1].tolist() == [0, 1, 2, 3]
    assert batch.sample_ids == ("preference 1", "preference 2", "preference 3")


def test_padding_is_in_pieces_no_longer_than_an_answer():
    short = fitted([[rendered(1, 1), rendered(1, 1, 5)], [rendered(3, 9), rendered(3, 9, 40)]], 20, True).items
    batch = EveryRow(PreferenceBatches(short, 2, 0))[0]
    lengths = np.diff(batch.layout.cu_seqlens)
    assert batch.layout.longest == lengths.max() == 11 and lengths.sum() == batch.tokens.ids.numel()
    for edge in (0, batch.tokens.ids.shape[1], batch.tokens.ids.numel()):
        assert edge in batch.layout.cu_seqlens


def test_a_scored_answer_is_read_to_its_last_token():
    batch = EveryRow(PreferenceBatches(items().items, 3, 0, scored=True))[0]
    assert batch.tokens.ids[0, batch.tokens.doc[0] == 0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_one_of_the_answers_alone_is_a_row_of_one_document():
    batches = PreferenceBatches(items().items, 3, 0, answers=slice(0, 1), first=10)
    batch = EveryRow(batches)[0]
    assert isinstance(batch.layout, Padded | OneDocument) and batch.items.tolist() == [10, 11, 12]
    other = batches.of([0], slice(1, 2))
    assert other.targets[0].tolist() == [51, 52, 53, 54]


def test_batches_are_a_function_of_seed_and_index_and_every_item_comes_once_an_epoch():
    batches = PreferenceBatches(items().items, 1, 5)
    seen = [int(batches.batch(index).items) for index in range(6)]
    assert sorted(seen[:3]) == sorted(seen[3:]) == [0, 1, 2]
    assert [int(PreferenceBatches(items().items, 1, 5).batch(index).items) for index in range(6)] == seen
    both = PreferenceBatches(items().items, 3, 5).batch(1)
    assert both.items.tolist() == seen[3:]
    part = slice_rows(both, 1, 3)
    assert part.items.tolist() == seen[4:] and torch.equal(part.tokens.ids, both.tokens.ids[1:])


def test_none_that_fits_is_refused():
    with pytest.raises(DataError, match="expected at least one that fits"):
        PreferenceBatches([], 2, 0)
