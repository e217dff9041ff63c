"""What is written in another form gives the ids it was written from: read by us, and by the software it is for."""

from __future__ import annotations

import functools
import json

import pytest

from fledge.errors import ConfigError, TokenizerError
from fledge.text.config import TokenizerConvertConfig
from fledge.text.export import FILES, WRITERS, convert_tokenizer
from fledge.text.learners import train_unigram, train_wordpiece, train_words
from fledge.text.tokenizer import Tokenizer, byte_level, characters
from tests.text.samples import random_texts, small_bpe, source_text

N = 1000


@functools.cache
def made(name: str) -> Tokenizer:
    text = [source_text()]
    makers = {
        "gpt2": small_bpe,
        "llama3": lambda: small_bpe("llama3"),
        "bytes": byte_level,
        "wordpiece": lambda: train_wordpiece(text, 900),
        "uncased": lambda: train_wordpiece(text, 900, lowercase=True),
        "unigram": lambda: train_unigram(text, 900),
        "normalising": lambda: train_unigram(text, 900, lossless=False),
        "word": lambda: train_words(text, 900),
        "characters": lambda: characters(source_text()),
    }
    return makers[name]()


GOOD = [
    *(("tokenizer.json", name) for name in ("gpt2", "wordpiece", "unigram", "normalising", "word", "characters")),
    *(("gpt2", name) for name in ("gpt2", "bytes")),
    *(("bert", name) for name in ("wordpiece", "uncased")),
    ("sentencepiece", "unigram"),
    *(("tiktoken", name) for name in ("gpt2", "bytes")),
    *(("gguf", name) for name in ("gpt2", "llama3", "uncased")),
]


@pytest.mark.parametrize(("form", "name"), GOOD)
def test_what_was_written_gives_the_same_ids(form, name, tmp_path, capsys):
    tokenizer = made(name)
    tokenizer.save(tmp_path / "a")
    chosen = TokenizerConvertConfig(tmp_path / "a", tmp_path / "b", form)
    if form == "tiktoken":  # whose files don't name their split pattern: only published ones are read without
        convert_tokenizer(chosen, json=True)
        assert read_by_tiktoken(tmp_path / "b" / "tokenizer.tiktoken", tokenizer)
        return
    files = convert_tokenizer(chosen)["files"]
    assert all((tmp_path / "b" / file).stat().st_size for file in files)
    again = Tokenizer.load(tmp_path / "b")
    texts = random_texts(N, seed=30)
    ordinary = [i for i in range(tokenizer.vocab_size) if not tokenizer.is_special(i)]
    assert again.encode_batch(texts) == tokenizer.encode_batch(texts)
    assert [again.token_bytes(i) for i in ordinary] == [tokenizer.token_bytes(i) for i in ordinary]
    assert str(tmp_path / "b") in capsys.readouterr().out


def read_by_tiktoken(path, tokenizer: Tokenizer) -> bool:
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    from fledge.text.pattern import GPT2

    theirs = tiktoken.Encoding("x", pat_str=GPT2, mergeable_ranks=load_tiktoken_bpe(str(path)), special_tokens={})
    return all(theirs.encode_ordinary(text) == tokenizer.encode(text) for text in random_texts(N, seed=30))


def test_gpt2_s_files_and_bert_s_are_read_by_transformers(tmp_path):
    from transformers import BertTokenizer, GPT2Tokenizer

    for form, name, reader in (("gpt2", "gpt2", GPT2Tokenizer), ("bert", "uncased", BertTokenizer)):
        folder = tmp_path / form
        folder.mkdir()
        WRITERS[form](made(name), folder)
        theirs = reader.from_pretrained(folder)
        for text in random_texts(300, seed=31):
            assert theirs(text, add_special_tokens=False)["input_ids"] == made(name).encode(text), text


def test_a_sentencepiece_model_of_ours_is_read_by_sentencepiece(tmp_path):
    import sentencepiece

    WRITERS["sentencepiece"](made("unigram"), tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    texts = [text for text in random_texts(N, seed=32) if "\0" not in text]
    assert [theirs.encode(text) for text in texts] == made("unigram").encode_batch(texts)


@pytest.mark.parametrize("name", ["llama2/tokenizer.model", "sentencepiece_test/test_model.model"])
def test_a_sentencepiece_model_written_again_says_the_same(name, data_file, tmp_path):
    from fledge.text.sentencepiece_model import read_model

    path = data_file(f"conf_tokenizers/{name}")
    tokenizer = Tokenizer.load(path)
    tokenizer.save(tmp_path)
    saved = Tokenizer.load(tmp_path)
    WRITERS["sentencepiece"](saved, tmp_path)
    before, after = read_model(path), read_model(tmp_path / "tokenizer.model")
    assert [(piece.text, piece.type) for piece in after.pieces] == [(piece.text, piece.type) for piece in before.pieces]
    assert (after.charsmap, after.byte_fallback) == (before.charsmap, before.byte_fallback)
    (tmp_path / "tokenizer.json").unlink()
    texts = random_texts(N, seed=33)
    ids = tokenizer.encode_batch(texts)
    assert saved.encode_batch(texts) == ids and Tokenizer.load(tmp_path / "tokenizer.model").encode_batch(texts) == ids


@pytest.mark.parametrize("name", ["llama2/tokenizer.model", "sentencepiece_test/test_model.model"])
def test_sentencepiece_vocabularies_go_through_gguf(name, data_file, tmp_path):
    tokenizer = Tokenizer.load(data_file(f"conf_tokenizers/{name}"))
    WRITERS["gguf"](tokenizer, tmp_path)
    again = Tokenizer.load(tmp_path)
    texts = random_texts(300, seed=34)
    assert again.kind == tokenizer.kind and again.encode_batch(texts) == tokenizer.encode_batch(texts)


BAD = [
    ("gpt2", "llama3", "split pattern"),
    ("gpt2", "unigram", "kind bpe"),
    ("bert", "gpt2", "kind wordpiece"),
    ("sentencepiece", "gpt2", "read from a SentencePiece model"),
    ("sentencepiece", "normalising", "read from a SentencePiece model"),
    ("tiktoken", "word", "kind bpe"),
    ("gguf", "unigram", "plain spaces"),
]


@pytest.mark.parametrize(("form", "name", "message"), BAD)
def test_a_form_that_cannot_say_it_is_refused(form, name, message, tmp_path):
    with pytest.raises(TokenizerError, match=message):
        WRITERS[form](made(name), tmp_path)


def test_the_frame_of_a_converted_bert_is_bert_s(tmp_path):
    WRITERS["bert"](made("uncased"), tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    a, b = tokenizer.encode("one"), tokenizer.encode("two words")
    cls, sep = tokenizer.special["cls"], tokenizer.special["sep"]
    framed = tokenizer.frame(a, b)
    assert framed.ids == (cls, *a, sep, *b, sep)
    assert framed.type_ids == (0,) * (len(a) + 2) + (1,) * (len(b) + 1)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["do_lower_case"] is True and made("gpt2").frame([1, 2]).ids == (1, 2)


@pytest.mark.parametrize("name", ["wordpiece", "uncased", "normalising", "word", "unigram"])
def test_transformers_reads_our_folders_and_gives_equal_ids(name, tmp_path):
    """Of lossless Unigram with bytes, but for runs, which the library sums in another precision."""
    from transformers import AutoTokenizer

    from fledge.text.unigram_exact import needs_exact

    tokenizer = made(name)
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = [text for text in random_texts(N, seed=35) if text and not (name == "unigram" and needs_exact(text))]
    assert len(texts) > 50
    assert theirs(texts, add_special_tokens=False)["input_ids"] == tokenizer.encode_batch(texts)


@pytest.mark.parametrize("form", WRITERS)
def test_files_of_a_strangers_are_not_written_over(form, tmp_path):
    (tmp_path / "from").mkdir()
    characters("ab").save(tmp_path / "from")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("beside")
    for name in FILES[form]:
        (tmp_path / "out" / name).write_text("theirs")
        with pytest.raises(ConfigError, match=f"got one with {name} that tokenizer convert did not write"):
            convert_tokenizer(TokenizerConvertConfig(tmp_path / "from", tmp_path / "out", form))
        assert (tmp_path / "out" / name).read_text() == "theirs"
        (tmp_path / "out" / name).unlink()


@pytest.mark.parametrize(("form", "name"), [("tokenizer.json", "characters"), ("gpt2", "gpt2"), ("bert", "wordpiece")])
def test_the_names_that_are_guarded_are_those_that_are_written(form, name, tmp_path):
    found = convert_tokenizer(TokenizerConvertConfig(saved(name, tmp_path / "from"), tmp_path / "out", form), json=True)
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert set(found["files"]) == there and there <= set(FILES[form])


def saved(name: str, folder):
    made(name).save(folder)
    return folder


def test_a_folder_with_a_card_is_left_as_it_is(tmp_path):
    characters("ab").save(tmp_path / "from")
    (tmp_path / "from/card.json").write_text("{}")
    before = {path: path.read_bytes() for path in (tmp_path / "from").iterdir()}
    with pytest.raises(ConfigError, match="card vouches"):
        convert_tokenizer(TokenizerConvertConfig(tmp_path / "from", tmp_path / "from"))
    assert before == {path: path.read_bytes() for path in (tmp_path / "from").iterdir()}
