"""Training: the same text gives the same tokenizer, whatever the process; what is read and what is not."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest

from fledge import config
from fledge.errors import ConfigError, DataError
from fledge.lineage import sha256_file, verify, write_card
from fledge.log import Progress
from fledge.text import train, training_text
from fledge.text.config import TokenizerConvertConfig, TokenizerReportConfig, TokenizerTrainConfig
from fledge.text.documents import read_documents
from fledge.text.export import convert_tokenizer
from fledge.text.report import report_tokenizers
from fledge.text.special_tokens import SPECIAL_TOKENS
from fledge.text.tokenizer import Tokenizer
from fledge.text.train import train_bpe, train_tokenizer
from tests.text.samples import PATTERNS, small_bpe, source_text

SCRIPT = """
import sys
from pathlib import Path
from fledge.text.train import train_bpe
text = Path(sys.argv[1]).read_text(encoding="utf-8")
print(train_bpe(text.splitlines(keepends=True), 600).digest)
"""


def test_two_processes_train_the_same_tokenizer(tmp_path):
    (tmp_path / "text.txt").write_text(source_text(), encoding="utf-8")
    digests = set()
    for threads in ("1", "4"):
        environment = {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true", "PATH": "/usr/bin"}
        words = [sys.executable, "-c", SCRIPT, str(tmp_path / "text.txt")]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1
    assert train_bpe([source_text() + "x" * 40], 600).digest not in {d.strip() for d in digests}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_vocabulary_size_counts_bytes_merges_and_special_tokens(pattern):
    tokenizer = small_bpe(pattern, 400)
    assert tokenizer.vocab_size == 400
    assert len(tokenizer.file.tree["model"]["merges"]) == 400 - 256 - len(SPECIAL_TOKENS)
    assert tokenizer.file.pattern == pattern


def test_merges_are_the_most_frequent_pairs_first():
    """The oracle counts by hand: `aa` 3, then `b aa`… in one-word texts."""
    tokenizer = train_bpe(["ab"] * 5 + ["bc"] * 3, 256 + 7 + 2)
    assert tokenizer.file.tree["model"]["merges"] == [["a", "b"], ["b", "c"]]


def test_a_pair_seen_once_is_no_token_and_the_vocabulary_is_smaller(capsys):
    tokenizer = train_bpe(["abc"], 1000)
    assert tokenizer.vocab_size == 256 + len(SPECIAL_TOKENS)


def test_more_text_makes_fewer_tokens():
    text = source_text()
    n_tokens = [len(train_bpe([text], size).encode(text)) for size in (263, 400, 700)]
    assert n_tokens[0] == len(text.encode()) > n_tokens[1] > n_tokens[2]


def test_one_enormous_word_does_not_hold_training_up():
    began = time.process_time()
    tokenizer = train_bpe(["a" * 300_000, "ab" * 100_000], 500)
    assert time.process_time() - began < 10
    assert max(len(token or "") for token in tokenizer.file.tokens) <= 128


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(ConfigError, match="vocab_size: expected at least 263"):
        train_bpe(["x"], 262)
    with pytest.raises(ConfigError, match="pattern: expected one of gpt2, llama3, qwen2"):
        train_bpe(["x"], 300, "gpt9")


def corpus(folder):
    rows = [
        {"path": "b/two.txt", "text": "train text " * 50, "split": "train"},
        {"path": "a/one.txt", "text": "zzqq " * 50, "split": "val"},
    ]
    folder.mkdir()
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", ["bpe", "characters", "bytes"])
def test_the_verb_writes_a_folder_with_its_card(kind, tmp_path, capsys):
    path = corpus(tmp_path / "corpus")
    chosen = config.load(
        TokenizerTrainConfig, None, {"text": path, "out": tmp_path / "out", "kind": kind, "vocab-size": 280}
    )
    result = train_tokenizer(chosen)
    tokenizer = Tokenizer.load(tmp_path / "out")
    card = verify(tmp_path / "out")
    assert card["kind"] == "tokenizer" and card["digest"] == result["digest"]
    assert card["facts"]["tokenizer_digest"] == tokenizer.digest and tokenizer.vocab_size == result["vocab_size"]
    assert str(result["vocab_size"]) in capsys.readouterr().out
    assert json.loads(json.dumps(result)) == result


def test_held_out_text_is_not_learned_from(tmp_path):
    path = corpus(tmp_path / "corpus")
    train_tokenizer(TokenizerTrainConfig(path, tmp_path / "c", kind="characters"), json=True)
    assert Tokenizer.load(tmp_path / "c").id_of("z") is None
    assert Tokenizer.load(tmp_path / "c").id_of("t") is not None
    assert [d.path for d in read_documents(path, "all")] == ["b/two.txt", "a/one.txt"]
    assert [d.path for d in read_documents(path, "val")] == ["a/one.txt"]


def test_characters_have_no_special_tokens_unless_asked_for(tmp_path):
    (tmp_path / "t.txt").write_text("abc")
    for special, size in ((None, 4), (True, 4 + len(SPECIAL_TOKENS))):
        chosen = TokenizerTrainConfig(tmp_path / "t.txt", tmp_path / "out", kind="characters", special_tokens=special)
        assert train_tokenizer(chosen, json=True)["vocab_size"] == size


@pytest.mark.parametrize("kind", ["bpe", "characters", "bytes"])
def test_a_second_run_reuses_what_is_there_and_a_change_trains_anew(kind, tmp_path):
    path, out = corpus(tmp_path / "corpus"), tmp_path / "out"
    chosen = TokenizerTrainConfig(path, out, kind=kind, vocab_size=280)
    first = train_tokenizer(chosen, json=True)
    before = (out / "tokenizer.json").stat().st_mtime_ns
    second = train_tokenizer(chosen, json=True)
    assert (first["reused"], second["reused"]) == (False, True)
    assert {**first, "reused": 0, "seconds": 0} == {**second, "reused": 0, "seconds": 0}
    assert (out / "tokenizer.json").stat().st_mtime_ns == before
    assert train_tokenizer(replace(chosen, special_tokens=kind == "characters"), json=True)["reused"] is False
    train_tokenizer(chosen, json=True)
    (out / "tokenizer_config.json").write_text("{}")
    assert train_tokenizer(chosen, json=True)["reused"] is False
    verify(out)
    more = json.dumps({"path": "c", "text": "quite another", "split": "train"})
    with open(path / "corpus.jsonl", "a") as file:
        file.write(more + "\n")
    assert train_tokenizer(chosen, json=True)["reused"] is (kind == "bytes")


def test_the_card_names_the_corpus_it_was_learnt_from(tmp_path):
    path = corpus(tmp_path / "corpus")
    train_tokenizer(TokenizerTrainConfig(path, tmp_path / "a", vocab_size=280), json=True)
    assert verify(tmp_path / "a")["parents"] == {"corpus": sha256_file(path / "corpus.jsonl")}
    train_tokenizer(TokenizerTrainConfig(path, tmp_path / "b", kind="bytes"), json=True)
    assert verify(tmp_path / "b")["parents"] == {}


def test_a_tokenizer_is_not_written_into_its_text_nor_over_a_file(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("abc " * 50)
    with pytest.raises(ConfigError, match="expected a folder outside of the text"):
        train_tokenizer(TokenizerTrainConfig(tmp_path / "text", tmp_path / "text" / "out", vocab_size=280), json=True)
    for out in ("file", "file/below"):
        (tmp_path / "file").write_text("x")
        with pytest.raises(ConfigError, match="folder to write to"):
            train_tokenizer(TokenizerTrainConfig(tmp_path / "text", tmp_path / out, kind="bytes"), json=True)


def test_another_artefacts_folder_is_left_as_it_is(tmp_path):
    (tmp_path / "text.txt").write_text("some words", encoding="utf-8")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/tokenizer.json").write_text("theirs")
    write_card(tmp_path / "model", "model", {}, {}, {})
    with pytest.raises(ConfigError, match="holds model"):
        train_tokenizer(TokenizerTrainConfig(tmp_path / "text.txt", tmp_path / "model", "bytes"))
    assert (tmp_path / "model/tokenizer.json").read_text() == "theirs" and verify(tmp_path / "model")


@pytest.mark.parametrize("name", train.OURS)
def test_a_tokenizer_without_a_card_is_left_as_it_is(name, tmp_path):
    (tmp_path / "text.txt").write_text("some words", encoding="utf-8")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).write_text("theirs")
    with pytest.raises(ConfigError, match=f"got one with {name} that tokenizer train did not write; choose another"):
        train_tokenizer(TokenizerTrainConfig(tmp_path / "text.txt", tmp_path / "model", "bytes"))
    assert [path.read_text() for path in (tmp_path / "model").iterdir()] == ["theirs"]
    (tmp_path / "model" / name).rename(tmp_path / "model" / "notes.txt")  # the control: beside other files it is fine
    train_tokenizer(TokenizerTrainConfig(tmp_path / "text.txt", tmp_path / "model", "bytes"), json=True)
    assert "notes.txt" not in verify(tmp_path / "model")["files"]


@pytest.mark.parametrize("n_moved", [0, 1, 2])
def test_what_ends_while_the_files_are_moved_is_mended_by_the_same_command(n_moved, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("some words", encoding="utf-8")
    chosen = TokenizerTrainConfig(tmp_path / "text.txt", tmp_path / "out", "characters")
    moved = []

    def killed(source, target):
        if len(moved) == n_moved:
            raise KeyboardInterrupt
        moved.append(source.replace(target))

    monkeypatch.setattr(train, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(chosen, json=True)
    monkeypatch.undo()
    assert train_tokenizer(chosen, json=True)["reused"] is False
    assert verify(tmp_path / "out") and train_tokenizer(chosen, json=True)["reused"] is True


@pytest.mark.parametrize("reason", ["a file above", "no file can be made"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_text_is_read(reason, tmp_path, monkeypatch):
    (tmp_path / "t.txt").write_text("abc " * 50)
    (tmp_path / "file").write_text("x")
    out = tmp_path / "file" / "out" if reason == "a file above" else tmp_path / "new" / "out"
    if reason == "no file can be made":

        def refuse(dir):
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr(train, "learn", lambda *_: pytest.fail("learnt"))
    monkeypatch.setattr(Tokenizer, "load", lambda *_: pytest.fail("loaded"))
    for work in (
        lambda: convert_tokenizer(TokenizerConvertConfig(tmp_path / "t.txt", out), json=True),
        lambda: train_tokenizer(TokenizerTrainConfig(tmp_path / "t.txt", out, vocab_size=280), json=True),
        lambda: report_tokenizers(TokenizerReportConfig("bytes", tmp_path / "t.txt", out=out / "r.html"), json=True),
    ):
        with pytest.raises(ConfigError, match="Not a directory|got a file|Read-only file system"):
            work()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "t.txt"]


def test_a_folder_is_read_in_order_and_binary_files_are_left_out(tmp_path, capsys):
    folder = tmp_path / "folder"
    (folder / "b").mkdir(parents=True)
    (folder / ".hidden").write_text("no")
    (folder / "b" / "two.md").write_text("zwei", encoding="utf-8")
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfeins\r\n")
    (folder / "c.bin").write_bytes(b"\0\1\2")
    found = [(d.path, d.text, d.domain) for d in read_documents(folder)]
    assert found == [("a.txt", "eins\r\n", "a.txt"), ("b/two.md", "zwei", "b")]
    assert "1 files are not text and were left out" in capsys.readouterr().err


def test_the_limit_ends_after_the_document_that_reaches_it(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(name * 10)
    assert [d.path for d in read_documents(tmp_path, limit_bytes=11)] == ["a", "b"]


def test_missing_empty_or_damaged_text_is_an_error_that_names_it(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{"txt": 1}\n')
    out = tmp_path / "out"
    for path, message in (
        ("no", "found none"),
        ("empty", "expected text to learn from"),
        ("bad.jsonl", "line 2: expected an object"),
    ):
        with pytest.raises(DataError, match=message):
            train_tokenizer(TokenizerTrainConfig(tmp_path / path, out), json=True)
    assert not out.exists()


LONG_LEARNING = """
import sys
from pathlib import Path
from fledge.text import training_text
from fledge.text.config import TokenizerTrainConfig
from fledge.text.train import train_tokenizer
training_text.SIGN_SECONDS = 0.02
train_tokenizer(TokenizerTrainConfig(Path(sys.argv[1]), Path(sys.argv[2]), vocab_size=20_000))
"""


def test_progress_is_shown_within_one_long_text(monkeypatch, capsys):
    monkeypatch.setattr(training_text, "Progress", partial(Progress, every_seconds=0))
    text = "some words " * 30_000
    train_bpe([text], 300, n_bytes=len(text))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("read text, bytes")]
    assert [line.split(" · ")[0] for line in lines[:2]] == [
        f"read text, bytes {n}/{len(text)}" for n in (65_536, 131_072)
    ]
    train_bpe([text], 300)
    assert not capsys.readouterr().err, "the control: silent for a caller who expects no number of bytes"


@pytest.mark.parametrize("before", [False, True])
def test_a_kill_while_pieces_are_learnt_leaves_what_was_there(before, tmp_path):
    """Killed at the first sign of life after the text was read, a line of its own as there is no terminal."""
    text, out = tmp_path / "words.txt", tmp_path / "out"
    rng = random.Random(3)
    text.write_text(" ".join("".join(rng.choices("abcdefghijkl", k=9)) for _ in range(60_000)))
    if before:
        train_tokenizer(TokenizerTrainConfig(text, out, kind="characters"), json=True)
    kept = {path: path.read_bytes() for path in out.rglob("*")} if before else {}
    words = [sys.executable, "-c", LONG_LEARNING, str(text), str(out)]
    lines = []
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            lines.append(line)
            if line.startswith("learn tokens"):
                process.kill()
    assert process.returncode == -9, lines
    assert lines[-1].startswith("learn tokens · 0:0")
    assert {path: path.read_bytes() for path in out.rglob("*")} == kept
    assert before or not out.exists()
    whole = train_tokenizer(TokenizerTrainConfig(text, out, vocab_size=300), json=True)
    assert not whole["reused"] and verify(out)["facts"]["vocab_size"] == 300, "the control: not killed, it is written"
