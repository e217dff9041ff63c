"""Masked tokens: the published rates, whole words, and nothing but the key decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, DataCollatorForLanguageModeling

from fledge.batch import OneDocument, Packed, Padded, slice_rows
from fledge.data import keyed
from fledge.data import segments as segmenting
from fledge.data.keyed_batches import EveryRow
from fledge.data.masked_batches import MaskedBatches
from fledge.data.masking import MaskingConfig, MaskVocabulary, continuations, mask_vocabulary, masked, words_of
from fledge.data.segments import Segments
from fledge.data.shards import shard_of
from fledge.errors import ConfigError
from fledge.text.tokenizer import byte_level, characters
from fledge.text.train import train_bpe
from tests.data.corrupted import chi_square, stories, story, wordpiece

# Quantile of the chi-square distribution at p = 0.001, for 3 degrees of freedom.
CHI_3 = 16.27


def rows_of_ids(n: int, length: int = 128) -> list[np.ndarray]:
    tokenizer = wordpiece()
    ids = np.array(tokenizer.encode(story(7, 4000)))
    return [ids[i * length : (i + 1) * length] for i in range(n)]


def fates(config: MaskingConfig, n: int = 150) -> np.ndarray:
    """How many tokens were not chosen, became the mask, became another token, stayed (or were drawn as themselves)."""
    vocabulary = mask_vocabulary(wordpiece())
    counts = np.zeros(4, int)
    for number, ids in enumerate(rows_of_ids(n)):
        inputs, chosen = masked(ids, vocabulary, config, 1, 0, number)
        assert (inputs[~chosen] == ids[~chosen]).all()
        is_mask, same = inputs == vocabulary.mask_id, inputs == ids
        counts += [(~chosen).sum(), (chosen & is_mask).sum(), (chosen & ~is_mask & ~same).sum(), (chosen & same).sum()]
    return counts


def expected_shares(rate: float, masks: float, randoms: float) -> np.ndarray:
    same = 1 / len(mask_vocabulary(wordpiece()).ordinary)  # a random token may be the one that stood there
    return np.array(
        [1 - rate, rate * masks, rate * randoms * (1 - same), rate * (1 - masks - randoms + randoms * same)]
    )


def test_of_19200_tokens_15_percent_are_chosen_80_10_10():
    counts = fates(MaskingConfig())
    assert counts.sum() == 19200
    assert chi_square(counts, expected_shares(0.15, 0.8, 0.1)) < CHI_3


@pytest.mark.parametrize("other", [(0.17, 0.8, 0.1), (0.15, 0.7, 0.2), (0.15, 0.9, 0.05)])
def test_other_rates_are_told_apart(other):
    """The control."""
    assert chi_square(fates(MaskingConfig(*other)), expected_shares(0.15, 0.8, 0.1)) > CHI_3


ALWAYS_MASK = "ignore:Random token replacement is not supported with whole word masking"


@pytest.mark.filterwarnings(ALWAYS_MASK)
@pytest.mark.parametrize("whole", [False, True])
def test_the_rates_are_those_of_transformers_collator(tmp_path, whole):
    """Not chosen, masked, otherwise changed or kept: our counts and theirs are of one distribution. Whole words it
    always masks, so there ours do too."""
    wordpiece().save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    collator = DataCollatorForLanguageModeling(theirs, mlm_probability=0.15, whole_word_mask=whole, seed=3)
    vocabulary = mask_vocabulary(wordpiece(), whole)
    config = MaskingConfig(whole_words=True, masks=1.0, randoms=0.0) if whole else MaskingConfig()
    ours, their = np.zeros(3, int), np.zeros(3, int)
    text = story(7, 4000).split(". ")
    rows = [theirs(". ".join(text[i * 8 : i * 8 + 8]), return_offsets_mapping=whole, truncation=True,
                   max_length=56) for i in range(200)]  # fmt: skip
    batch = collator([dict(row) for row in rows])
    for number, row in enumerate(rows):
        ids = np.array(row["input_ids"])
        inputs, chosen = masked(ids, vocabulary, config, 1, 0, number)
        n = len(ids) - 2  # without [CLS] and [SEP]
        is_mask = inputs == vocabulary.mask_id
        ours += [n - chosen.sum(), (chosen & is_mask).sum(), (chosen & ~is_mask).sum()]
        labels, given = batch["labels"][number].numpy(), batch["input_ids"][number].numpy()
        there, is_mask = labels != -100, given == vocabulary.mask_id
        their += [n - there.sum(), (there & is_mask).sum(), (there & ~is_mask).sum()]
    table = np.array([ours, their])[:, : 2 if whole else 3]
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    statistic = ((table - expected) ** 2 / expected).sum()
    # p = 0.001 at 2 degrees; a word's tokens are chosen together, which multiplies the variance by its length
    assert statistic < (3 * 10.83 if whole else 13.82)


@pytest.mark.filterwarnings(ALWAYS_MASK)
def test_whole_words_are_those_of_transformers_collator(tmp_path):
    wordpiece().save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    collator = DataCollatorForLanguageModeling(theirs, whole_word_mask=True)
    vocabulary = mask_vocabulary(wordpiece(), whole_words=True)
    text = "The lighthouse keeper questioned seventeen wandering dogs remembered by Felix"
    row = theirs(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    ids = np.array(row["input_ids"])
    their, _ = collator._calc_word_ids_and_prob_mask(
        np.array([row["offset_mapping"]]), np.array([row["special_tokens_mask"]])
    )
    their = their[0]
    ours = words_of(ids, vocabulary)
    inside = slice(1, -1)
    assert len(ids) > 2 + len(text.split())  # some words have several tokens
    assert ((np.diff(ours[inside]) > 0) == (np.diff(their[inside]) > 0)).all()
    assert not (
        (np.diff(words_of(ids, mask_vocabulary(wordpiece()))[inside]) > 0) == (np.diff(their[inside]) > 0)
    ).all()


def test_a_word_is_chosen_whole_or_not_at_all():
    vocabulary = mask_vocabulary(wordpiece(), whole_words=True)
    split = 0
    for number, ids in enumerate(rows_of_ids(60)):
        words = words_of(ids, vocabulary)
        chosen = masked(ids, vocabulary, MaskingConfig(whole_words=True), number)[1]
        shares = np.bincount(words, chosen) / np.bincount(words)
        assert set(shares) <= {0.0, 1.0}
        loose = masked(ids, mask_vocabulary(wordpiece()), MaskingConfig(), number)[1]
        split += len(set(np.bincount(words, loose) / np.bincount(words)) - {0.0, 1.0})
    assert split > 60  # the control: single tokens do split words


def test_words_of_byte_level_bpe_begin_with_a_space():
    tokenizer = train_bpe([story(n, 60) for n in range(20)], 330)
    ids = np.array(tokenizer.encode("Anna followed seventeen\nbicycles quietly."))
    vocabulary = MaskVocabulary(0, np.zeros(tokenizer.vocab_size, bool), ids, continuations(tokenizer))
    words = words_of(ids, vocabulary)
    texts = [tokenizer.decode(ids[words == number].tolist()) for number in range(words[-1] + 1)]
    assert len(ids) > len(texts)
    assert texts[:3] == ["Anna", " followed", " seventeen"] and texts[-1] == " quietly."
    assert "".join(texts[3:-1]) == "\nbicycles"


@pytest.mark.parametrize("tokenizer", [byte_level(), characters("abc")], ids=["bytes", "characters"])
def test_tokenizers_that_mark_no_words_are_refused(tokenizer):
    with pytest.raises(ConfigError, match="expected a tokenizer that marks words, got one of kind"):
        continuations(tokenizer)


def test_a_tokenizer_without_a_mask_is_refused():
    with pytest.raises(ConfigError, match="expected a mask token"):
        mask_vocabulary(byte_level())


def test_special_tokens_are_never_chosen_and_never_drawn():
    tokenizer = wordpiece()
    roles = tokenizer.special
    vocabulary = mask_vocabulary(tokenizer)
    special = {roles[name] for name in ("cls", "sep", "pad", "mask")}
    assert not special & set(vocabulary.ordinary.tolist())
    ids = np.array([roles["cls"], *([roles["unk"], 30, 31, 32] * 40), roles["sep"], roles["pad"], roles["mask"]])
    config = MaskingConfig(rate=0.9, masks=0.0, randoms=1.0)
    for number in range(50):
        inputs, chosen = masked(ids, vocabulary, config, number)
        assert not set(ids[chosen].tolist()) & (special | {roles["unk"]}) and chosen.sum() > 80
        assert not set(inputs[chosen].tolist()) & special


def test_the_key_decides_and_another_epoch_masks_otherwise():
    shard, tokenizer = stories(5), wordpiece()
    make = lambda **more: MaskedBatches(shard, tokenizer, MaskingConfig(**more), 64, 4, seed=1)  # noqa: E731
    dynamic, fixed = make(), make(dynamic=False)
    again = dynamic.batch(3)
    dynamic.batch(9)
    assert torch.equal(make().batch(3).tokens.ids, again.tokens.ids)
    assert torch.equal(make().batch(3).weight, again.weight)
    for batches, same in ((dynamic, False), (fixed, True)):
        epochs = [batches.made([(epoch, row) for row in range(batches.rows_per_epoch)]) for epoch in (0, 1)]
        assert torch.equal(epochs[0].targets, epochs[1].targets)
        assert torch.equal(epochs[0].tokens.ids, epochs[1].tokens.ids) == same


def test_every_epoch_shows_every_token_once_as_a_target():
    """Packed and padded, over two epochs and a batch that straddles them."""
    long, short, tokenizer = stories(4, 13), stories(9, 2), wordpiece()
    shard = shard_of([part.document(n) for part in (long, short) for n in range(part.n_documents)])
    everything = np.sort(np.asarray(shard.tokens))
    for layout, kind in (("packed", Packed), ("padded", Padded)):
        batches = MaskedBatches(shard, tokenizer, MaskingConfig(), 64, 3, 1, layout)
        seen, unlike = [], set()
        for index in range(2 * batches.rows_per_epoch):
            batch = batches.batch(index)
            unlike.add(type(batch.layout))
            seen += [row[doc >= 0] for row, doc in zip(batch.targets, batch.tokens.doc, strict=True)]
        assert kind in unlike and len(seen) == 6 * batches.rows_per_epoch
        for epoch in range(6):
            rows = torch.cat(seen[epoch * batches.rows_per_epoch : (epoch + 1) * batches.rows_per_epoch]).numpy()
            text = rows[~np.isin(rows, [tokenizer.special["cls"], tokenizer.special["sep"]])]
            assert np.array_equal(np.sort(text), everything)


def test_a_row_is_framed_and_weighs_what_was_chosen():
    tokenizer = wordpiece()
    batch = MaskedBatches(stories(4), tokenizer, MaskingConfig(), 48, 4, 1).batch(0)
    starts = batch.tokens.pos == 0
    there = batch.tokens.doc >= 0
    assert (batch.targets[starts & there] == tokenizer.special["cls"]).all()
    changed = (batch.tokens.ids != batch.targets) & there
    assert (batch.weight[changed] == 1).all() and (batch.weight[~there] == 0).all() and batch.weight.sum() > 10
    part = slice_rows(batch, 1, 3)
    assert torch.equal(part.targets, batch.targets[1:3]) and part.sample_ids == batch.sample_ids[1:3]


def test_full_rows_are_one_document_and_validation_never_changes():
    shard = stories(1, 400)
    batches = MaskedBatches(shard, wordpiece(), MaskingConfig(), 32, 4, 1)
    assert isinstance(batches.made([(0, 0), (0, 1)]).layout, OneDocument)
    one, two = EveryRow(batches), EveryRow(MaskedBatches(shard, wordpiece(), MaskingConfig(), 32, 4, 1))
    assert sum(len(batch.targets) for batch in one) == batches.rows_per_epoch
    assert all(torch.equal(a.tokens.ids, b.tokens.ids) for a, b in zip(one, two, strict=True))


def test_keyed_draws_are_uniform_compositions_and_poisson():
    counts = np.bincount(keyed.below(8, 8000, "a"), minlength=8)
    assert chi_square(counts, np.full(8, 1 / 8)) < 24.32  # p = 0.001, 7 degrees
    assert chi_square(np.bincount(keyed.below(8, 8000, "a") // 2 * 2, minlength=8) + 1, np.full(8, 1 / 8)) > 24.32
    found = [tuple(keyed.composition(5, 3, "c", n)) for n in range(3000)]
    kinds = sorted(set(found))
    assert kinds == [(1, 1, 3), (1, 2, 2), (1, 3, 1), (2, 1, 2), (2, 2, 1), (3, 1, 1)]
    assert chi_square(np.array([found.count(kind) for kind in kinds]), np.full(6, 1 / 6)) < 20.52  # 5 degrees
    draws = keyed.poisson(3.0, 20000, "p")
    shares = np.exp(-3.0) * np.array([1, 3, 4.5, 4.5, 3.375, 2.025, 1.0125])
    shares = np.append(shares, 1 - shares.sum())
    assert chi_square(np.bincount(np.minimum(draws, 7), minlength=8), shares) < 24.32


def test_bad_rates_are_refused():
    for wrong in ({"rate": 0.0}, {"rate": 1.0}, {"masks": 0.9, "randoms": 0.2}, {"masks": -0.1}):
        with pytest.raises(ConfigError, match="masking"):
            MaskingConfig(**wrong)


def test_many_short_documents_are_packed_in_time_that_grows_with_their_number(monkeypatch):
    tokenizer = wordpiece()
    documents = [[40 + n % 7] * (1 + n % 9) for n in range(600)]
    segments = Segments(shard_of(documents), tokenizer, 20)
    whole = segments.packed(22, 2)
    monkeypatch.setattr(segmenting, "PACKED_AT_ONCE", 50)
    parts = segments.packed(22, 2)
    for rows in (whole, parts):
        assert sorted(number for row in range(len(rows)) for number in rows[row]) == list(range(600))
        assert all(sum(int(segments.lengths[n]) + 2 for n in rows[row]) <= 22 for row in range(len(rows)))
    assert len(whole) <= len(parts) < 1.2 * len(whole)
