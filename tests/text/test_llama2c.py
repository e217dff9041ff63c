"""from_llama2c: the ids and the text of llama2.c. The oracle is its `encode` and `decode`, written again from run.c."""

from __future__ import annotations

import functools
import random
import struct
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import TokenizerError
from fledge.text.llama2c import from_llama2c
from fledge.text.tokenizer import Tokenizer
from tests.text.samples import random_texts

FILES = ("ckpt_stories260K/tok512.bin", "conf_tokenizers/llama2/tokenizer.bin")


class Reference:
    """run.c: `build_tokenizer`, `encode` (without BOS and EOS) and `decode`."""

    def __init__(self, data: bytes):
        self.vocab: list[bytes] = []
        self.scores: list[float] = []
        at = 4
        while at < len(data):
            score, length = struct.unpack_from("<fi", data, at)
            self.vocab.append(data[at + 8 : at + 8 + length])
            self.scores.append(score)
            at += 8 + length
        self.lookup = {token: i for i, token in enumerate(self.vocab)}

    def encode(self, text: str) -> list[int]:
        if not text:
            return []
        tokens = [self.lookup[b" "]]
        for character in text:
            raw = character.encode()
            tokens += [self.lookup[raw]] if raw in self.lookup else [byte + 3 for byte in raw]
        while True:
            best_score, best_id, best_place = -1e10, -1, -1
            for place in range(len(tokens) - 1):
                joined = self.lookup.get(self.vocab[tokens[place]] + self.vocab[tokens[place + 1]], -1)
                if joined != -1 and self.scores[joined] > best_score:
                    best_score, best_id, best_place = self.scores[joined], joined, place
            if best_place == -1:
                return tokens
            tokens[best_place : best_place + 2] = [best_id]

    def decode(self, ids: list[int]) -> bytes:
        text, before = b"", 1
        for number in ids:
            piece = self.vocab[number]
            if before == 1 and piece.startswith(b" "):
                piece = piece[1:]
            if piece.startswith(b"<0x") and len(piece) == 6:
                piece = bytes([int(piece[3:5], 16)])
            text, before = text + piece, number
        return text


@functools.cache
def both(path) -> tuple[Reference, Tokenizer]:
    return Reference(path.read_bytes()), from_llama2c(path)


def vocabulary(entries: list[tuple[str, float]]) -> bytes:
    fixed = [("<unk>", 0.0), ("\n<s>\n", 0.0), ("\n</s>\n", 0.0), *((f"<0x{b:02X}>", 0.0) for b in range(256))]
    rows = [(token.encode(), score) for token, score in fixed + entries]
    body = b"".join(struct.pack("<fi", score, len(raw)) + raw for raw, score in rows)
    return struct.pack("<i", max(len(raw) for raw, _ in rows)) + body


@pytest.mark.parametrize("name", FILES)
def test_ids_are_those_of_llama2c(name, data_file):
    reference, tokenizer = both(data_file(name))
    texts = random_texts(150, seed=3) + [
        "",
        " ",
        "   ",
        "Once upon a time, there was",
        "a" * 50,
        " " * 61 + "x",
        "▁",
        "<s>",
    ]
    texts += ["the the\n\n  then   Tthe", "He said: “Don’t!”\t…", "I'm sorry, Lily. I didn't know"]
    for text in texts:
        text = text.replace("\0", "")  # the end of a C string
        assert tokenizer.encode(text) == reference.encode(text), text


@pytest.mark.parametrize("name", FILES)
def test_prose_has_the_ids_of_llama2c(name, data_file):
    text = data_file("text_tinystories_sample/tinystories.txt").read_text()
    reference, tokenizer = both(data_file(name))
    for start in range(0, 40_000, 800):
        part = text[start : start + 160]
        assert tokenizer.encode(part) == reference.encode(part)


@pytest.mark.parametrize("name", FILES)
def test_decoding_drops_the_space_after_bos_as_llama2c_does(name, data_file):
    reference, tokenizer = both(data_file(name))
    rng = random.Random(4)
    for _ in range(300):
        ids = [rng.randrange(259, tokenizer.vocab_size) for _ in range(8)]
        assert tokenizer.decode([1, *ids]) == reference.decode(ids).decode()
    for text in random_texts(100, seed=5):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_without_the_dummy_space_ids_would_differ(data_file):
    reference = Reference(data_file(FILES[0]).read_bytes())
    assert reference.encode("Once")[0] != reference.encode(" Once")[0]


@given(st.lists(st.text("abc ", min_size=2, max_size=4), max_size=12, unique=True), st.text("abc d", max_size=24))
def test_any_vocabulary_grown_by_merging_gives_the_ids_of_llama2c(pieces, text):
    """Scores fall with every token and each token is made of two earlier ones, as in a trained vocabulary."""
    known, entries = {" ", "a", "b", "c"}, []
    for piece in pieces:
        if any(piece[:k] in known and piece[k:] in known for k in range(1, len(piece))):
            known.add(piece)
            entries.append((piece, -float(len(entries))))
    entries += [(letter, -1000.0 - i) for i, letter in enumerate(" abc")]
    raw = vocabulary(entries)
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(raw)
        file.flush()
        assert from_llama2c(file.name).encode(text) == Reference(raw).encode(text)


def test_bos_and_eos_have_llama2c_s_ids_and_both_end_an_answer(data_file):
    tokenizer = from_llama2c(data_file(FILES[0]))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (1, 2, (1, 2))
    assert tokenizer.kind == "sentencepiece-bpe" and tokenizer.vocab_size == 512


def test_a_converted_vocabulary_survives_saving(data_file, tmp_path):
    tokenizer = from_llama2c(data_file(FILES[0]))
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.digest == tokenizer.digest and loaded.stop_ids == tokenizer.stop_ids
    for text in random_texts(200, seed=6):
        assert loaded.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "expected 259"),
        (b"\0" * 7, "expected score and length"),
        (struct.pack("<ifi", 4, 0.0, 2**31 - 1), "length 2147483647"),
        (struct.pack("<ifi", 4, 0.0, -1), "length -1"),
        (struct.pack("<ifi", 4, float("nan"), 0), "score nan"),
        (vocabulary([("ab", 0.0), ("ab", 1.0)]), "got 'ab' twice"),
    ],
)
def test_a_damaged_vocabulary_is_refused(raw, message, tmp_path):
    (tmp_path / "tokenizer.bin").write_bytes(raw)
    with pytest.raises(TokenizerError, match=message):
        from_llama2c(tmp_path / "tokenizer.bin")


def test_equal_scores_of_competing_tokens_are_said(tmp_path, capsys):
    (tmp_path / "tokenizer.bin").write_bytes(vocabulary([("ab", 1.0), ("bc", 1.0), ("a", 0.0), ("b", 0.0), ("c", 0.0)]))
    from_llama2c(tmp_path / "tokenizer.bin")
    assert "ids may differ" in capsys.readouterr().err
