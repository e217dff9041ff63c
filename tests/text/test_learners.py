"""Training WordPiece, Unigram and word tokenizers: sizes, loss, determinism, bounds."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest
import tokenizers

from fledge.errors import ConfigError, TokenizerError
from fledge.text import training_text
from fledge.text.config import TokenizerTrainConfig
from fledge.text.learners import BERT_SPECIAL, train_unigram, train_wordpiece, train_words
from fledge.text.stream import TextStream
from fledge.text.tokenizer import Tokenizer
from fledge.text.train import train_tokenizer
from tests.text.samples import random_texts, source_text

KINDS = ("wordpiece", "unigram", "normalising", "word")


@functools.cache
def made(kind: str, vocab_size: int = 800) -> Tokenizer:
    makers = {
        "wordpiece": train_wordpiece,
        "unigram": train_unigram,
        "normalising": functools.partial(train_unigram, lossless=False),
        "word": train_words,
    }
    return makers[kind]([source_text()], vocab_size)


@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_vocabulary_makes_fewer_tokens_within_its_size(kind):
    text = source_text()
    small, large = made(kind, 500), made(kind, 800)
    assert small.vocab_size <= 500 < large.vocab_size <= 800
    unknown = [one.encode(text).count(one.special["unk"]) for one in (small, large)]
    assert len(large.encode(text)) < len(small.encode(text)) or unknown[1] < unknown[0]


def test_lossless_unigram_gives_every_text_back_and_the_other_does_not():
    texts = random_texts(3000, seed=40)
    assert [made("unigram").decode(made("unigram").encode(text)) for text in texts] == texts
    normalising = made("normalising")
    assert [normalising.decode(normalising.encode(text)) for text in texts] != texts


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_gives_the_text_that_decoding_gives(kind):
    tokenizer = made(kind)
    for text in random_texts(300, seed=41):
        ids = tokenizer.encode(text)
        stream = TextStream(tokenizer)
        assert "".join([*map(stream.push, ids), stream.finish()]) == tokenizer.decode(ids)


def test_scripts_without_spaces_have_pieces_of_several_characters():
    text = (
        "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。" * 30
        + "何でも薄暗い猫がいる猫である所" * 20
    )
    tokenizer = train_unigram([text], 400)
    assert len(tokenizer.encode("吾輩は猫である")) < 7


def test_pieces_and_words_are_those_of_the_text():
    word = made("word")
    assert word.token_of(0) == max(["the", "self"], key=lambda w: source_text().count(w)) or word.id_of("self")
    pieces = [made("wordpiece").token_of(i) for i in range(made("wordpiece").vocab_size)]
    assert pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] and "##ing" in pieces
    assert made("wordpiece").encode("zzzzing")[-1] == pieces.index("##ing")


SCRIPT = """
from tests.text.samples import source_text
from fledge.text.learners import train_wordpiece, train_words
print(train_wordpiece([source_text()], 700).digest, train_words([source_text()], 700).digest)
"""


def test_wordpiece_and_words_don_t_depend_on_the_process_or_its_threads():
    found = set()
    for seed, parallel in (("0", "false"), ("1", "true"), ("2", "true")):
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": parallel, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment
        )
        found.add(done.stdout)
    assert len(found) == 1


TIES = [" ".join(f"{a}{b}{c}" for a in "abcdefghij" for b in "klmnopqrst" for c in "uvwxyz")] * 2  # each pair as often


def library_wordpiece(texts: list[str], vocab_size: int, lowercase: bool = False) -> tokenizers.Tokenizer:
    learner = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    learner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=vocab_size, show_progress=False, min_frequency=2, special_tokens=list(BERT_SPECIAL)
    )
    learner.train_from_iterator(texts, trainer)
    return learner


def test_wordpiece_breaks_ties_the_same_each_time_and_the_library_by_chance():
    assert len({train_wordpiece(TIES, 200).digest for _ in range(5)}) == 1
    assert len({frozenset(library_wordpiece(TIES, 200).get_vocab()) for _ in range(5)}) > 1, "the control"


def test_wordpiece_learns_from_a_list_a_generator_and_cut_texts_the_same(monkeypatch):
    monkeypatch.setattr(training_text, "PART_CHARACTERS", 1 << 20)  # cuts no word
    text = source_text()
    whole = train_wordpiece([text], 700).digest
    assert train_wordpiece(iter([text]), 700).digest == whole
    assert train_wordpiece(text.split("\n"), 700).digest == whole
    assert train_wordpiece(["", text.replace("\n", "\r\n")], 700).digest == whole
    assert train_wordpiece([text, "other words " * 50], 700).digest != whole, "the control"


@pytest.mark.parametrize("lowercase", [False, True])
def test_wordpiece_has_the_librarys_pieces_but_for_ties(lowercase):
    text = source_text()
    theirs, ours = library_wordpiece([text], 1200, lowercase), train_wordpiece([text], 1200, lowercase)
    known, mine = set(theirs.get_vocab()), {ours.token_of(i) for i in range(ours.vocab_size)}
    assert len(mine) == 1200 and len(known & mine) > 0.9 * len(mine)
    n_theirs = len(theirs.encode(text).ids)
    assert abs(len(ours.encode(text)) - n_theirs) < 0.005 * n_theirs


@pytest.mark.parametrize("lowercase", [False, True])
def test_wordpiece_knows_each_character_that_its_normaliser_leaves_and_no_other(lowercase):
    texts = [*random_texts(400, seed=42), "\u0130stanbul \u01c5 \ufb01 \u1e9e \u03a3\u03a3 \uac00\u0301 a.\u4e2d"]
    ours = train_wordpiece(texts, 20_000, lowercase)
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    expected = set("".join("".join(normalizer.normalize_str(text).split()) for text in texts))
    tokens = {ours.token_of(i) for i in range(ours.vocab_size)} - set(BERT_SPECIAL)
    assert {token for token in tokens if len(token) == 1} == expected
    inner = {token[2:] for token in tokens if token.startswith("##") and len(token) == 3}
    assert inner < expected and "." in expected - inner and "\u4e2d" not in inner
    assert ours.special["unk"] not in ours.encode(" ".join(texts))


@pytest.mark.parametrize("train", [train_wordpiece, train_unigram, train_words])
def test_a_size_without_room_is_refused(train):
    with pytest.raises(ConfigError, match="vocab_size: expected at least"):
        train(["x"], 5)


def test_more_characters_than_unigram_has_room_for_are_refused_with_the_remedy():
    text = " ".join(chr(0x4E00 + i) + chr(0x4E01 + i) for i in range(600))
    with pytest.raises(
        ConfigError, match="vocab_size: expected room for each character .* 264 fixed ids, got 500; ask"
    ):
        train_unigram([text], 500)


@pytest.mark.parametrize("train", [train_unigram, train_words])
def test_no_text_is_refused(train):
    with pytest.raises(TokenizerError, match="expected text with words"):
        train([], 600)


@pytest.mark.parametrize("character", ["x", "中", " ", "\n", "\u3000"])
@pytest.mark.parametrize("before", [0, 1, 499, 500, 777])
def test_long_runs_are_cut_wherever_they_begin(character, before):
    other = "a" if character.isspace() else " "
    for length in (999, 1000, 2500):
        text = other * before + character * length + other * 3
        parts = list(training_text.in_short_runs([text]))
        assert "".join(parts) == text and len(parts) == 1 + length // 1000


def test_more_text_than_the_budget_is_sampled_from_everywhere(capsys):
    texts = [chr(0x4E00 + i) * 60_000 for i in range(100)]
    n_bytes = sum(len(text.encode()) for text in texts)
    kept = list(training_text.within(iter(texts), n_bytes // 4, n_bytes))
    n_kept = sum(len(text.encode()) for text in kept)
    assert n_bytes // 8 < n_kept <= n_bytes // 4
    assert ord(kept[0][0]) - 0x4E00 < 25 and ord(kept[-1][0]) - 0x4E00 > 75
    assert kept == list(training_text.within(iter(texts), n_bytes // 4, n_bytes))
    assert list(training_text.within(iter(texts), n_bytes, n_bytes)) == texts, "the control: all of what fits"
    assert sum(len(text.encode()) for text in training_text.within(iter(texts), n_bytes // 4)) <= n_bytes // 4


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "word"])
def test_the_verb_trains_each_kind_and_reuses_it(kind, tmp_path):
    (tmp_path / "t.txt").write_text(source_text())
    chosen = TokenizerTrainConfig(tmp_path / "t.txt", tmp_path / "out", kind=kind, vocab_size=600)
    result = train_tokenizer(chosen, json=True)
    assert result["kind"] == kind and result["vocab_size"] <= 600 and not result["reused"]
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert tokenizer.digest == result["tokenizer_digest"]
    assert ("bos" in tokenizer.special) == (kind != "wordpiece")
    assert train_tokenizer(chosen, json=True)["reused"]
