"""The verbs `tokenizer encode`, `decode` and `render`: what they print is what the tokenizer and the renderer give."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from fledge.cli import main as command
from fledge.text.chat import Message, renderer_for
from fledge.text.tokenizer import Tokenizer, byte_level
from tests.text.samples import random_texts, small_bpe, source_text

HOSTILE_TEXT = "Déjà <|eos|> vu 🎉 [CLS]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bpe")
    small_bpe().save(path)
    return path


@pytest.fixture(scope="module")
def framing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fledge.text.learners import train_wordpiece

    path = tmp_path_factory.mktemp("wordpiece")
    train_wordpiece([source_text()], 600).save(path)
    return path


def asked(capsys, *words: object) -> dict:
    assert command.main([*map(str, words[:2]), "--json", *map(str, words[2:])]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def refused(capsys, *words: object) -> str:
    assert command.main([*map(str, words)]) in (1, 2)
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    return printed.err


def typed(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_encode_and_decode_give_the_text_back_by_every_way_in(folder, tmp_path, capsys, monkeypatch):
    ids = small_bpe().encode(HOSTILE_TEXT)
    (tmp_path / "text").write_text(HOSTILE_TEXT, encoding="utf-8")
    typed(monkeypatch, HOSTILE_TEXT.encode())
    ways = [(HOSTILE_TEXT,), ("--file", tmp_path / "text"), ("-",)]
    assert [asked(capsys, "tokenizer", "encode", folder, *way)["ids"] for way in ways] == [ids] * 3
    (tmp_path / "ids").write_text(json.dumps(ids))
    typed(monkeypatch, " ".join(map(str, ids)).encode())
    ways = [tuple(ids), (",".join(map(str, ids)),), ("--file", tmp_path / "ids"), ("-",)]
    assert [asked(capsys, "tokenizer", "decode", folder, *way)["text"] for way in ways] == [HOSTILE_TEXT] * 4


def test_offsets_are_where_the_bytes_of_each_token_stand(folder, capsys):
    for text in random_texts(30, seed=50):
        got = asked(capsys, "tokenizer", "encode", folder, "--", text)
        pieces = [text.encode()[start:end] for start, end in got["offsets"]]
        assert b"".join(pieces) == text.encode() and [piece.hex() for piece in pieces] == got["bytes"]
        assert got["lossless"] and got["tokens"] == [small_bpe().token_of(i) for i in got["ids"]]


def test_a_special_token_is_text_unless_the_frame_puts_it_there(framing, capsys):
    tokenizer = Tokenizer.load(framing)
    text = "the [CLS] class"
    plain = asked(capsys, "tokenizer", "encode", framing, text)
    assert not any(plain["special"]) and tokenizer.special["cls"] not in plain["ids"]
    framed = asked(capsys, "tokenizer", "encode", framing, text, "--frame")
    assert framed["ids"] == [tokenizer.special["cls"], *plain["ids"], tokenizer.special["sep"]]
    assert framed["special"] == [True, *plain["special"], True]
    named = asked(capsys, "tokenizer", "decode", framing, *framed["ids"], "--special")["text"]
    assert named.startswith("[CLS] the") and named.endswith("[SEP]")
    assert "[SEP]" not in asked(capsys, "tokenizer", "decode", framing, *framed["ids"])["text"]


def test_people_get_a_line_a_token_and_the_text(folder, capsys):
    assert command.main(["tokenizer", "encode", str(folder), "é the"]) == 0
    lines = capsys.readouterr().out.splitlines()
    ids = small_bpe().encode("é the")
    assert [int(line.split()[1]) for line in lines[1:-1]] == ids and "' the'" in lines[-2]
    assert lines[-1] == f"{len(ids)} tokens of 6 bytes"
    assert command.main(["tokenizer", "decode", str(folder), *map(str, ids)]) == 0
    assert capsys.readouterr().out == "é the\n"


def test_bytes_that_are_not_utf8_are_shown_as_the_replacement_character(folder, capsys):
    half = [small_bpe().encode("é")[0], small_bpe().encode("x")[0]]
    assert small_bpe().token_bytes(half[0]) == b"\xc3", "the control: half a character"
    got = asked(capsys, "tokenizer", "decode", folder, *half)
    assert (got["text"], got["bytes"], got["utf8"]) == ("\ufffdx", "c378", False)
    assert asked(capsys, "tokenizer", "decode", folder, half[0])["text"] == "\ufffd"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("700",), "ids: expected whole numbers of 0..699, got '700'"),
        (("-1",), "got '-1'"),
        (("1", "two"), "got 'two'"),
        (("1.5",), "got '1.5'"),
        (("9" * 6000,), "expected whole numbers"),
        (("²",), "got '²'"),
        ((",",), "expected at least one id"),
        (("",), "expected at least one id"),
        ((), "expected one of IDS and --file"),
        (("1", "--file", "x"), "expected one of IDS and --file"),
        (("--file", "none"), "none: can't be read"),
    ],
)
def test_what_is_no_id_is_one_clear_line(words, message, folder, capsys):
    assert message in refused(capsys, "tokenizer", "decode", folder, *words)
    assert asked(capsys, "tokenizer", "decode", folder, "0", "699")["ids"] == [0, 699], "the control"


def test_what_is_no_text_or_no_tokenizer_is_one_clear_line(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    assert "byte 3: expected UTF-8" in refused(capsys, "tokenizer", "encode", folder, "--file", tmp_path / "latin")
    assert "expected one of TEXT and --file" in refused(capsys, "tokenizer", "encode", folder)
    assert "can't be read" in refused(capsys, "tokenizer", "encode", folder, "--file", tmp_path)
    assert "expected UTF-8 text" in refused(capsys, "tokenizer", "encode", folder, "a\udc80")
    for verb in (("encode", "x"), ("decode", "1"), ("render", "talks.jsonl")):
        assert "found none" in refused(capsys, "tokenizer", verb[0], tmp_path / "absent", verb[1])
    assert asked(capsys, "tokenizer", "encode", folder, "")["ids"] == [], "the control: no text is a text"


TALKS = (
    (Message("user", "Hi <|end|>"), Message("assistant", "Yo")),
    (Message("system", "Be brief."), Message("user", "2 + 2?"), Message("assistant", "4")),
)


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    rows = [{"messages": [{"role": m.role, "content": m.content} for m in talk]} for talk in TALKS]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    byte_level().save(tmp_path / "bytes")
    return tmp_path


@pytest.mark.parametrize("row", [1, 2])
def test_render_shows_what_is_trained_and_what_is_served(row, talks, capsys):
    words = ("tokenizer", "render", talks / "bytes", talks / "talks.jsonl", "--row", row)
    renderer, talk = renderer_for(byte_level()), TALKS[row - 1]
    whole, prompt = asked(capsys, *words), asked(capsys, *words, "--prompt")
    trained, served = renderer.render(talk), renderer.render(talk[:-1], generation_prompt=True)
    assert (whole["ids"], whole["trained"]) == (trained.ids, trained.trained)
    assert prompt["ids"] == served.ids and whole["ids"][: len(served.ids)] == served.ids
    assert whole["text"] == renderer.text(talk) and whole["n_trained"] == sum(trained.trained) > 0
    assert prompt["n_trained"] == 0 and whole["stop_ids"] == list(renderer.stop_ids)


def test_people_see_the_text_and_a_mark_at_each_trained_token(talks, capsys):
    words = ["tokenizer", "render", str(talks / "bytes"), str(talks / "talks.jsonl")]
    assert command.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    n_trained = sum(renderer_for(byte_level()).render(TALKS[0]).trained)
    assert sum(line.endswith("  trained") for line in lines) == n_trained == 3
    assert lines[-1].endswith(f"tokens in the format fledge, {n_trained} of them trained on")
    assert command.main([*words, "chat.format=vicuna"]) == 0
    assert "USER: Hi <|end|> ASSISTANT: Yo" in capsys.readouterr().out


def test_a_conversation_that_is_not_there_or_can_not_be_held_is_one_clear_line(talks, capsys):
    (talks / "bad.jsonl").write_text('{"messages": [{"role": "robot", "content": "x"}]}\n')
    path = talks / "bytes"
    assert "expected a conversation 3" in refused(capsys, "tokenizer", "render", path, talks / "talks.jsonl", "row=3")
    assert "row: expected 1 or more" in refused(capsys, "tokenizer", "render", path, talks / "talks.jsonl", "row=0")
    assert "line 1" in refused(capsys, "tokenizer", "render", path, talks / "bad.jsonl")
    assert "found none" in refused(capsys, "tokenizer", "render", path, talks / "no.jsonl")
    assert "conversations" in refused(capsys, "tokenizer", "render", path)
    assert "llama-3" in refused(capsys, "tokenizer", "render", path, talks / "talks.jsonl", "chat.format=llama-3")
