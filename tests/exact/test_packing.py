"""Rows of text and of conversations equal a slow reference that walks token by token."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fledge.batch import PADDING, Batch, OneDocument, Packed, slice_rows
from fledge.data.batches import ChatBatches, TextBatches, windows
from fledge.data.shards import Shard, shard_of
from fledge.errors import DataError

documents = st.lists(st.lists(st.integers(0, 99), max_size=20), min_size=1, max_size=12)


@dataclass
class Rendered:
    ids: list[int]
    trained: list[bool]


def slow_row(texts: list[list[int]], start: int, row_tokens: int) -> list[tuple[int, int, int, int, float]]:
    """(id, position, document in row, target, weight) of each place of the row at `start`, by walking the text."""
    stream = [(token, number) for number, text in enumerate(texts) for token in text]
    row, position, document = [], 0, 0
    for place in range(start, start + row_tokens):
        token, owner = stream[place]
        if place > start and owner != stream[place - 1][1]:
            position, document = 0, owner - stream[start][1]
        target, next_owner = stream[place + 1]
        row.append((token, position, document, target, float(owner == next_owner)))
        position += 1
    return row


def rows_of(batch: Batch) -> list[list[tuple[int, int, int, int, float]]]:
    parts = (batch.tokens.ids, batch.tokens.pos, batch.tokens.doc, batch.targets, batch.weight)
    return [list(zip(*(part[b].tolist() for part in parts), strict=True)) for b in range(len(batch.targets))]


def bounds_of(batch: Batch) -> list[int]:
    """Where documents begin in the flattened batch, from the tokens alone: the layout must say the same."""
    bounds = []
    for b, documents in enumerate(batch.tokens.doc.tolist()):
        for t, document in enumerate(documents):
            if t == 0 or document != documents[t - 1]:
                bounds.append(b * len(documents) + t)
    return [*bounds, batch.tokens.doc.numel()]


def check_layout(batch: Batch) -> None:
    bounds = bounds_of(batch)
    if isinstance(batch.layout, OneDocument):
        assert len(bounds) == len(batch.targets) + 1
    else:
        assert isinstance(batch.layout, Packed)
        assert list(batch.layout.cu_seqlens) == bounds
        assert batch.layout.longest == max(b - a for a, b in pairwise(bounds))


def starts_of(batch: Batch) -> list[int]:
    return [int(name.rpartition("@")[2]) for name in batch.sample_ids]


def text_batches(texts: list[list[int]], row_tokens: int, rows: int, seed: int) -> TextBatches | None:
    shard = shard_of(texts)
    return None if shard.n_tokens <= row_tokens else TextBatches(shard, row_tokens, rows, seed)


# Numbering by owner would skip empty documents, which have no token: the reference gets none.
@given(documents, st.integers(1, 8), st.integers(1, 5), st.integers(0, 9), st.integers(0, 40))
def test_every_row_equals_a_slow_reference(texts, row_tokens, rows, seed, index):
    batches = text_batches(texts, row_tokens, rows, seed)
    if batches is None:
        return
    batch = batches.batch(index)
    full = [text for text in texts if text]
    assert rows_of(batch) == [slow_row(full, start, row_tokens) for start in starts_of(batch)]
    check_layout(batch)


def test_the_reference_finds_a_leak():
    texts = [[1, 2, 3], [4, 5, 6]]
    leaking = TextBatches(shard_of(texts), 5, 1, 0, cross_documents=True).batch(0)
    assert rows_of(leaking)[0] != slow_row(texts, 0, 5)
    assert leaking.layout == OneDocument()
    assert leaking.weight.sum() == 5
    kept_apart = TextBatches(shard_of(texts), 5, 1, 0).batch(0)
    assert rows_of(kept_apart)[0] == slow_row(texts, 0, 5)
    assert kept_apart.weight.tolist() == [[1, 1, 0, 1, 1]]
    assert kept_apart.layout == Packed((0, 3, 5), 3)


@given(st.integers(20, 200), st.integers(1, 9), st.integers(1, 7), st.integers(0, 5))
def test_an_epoch_visits_every_window_once(n_tokens, row_tokens, rows, seed):
    batches = TextBatches(shard_of([list(range(n_tokens))]), row_tokens, rows, seed)
    n = batches.rows_per_epoch
    starts = [start for index in range(2 * n) for start in starts_of(batches.batch(index))]
    for epoch in (0, 1):
        seen = sorted(starts[epoch * n : (epoch + 1) * n])
        assert [b - a for a, b in pairwise(seen)] == [row_tokens] * (n - 1)
        assert seen[0] >= 0
        assert seen[-1] + row_tokens < n_tokens
    assert n_tokens - n * row_tokens < 2 * row_tokens + 1


def test_every_token_is_a_target_in_some_epoch():
    batches = TextBatches(shard_of([list(range(50))]), 8, 1, 3)
    seen = {t for index in range(40 * batches.rows_per_epoch) for t in batches.batch(index).targets[0].tolist()}
    assert seen == set(range(1, 50))


def equal(a: Batch, b: Batch) -> bool:
    same = all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
    return same and a.layout == b.layout and a.sample_ids == b.sample_ids


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [batch.tokens.ids, batch.tokens.pos, batch.tokens.doc, batch.targets, batch.weight]


def makers() -> list:
    texts = [list(range(n, n + 7 + n % 5)) for n in range(60)]
    chats = [Rendered(list(range(n, n + 4 + n % 9)), [i % 3 > 0 for i in range(4 + n % 9)]) for n in range(50)]
    return [
        lambda seed: TextBatches(shard_of(texts), 16, 6, seed),
        lambda seed: ChatBatches(chats, 16, 6, seed),
    ]


@pytest.mark.parametrize("make", makers(), ids=["text", "chat"])
def test_a_batch_depends_on_seed_and_index_alone(make):
    used = make(5)
    for index in (40, 3, 17, 3, 0):
        used.batch(index)
    assert all(equal(used.batch(index), make(5).batch(index)) for index in (0, 3, 17, 40))
    assert not equal(make(5).batch(3), make(6).batch(3))
    assert not equal(make(5).batch(3), make(5).batch(4))


@pytest.mark.parametrize("make", makers(), ids=["text", "chat"])
@pytest.mark.parametrize("micro_rows", [1, 2, 4, 6])
def test_micro_batches_are_the_rows_of_the_global_batch(make, micro_rows):
    whole = make(1).batch(7)
    parts = [slice_rows(whole, first, min(first + micro_rows, 6)) for first in range(0, 6, micro_rows)]
    for number, tensor in enumerate(tensors(whole)):
        assert torch.equal(torch.cat([tensors(part)[number] for part in parts]), tensor)
    for part in parts:
        check_layout(part)


def test_a_shard_of_one_document_is_never_packed():
    batches = TextBatches(shard_of([list(range(300))]), 16, 4, 0)
    assert all(batches.batch(index).layout == OneDocument() for index in range(30))
    assert any(isinstance(TextBatches(shard_of([[1] * 30] * 10), 16, 4, 0).batch(i).layout, Packed) for i in range(30))


def test_too_little_text_for_a_row_is_refused():
    with pytest.raises(DataError, match="expected at least 9 tokens"):
        TextBatches(shard_of([[1] * 8]), 8, 1, 0)
    assert TextBatches(shard_of([[1] * 9]), 8, 1, 0).batch(0).targets.shape == (1, 8)


@given(documents, st.integers(1, 8), st.integers(1, 4))
def test_windows_make_every_token_but_the_first_a_target_once(texts, row_tokens, rows):
    shard = shard_of(texts)
    full, stream = [text for text in texts if text], [token for text in texts for token in text]
    batches = windows(shard, row_tokens, rows)
    assert [t for batch in batches for row in batch.targets.tolist() for t in row] == stream[1:]
    for batch in batches:
        width = batch.targets.shape[1]
        assert rows_of(batch) == [slow_row(full, start, width) for start in starts_of(batch)]
        check_layout(batch)
    assert len(list(batches)) == len(batches)
    inside = sum(max(0, len(text) - 1) for text in texts)
    assert sum(float(batch.weight.sum()) for batch in batches) == inside


def slow_chat_row(row: list[Rendered], row_tokens: int) -> list[tuple[int, int, int, int, float]]:
    places = []
    for number, conversation in enumerate(row):
        ids, trained = conversation.ids[: row_tokens + 1], conversation.trained[: row_tokens + 1]
        for place in range(len(ids) - 1):
            places.append((ids[place], place, number, ids[place + 1], float(trained[place + 1])))
    return places + [(0, 0, PADDING, 0, 0.0)] * (row_tokens - len(places))


tokens_and_masks = st.lists(st.tuples(st.integers(1, 99), st.booleans()), min_size=1, max_size=14)


@given(st.lists(tokens_and_masks, min_size=1, max_size=20), st.integers(2, 12), st.integers(1, 4), st.integers(0, 9))
def test_conversations_are_packed_whole_and_once_an_epoch(pairs, row_tokens, rows, seed):
    rendered = [Rendered([i for i, _ in pair], [t for _, t in pair]) for pair in pairs]
    kept = [n for n, one in enumerate(rendered) if any(one.trained[1 : row_tokens + 1])]
    if not kept:
        with pytest.raises(DataError, match="a token to learn"):
            ChatBatches(rendered, row_tokens, rows, seed)
        return
    batches = ChatBatches(rendered, row_tokens, rows, seed)
    assert batches.n_left_out == len(rendered) - len(kept)
    assert batches.n_cut == sum(len(one.ids) > row_tokens + 1 for one in rendered)
    epoch = []
    for index in range(-(-batches.rows_per_epoch // rows)):
        batch = batches.batch(index)
        check_layout(batch)
        for name, row in zip(batch.sample_ids, rows_of(batch), strict=True):
            numbers = [int(word) for word in name.removeprefix("conversations ").split("+")]
            assert row == slow_chat_row([rendered[n] for n in numbers], row_tokens)
            epoch.append(numbers)
    assert sorted(n for numbers in epoch[: batches.rows_per_epoch] for n in numbers) == kept


def test_an_untrained_token_is_never_a_target_with_weight():
    rendered = [Rendered([1, 2, 3, 4, 5], [False, False, True, False, True])]
    batch = ChatBatches(rendered, 6, 1, 0).batch(0)
    assert batch.targets[0].tolist() == [2, 3, 4, 5, 0, 0]
    assert batch.weight[0].tolist() == [0, 1, 0, 1, 0, 0]  # unshifted it would read 0 0 1 0 1


def test_first_fit_leaves_little_padding():
    chats = [Rendered([1] * (20 + 37 * n % 200), [True] * (20 + 37 * n % 200)) for n in range(400)]
    batches = ChatBatches(chats, 512, 4, 0)
    tokens = sum(len(one.ids) - 1 for one in chats)
    assert tokens / (512 * batches.rows_per_epoch) > 0.95
    alone = len(chats) * 512
    assert tokens / alone < 0.3  # what one conversation a row would give


def test_the_digest_of_conversations_follows_everything_that_decides_a_batch():
    def chat(token: int, trained: bool) -> list[Rendered]:
        return [Rendered([1, token, 3], [False, trained, True]), Rendered([4, 5], [False, True])]

    digests = [
        ChatBatches(chat(2, True), 8, 2, 0).digest,
        ChatBatches(chat(7, True), 8, 2, 0).digest,
        ChatBatches(chat(2, False), 8, 2, 0).digest,
        ChatBatches(chat(2, True), 9, 2, 0).digest,
        ChatBatches(chat(2, True), 8, 3, 0).digest,
        ChatBatches(chat(2, True), 8, 2, 1).digest,
    ]
    assert len(set(digests)) == 6
    assert ChatBatches(chat(2, True), 8, 2, 0).digest == digests[0]


def fastest_ms(shard: Shard, row_tokens: int, rows: int) -> float:
    batches = TextBatches(shard, row_tokens, rows, 0)
    batches.batch(0)
    times = []
    for index in range(300):
        began = time.process_time()
        batches.batch(index)
        times.append(time.process_time() - began)
    return 1000 * sorted(times)[len(times) // 4]


def test_a_batch_costs_little_beside_a_training_step():
    assert fastest_ms(shard_of([[1] * 1_000_000]), 64, 12) < 0.3
    assert fastest_ms(shard_of([[1] * (300 + 97 * n % 9000) for n in range(300)]), 512, 8) < 2
