"""Trials 33 and 34 for every kind of tokenizer: hostile files and long runs cost little; text is never control."""

from __future__ import annotations

import base64
import functools
import json
import os
import struct
import time
from pathlib import Path

import pytest

from fledge.errors import FledgeError, TokenizerError
from fledge.text.charsmap import read_charsmap
from fledge.text.learners import train_unigram, train_wordpiece, train_words
from fledge.text.sentencepiece_model import Piece, PieceModel, parse_model, read_model, write_model
from fledge.text.sentencepiece_tree import tree_of
from fledge.text.special_tokens import SPECIAL_TOKENS
from fledge.text.tokenizer import Tokenizer, characters, from_text
from tests.text.published import loaded
from tests.text.samples import small_bpe, source_text

SECONDS = 2.0
MEGABYTE = 1_000_000
PUBLISHED = ("llama2/tokenizer.model", "sentencepiece_test/test_model.model", "gpt2/encoder.json")
TRAINED = ("bpe", "wordpiece", "uncased", "unigram", "normalising", "word", "characters")


@functools.cache
def trained(kind: str) -> Tokenizer:
    text = [source_text()]
    makers = {
        "bpe": small_bpe,
        "wordpiece": lambda: train_wordpiece(text, 700, special=SPECIAL_TOKENS),
        "uncased": lambda: train_wordpiece(text, 700, lowercase=True),
        "unigram": lambda: train_unigram(text, 700),
        "normalising": lambda: train_unigram(text, 700, lossless=False),
        "word": lambda: train_words([*text, "<unk> [UNK] eos bos"], 700),
        "characters": lambda: characters(source_text(), SPECIAL_TOKENS),
    }
    return makers[kind]()


def every(name: str, data_file) -> Tokenizer:
    return trained(name) if name in TRAINED else loaded(data_file(f"conf_tokenizers/{name}"))


@pytest.mark.parametrize("name", [*TRAINED, *PUBLISHED])
@pytest.mark.parametrize("unit", ["a", "中", " ."])
def test_a_megabyte_of_one_character_takes_at_most_two_seconds(name, unit, data_file):
    tokenizer = every(name, data_file)
    text = unit * (MEGABYTE // len(unit.encode()))
    began = time.process_time()
    tokenizer.encode(text)
    assert time.process_time() - began < SECONDS


SPELLINGS = (
    *SPECIAL_TOKENS,
    *("<|unk|>", "<unk>", "<s>", "</s>", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]", "<0x0A>", "<|endoftext|>"),
)


@pytest.mark.parametrize("name", [*TRAINED, *PUBLISHED])
def test_special_tokens_in_a_text_stay_text(name, data_file):
    tokenizer = every(name, data_file)
    unknown = tokenizer.special.get("unk")
    for spelling in SPELLINGS:
        for text in (spelling, f"a{spelling}b", f" {spelling} {spelling}", f"x {spelling}\n"):
            for ids in (
                tokenizer.encode(text),
                tokenizer.encode_array(text).tolist(),
                tokenizer.encode_batch([text])[0],
            ):
                assert [i for i in ids if tokenizer.is_special(i) and i != unknown] == [], text
                if name == "unigram":
                    assert unknown not in ids, "what has no piece is bytes, the letters of `unk` too"
            if name in ("bpe", "unigram"):
                assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_library_underneath_would_have_let_them_in():
    for kind in ("bpe", "unigram", "word", "wordpiece"):
        tokenizer = trained(kind)
        found = tokenizer.trusted.encode("a <|eos|> b", add_special_tokens=False).ids
        assert tokenizer.eos_id in found and tokenizer.eos_id not in tokenizer.encode("a <|eos|> b")


def unigram(vocab: list, **more) -> str:
    model = {"type": "Unigram", "unk_id": 0, "vocab": vocab, **more}
    return json.dumps({"version": "1.0", "added_tokens": [], "decoder": {"type": "Fuse"}, "model": model})


def wordpiece(**more) -> str:
    usual = {"unk_token": "u", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    return json.dumps({"added_tokens": [], "model": {"type": "WordPiece", "vocab": {"u": 0, "a": 1}, **usual, **more}})


def with_charsmap(blob: bytes) -> str:
    tree = json.loads(unigram([["u", 0.0], ["a", -1.0]]))
    tree["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(blob).decode()}
    return json.dumps(tree)


HOSTILE = {
    "unigram: an id for the unknown out of range": (unigram([["a", 0.0]], unk_id=7), "unk_id"),
    "unigram: none for the unknown": (unigram([["a", 0.0]], unk_id=None), "unk_id"),
    "unigram: a piece twice": (unigram([["a", 0.0], ["a", -1.0]]), "expected 'a' once"),
    "unigram: an empty piece": (unigram([["a", 0.0], ["", -1.0]]), "expected a piece"),
    "unigram: a score beyond numbers": (unigram([["a", 1e300]]), "finite"),
    "unigram: a score that is true": (unigram([["a", True]]), "finite"),
    "unigram: pieces that take quadratic time": (
        unigram([["u", 0.0], *(["a" * n, -float(n)] for n in range(1, 250))]),
        "too slow",
    ),
    "unigram: a piece of a million characters": (unigram([["a" * MEGABYTE, 0.0]]), "expected a piece"),
    "wordpiece: words that take quadratic time": (
        wordpiece(max_input_chars_per_word=10**9),
        "max_input_chars_per_word",
    ),
    "wordpiece: none for the unknown": (wordpiece(unk_token="x"), "unk_token"),
    "charsmap: no base64": (with_charsmap(b"").replace('map": ""', 'map": "%"'), "base64"),
    "charsmap: a trie beyond the end": (with_charsmap(struct.pack("<I", 1 << 30)), "damaged"),
    "charsmap: a replacement that blows up": (
        with_charsmap(struct.pack("<II", 4, 0) + b"a" * 100_000 + b"\0"),
        "at most 64 bytes",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_time(name):
    text, message = HOSTILE[name]
    began = time.process_time()
    with pytest.raises(TokenizerError, match=message):
        from_text(text)
    assert time.process_time() - began < SECONDS


def test_the_same_files_without_the_evil_load():
    assert from_text(unigram([["u", 0.0], ["a", -1.0]])).encode("ab") == [1, 0]
    assert from_text(wordpiece(pre_tokenizer=None)).encode("a") == [1]


def test_a_trie_in_a_circle_ends():
    """Every unit is the child of another: without a bound, keys would grow for ever."""
    units = [(1 << 10) | 1 if place == 0 else ((place & 1) + 1 << 10) | (place & 0xFF) for place in range(512)]
    blob = struct.pack("<I", 4 * len(units)) + struct.pack(f"<{len(units)}I", *units) + b"x\0"
    began = time.process_time()
    try:
        read_charsmap(blob)
    except TokenizerError:
        pass
    assert time.process_time() - began < SECONDS


def test_damaged_sentencepiece_models_are_refused_or_read_and_never_slow(data_file):
    """Every byte of the small parts of a model turned, and every cut: an error of ours, or a model."""
    path = data_file("conf_tokenizers/seqio/sentencepiece.model")
    model = read_model(path)
    small = write_model(PieceModel(**{**model.__dict__, "charsmap": b""}))
    for place in range(0, len(small), 3):
        for changed in (small[:place], small[:place] + bytes([small[place] ^ 0xFF]) + small[place + 1 :]):
            began = time.process_time()
            try:
                text, config = tree_of(parse_model(changed), "x")
                if place % 9 == 0:
                    Tokenizer(from_text(text).file, config)
            except FledgeError:
                pass
            assert time.process_time() - began < SECONDS
    assert parse_model(small).pieces == model.pieces


def test_a_model_that_contradicts_itself_is_refused():
    pieces = (Piece("<unk>", 0.0, 2), Piece("a", -1.0))
    for changes, message in (
        ({"pieces": (*pieces, Piece("a", -2.0))}, "expected once"),
        ({"unk_id": 9}, "unk_id"),
        ({"byte_fallback": True}, "256 byte pieces"),
        ({"whitespace_is_suffix": True}, "treat_whitespace_as_suffix"),
    ):
        with pytest.raises(TokenizerError, match=message):
            tree_of(PieceModel(**{"pieces": pieces, **changes}), "x")
    assert tree_of(PieceModel(pieces), "x")


def test_vocabulary_files_that_lie_are_refused(tmp_path):
    files = {
        "vocab.txt": ("[UNK]\na\na\n", "expected once"),
        "x.tiktoken": ("IQ== 0\nIQ== 1\n", "token and rank once"),
        "y.tiktoken": ("IQ== 0\n", "a token for every byte"),
        "z.tiktoken": ("IQ== -1\n", "in base64 and its rank"),
    }
    for name, (text, message) in files.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(TokenizerError, match=message):
            Tokenizer.load(tmp_path / name)
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": -1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(TokenizerError, match="line 2: expected two tokens"):
        Tokenizer.load(tmp_path / "vocab.json")


def test_pieces_whose_merges_take_for_ever_to_find_are_refused(tmp_path):
    """Each split of a piece in two is looked at: of these, some thousand million characters."""
    pieces = (Piece("<unk>", 0.0, 2), *(Piece("a" * n, -float(n)) for n in range(1, 3000)))
    began = time.process_time()
    with pytest.raises(TokenizerError, match="squared lengths"):
        tree_of(PieceModel(pieces, kind="bpe"), "x")
    bytes_ = [bytes([byte]) for byte in range(256)] + [b"a" * n for n in range(2, 1025)]
    ranks = bytes_ + [b"x%d" % n for n in range(100256 - len(bytes_))]  # as many as cl100k has
    lines = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks))
    (tmp_path / "x.tiktoken").write_bytes(lines)
    with pytest.raises(TokenizerError, match="squared lengths"):
        Tokenizer.load(tmp_path / "x.tiktoken")
    assert time.process_time() - began < 2 * SECONDS


def test_a_model_of_millions_of_parts_is_refused_before_they_are_read():
    began = time.process_time()
    with pytest.raises(TokenizerError, match="at most 1048576 pieces"):
        parse_model(b"\x20\x01" * 5_000_000)
    assert time.process_time() - began < SECONDS


def test_settings_that_call_text_a_control_token_are_not_believed():
    """As in the original: `bos_id` of a piece that is text is none."""
    model = parse_model(write_model(PieceModel((Piece("<unk>", 0.0, 2), Piece("a", -1.0), Piece("b", -1.0)))))
    assert (model.bos_id, model.eos_id) == (-1, -1)
    text, config = tree_of(model, "x")
    assert Tokenizer(from_text(text).file, config).encode("ab")[-2:] == [1, 2]


def test_what_is_beside_a_tokenizer_and_lies_is_refused_or_kept(tmp_path):
    from_text(wordpiece()).save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(r'{"x_token": "\ud800", "chat_template": "{{ 1 }}\udc00"}')
    loaded_one = Tokenizer.load(tmp_path)
    assert loaded_one.template == "{{ 1 }}?"
    loaded_one.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").config["x_token"] == "\ud800"
    (tmp_path / "chat_template.jinja").write_text("x" * (1 << 21))
    with pytest.raises(TokenizerError, match="at most 1 MiB"):
        Tokenizer.load(tmp_path)
    ids = "9" * 5000
    config.write_text(f'{{"added_tokens_decoder": {{"{ids}": {{"content": "x"}}}}}}')
    (tmp_path / "x.tiktoken").write_text("IQ== 0\n")
    with pytest.raises(TokenizerError, match="a token for every byte"):
        Tokenizer.load(tmp_path / "x.tiktoken")


def test_pipes_and_devices_are_not_read(tmp_path):
    """They may have no end."""
    os.mkfifo(tmp_path / "tokenizer.json")
    for path in (tmp_path / "tokenizer.json", Path("/dev/zero")):
        with pytest.raises(TokenizerError, match="a pipe or a device"):
            Tokenizer.load(path)
