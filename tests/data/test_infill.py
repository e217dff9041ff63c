"""Fill-in-the-middle: a moved document is put together again, windows see the same as whole documents, and a share of
exactly `rate` is moved in every epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fledge.data.batches import TextBatches
from fledge.data.infill import InfillConfig, infill_sentinels, infilled_shard, middle_of
from fledge.data.infill_batches import InfillBatches
from fledge.data.shards import shard_of
from fledge.errors import ConfigError
from fledge.text.extend import extended
from fledge.text.tokenizer import byte_level
from tests.data.corrupted import chi_square, story

NAMES = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
TOKENIZER = extended(byte_level(), NAMES)
PREFIX, SUFFIX, MIDDLE = (TOKENIZER.id_of(name) for name in NAMES)
BOS, EOS = TOKENIZER.bos_id, TOKENIZER.eos_id


def documents(n: int = 12) -> list[list[int]]:
    return [[BOS, *TOKENIZER.encode(story(number, 1 + number % 3)), EOS] for number in range(n)]


def put_back(ids: list[int]) -> list[int]:
    """The document before it was moved, read from its sentinels alone."""
    if PREFIX not in ids:
        return ids
    before, after = ids[: ids.index(PREFIX)], [ids[-1]]
    body = ids[ids.index(PREFIX) + 1 : -1]
    suffix, middle = body.index(SUFFIX), body.index(MIDDLE)
    if suffix:  # PSM, or an empty prefix, for which both orders read the same
        return before + body[:suffix] + body[middle + 1 :] + body[suffix + 1 : middle] + after
    return before + body[middle + 1 :] + body[1:middle] + after


@pytest.mark.parametrize("spm", [0.0, 0.5, 1.0])
def test_a_moved_document_is_put_together_again(spm):
    shard = shard_of(documents())
    for epoch in range(6):
        seen = infilled_shard(shard, TOKENIZER, InfillConfig(1.0, spm), 1, epoch)
        for number, original in enumerate(documents()):
            ids = seen.document(number).tolist()
            assert len(ids) == len(original) + 3 and sorted([*original, PREFIX, SUFFIX, MIDDLE]) == sorted(ids)
            assert ids[0] == BOS and ids[-1] == EOS and ids[1] == PREFIX
            assert put_back(ids) == original
            if spm == 1.0:
                assert ids[2] == SUFFIX


def test_the_two_orders_are_met_at_their_rate():
    shard = shard_of(documents(40))
    spm = n = 0
    for epoch in range(25):
        seen = infilled_shard(shard, TOKENIZER, InfillConfig(1.0, 0.5), 1, epoch)
        for number in range(40):
            a, _ = middle_of(len(documents(40)[number]) - 2, "infill", 1, epoch, number)
            if a > 0:  # with an empty prefix both begin alike
                spm += seen.document(number)[2] == SUFFIX
                n += 1
    assert chi_square(np.array([spm, n - spm]), np.array([0.5, 0.5])) < 10.83
    assert chi_square(np.array([spm, n - spm]), np.array([0.4, 0.6])) > 10.83  # the control


def test_every_epoch_moves_the_same_share_and_other_documents():
    shard = shard_of(documents(20))
    epochs = [infilled_shard(shard, TOKENIZER, InfillConfig(0.4), 1, epoch) for epoch in range(4)]
    assert {int(seen.moved.sum()) for seen in epochs} == {8}
    assert {seen.n_tokens for seen in epochs} == {shard.n_tokens + 24}
    assert len({tuple(seen.moved.tolist()) for seen in epochs}) == 4
    for seen in epochs:
        for number, original in enumerate(documents(20)):
            assert (seen.document(number).tolist() == original) == (not seen.moved[number])


def test_any_window_is_a_part_of_the_documents_side_by_side():
    shard = shard_of([[], *documents(), []])
    seen = infilled_shard(shard, TOKENIZER, InfillConfig(0.5), 1, 3)
    whole = np.concatenate([seen.document(n) for n in range(seen.n_documents)])
    assert len(whole) == seen.n_tokens
    starts = np.arange(0, seen.n_tokens - 30, 7)
    assert np.array_equal(seen.rows(starts, 30), np.stack([whole[a : a + 30] for a in starts]))


def test_batches_over_epochs_hold_each_epoch_s_documents():
    shard = shard_of(documents())
    batches = InfillBatches(shard, TOKENIZER, InfillConfig(0.5), 32, 5, 1)
    n = batches.windows.rows_per_epoch
    assert n % 5  # so that some batch straddles two epochs
    again = InfillBatches(shard, TOKENIZER, InfillConfig(0.5), 32, 5, 1)
    for index in range(2 * n // 5 + 1):
        batch, same = batches.batch(index), again.batch(index)
        assert torch.equal(batch.tokens.ids, same.tokens.ids) and torch.equal(batch.weight, same.weight)
        for row in range(5):
            epoch = (index * 5 + row) // n
            seen = batches.seen(epoch)
            start = int(batch.sample_ids[row].rpartition("@")[2])
            assert batch.tokens.ids[row].tolist() == seen.read(start, 32).tolist()
            assert batch.targets[row].tolist() == seen.read(start + 1, 32).tolist()
            assert batch.tokens.pos[row, 0] == 0


def test_a_rate_of_nothing_is_text_as_it_is():
    shard = shard_of(documents())
    plain, none = TextBatches(shard, 32, 4, 1), InfillBatches(shard, TOKENIZER, InfillConfig(0.0), 32, 4, 1)
    assert all(torch.equal(plain.batch(i).tokens.ids, none.batch(i).tokens.ids) for i in range(5))
    assert all(plain.batch(i).layout == none.batch(i).layout for i in range(5))


def test_every_middle_is_as_likely_within_its_document():
    found = np.array([middle_of(3, n) for n in range(4000)])
    counts = np.array([((found == (a, b)).all(1)).sum() for a in range(4) for b in range(a, 4)])
    shares = np.array([1 if a == b else 2 for a in range(4) for b in range(a, 4)]) / 16
    assert chi_square(counts, shares) < 27.88  # p = 0.001, 9 degrees


def test_a_tokenizer_without_sentinels_is_refused():
    with pytest.raises(ConfigError, match="expected sentinels <|fim_prefix|>".replace("|", r"\|")):
        infill_sentinels(byte_level())
