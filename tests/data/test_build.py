"""Shards hold the text; builds are reused, mended and never half-valid."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fledge.data import build as build_module
from fledge.data import corpus as corpus_module
from fledge.data.build import build, from_text_path
from fledge.data.config import BuildConfig, QaConfig
from fledge.data.corpus import read_corpus, read_records
from fledge.data.qa import build_qa
from fledge.data.shards import Dataset, open_shards, write_shard
from fledge.errors import ConfigError, DataError, TokenizerError
from fledge.lineage import verify, write_card
from fledge.text.tokenizer import Tokenizer, byte_level
from tests.data.folders import essay, held_out_names, make

FILES = {name: essay(n) for n, name in enumerate(held_out_names(False, 12))}
FILES |= {name: essay(50 + n) + " äöü 中文 😀" for n, name in enumerate(held_out_names(True, 2))}


@pytest.fixture
def source(tmp_path) -> str:
    return make(tmp_path / "in", FILES)


def texts_of(dataset: Dataset, split: str) -> list[str]:
    shard = getattr(dataset, split)
    return [dataset.tokenizer.decode(shard.document(n).tolist()) for n in range(shard.n_documents)]


@pytest.mark.parametrize("tokenizer", ["bytes", "characters"])
def test_shards_decode_to_the_corpus(tmp_path, source, tokenizer):
    result = build(BuildConfig(tmp_path / "out", source, tokenizer), json=True)
    dataset = open_shards(tmp_path / "out")
    for split in ("train", "val"):
        assert texts_of(dataset, split) == [document.text for document in read_corpus(tmp_path / "out", split)]
    assert sorted(texts_of(dataset, "train") + texts_of(dataset, "val")) == sorted(FILES.values())
    assert result["val_documents"] == 2
    assert (dataset.train.n_tokens, dataset.val.n_tokens) == (result["train_tokens"], result["val_tokens"])
    verify(tmp_path / "out")


def test_documents_tell_the_tokens_of_each_document(tmp_path, source):
    build(BuildConfig(tmp_path / "out", source, "bytes"), json=True)
    used = [record for record in read_records(tmp_path / "out") if record.split != "dropped"]
    assert [record.tokens for record in used] == [record.bytes + 2 for record in used]


def test_a_document_begins_with_bos_and_ends_with_eos(tmp_path, source):
    dataset = from_text_path(source, "bytes", 0.1, tmp_path / "out")
    marks = [dataset.tokenizer.bos_id, dataset.tokenizer.eos_id]
    for shard in (dataset.train, dataset.val):
        for number in range(shard.n_documents):
            ids = shard.document(number).tolist()
            assert [ids[0], ids[-1]] == marks
            assert not set(marks) & set(ids[1:-1])


def test_characters_have_no_marks_so_one_text_is_one_stream(tmp_path):
    (tmp_path / "input.txt").write_text("to be or not to be " * 50)
    dataset = from_text_path(tmp_path / "input.txt", "characters", 0.1, tmp_path / "out")
    assert (dataset.train.n_tokens, dataset.val.n_tokens) == (855, 95)
    assert (dataset.train.n_documents, dataset.val.n_documents) == (1, 1)


def test_text_that_spells_a_special_token_is_text(tmp_path):
    (tmp_path / "input.txt").write_text("a <|eos|> b <|bos|> c " * 20)
    dataset = from_text_path(tmp_path / "input.txt", "bytes", 0.0, tmp_path / "out")
    assert dataset.tokenizer.eos_id not in dataset.train.document(0)[1:-1]


class Wide:
    """A tokenizer with more ids than 16 bits hold."""

    vocab_size, bos_id, eos_id = 70_000, None, None

    def encode_array(self, text: str) -> np.ndarray:
        return np.array([65_536 + len(word) for word in text.split()], np.uint32)


def test_ids_beyond_16_bits_are_kept(tmp_path):
    assert write_shard(["a bb", "ccc"], Wide(), tmp_path / "t.bin", tmp_path / "t.npy") == [2, 1]
    assert np.fromfile(tmp_path / "t.bin", "<u4").tolist() == [65_537, 65_538, 65_539]
    assert np.load(tmp_path / "t.npy").tolist() == [0, 2, 3]


def mtimes(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_a_second_run_reuses_what_is_there(tmp_path, source):
    config = BuildConfig(tmp_path / "out", source, "bytes")
    first = build(config, json=True)
    before = mtimes(tmp_path / "out")
    second = build(config, json=True)
    assert mtimes(tmp_path / "out") == before
    assert (second["reused_corpus"], second["reused_shards"]) == (True, True)
    assert second["digest"] == first["digest"]


def test_questions_do_not_take_the_place_of_a_dataset(tmp_path, source):
    build(BuildConfig(tmp_path / "out", source, "bytes"), json=True)
    before = mtimes(tmp_path / "out")
    with pytest.raises(ConfigError, match="expected a folder for conversations alone, got one that holds dataset"):
        build_qa(QaConfig(tmp_path / "out", source), json=True)
    assert mtimes(tmp_path / "out") == before


def test_a_dataset_does_not_take_the_place_of_questions(tmp_path, source):
    (tmp_path / "out").mkdir()
    write_card(tmp_path / "out", "conversations")
    with pytest.raises(ConfigError, match="expected a folder for corpus alone, got one that holds conversations"):
        build(BuildConfig(tmp_path / "out", source), json=True)
    assert verify(tmp_path / "out")["kind"] == "conversations"


def test_a_tokenizer_that_is_not_there_is_found_before_the_text_is_read(tmp_path, source, monkeypatch):
    monkeypatch.setattr(corpus_module, "survey", lambda *_: pytest.fail("the text was read"))
    with pytest.raises(TokenizerError, match="nonsuch: expected characters, bytes or a tokenizer"):
        build(BuildConfig(tmp_path / "out", source, str(tmp_path / "nonsuch")), json=True)


def test_the_corpus_alone_can_be_tokenised_later(tmp_path, source):
    first = build(BuildConfig(tmp_path / "out", source), json=True)
    assert first["kind"] == "corpus"
    with pytest.raises(DataError, match="expected a dataset with shards, got a corpus"):
        open_shards(tmp_path / "out")
    byte_level().save(tmp_path / "tokenizer")
    second = build(BuildConfig(tmp_path / "out", source, str(tmp_path / "tokenizer")), json=True)
    assert (second["reused_corpus"], second["reused_shards"]) == (True, False)
    assert open_shards(tmp_path / "out").tokenizer.digest == Tokenizer.load(tmp_path / "tokenizer").digest


@pytest.mark.parametrize("change", ["text", "option", "tokenizer", "damage"])
def test_a_changed_input_or_a_damaged_file_is_built_again(tmp_path, source, change):
    config = BuildConfig(tmp_path / "out", source, "bytes")
    build(config, json=True)
    before = open_shards(tmp_path / "out").digest
    if change == "text":
        (Path(source) / "new.txt").write_text(essay(77))
    elif change == "option":
        config = BuildConfig(tmp_path / "out", source, "bytes", minimum_eval_bytes=10**6)
    elif change == "tokenizer":
        config = BuildConfig(tmp_path / "out", source, "characters")
    else:
        raw = bytearray((tmp_path / "out" / "train.bin").read_bytes())
        raw[1000] ^= 1
        (tmp_path / "out" / "train.bin").write_bytes(raw)
    result = build(config, json=True)
    assert result["reused_shards"] is False
    assert result["reused_corpus"] is (change == "tokenizer")
    verify(tmp_path / "out")
    assert (open_shards(tmp_path / "out").digest == before) is (change == "damage")


def test_equal_text_gives_an_equal_digest_wherever_it_stands(tmp_path, source):
    shutil.copytree(source, tmp_path / "elsewhere")
    digests = {
        build(BuildConfig(tmp_path / f"out{n}", str(place), "bytes"), json=True)["digest"]
        for n, place in enumerate((source, tmp_path / "elsewhere"))
    }
    assert len(digests) == 1


def test_one_changed_token_changes_the_digest_of_an_opened_dataset(tmp_path, source):
    build(BuildConfig(tmp_path / "out", source, "bytes"), json=True)
    before = open_shards(tmp_path / "out").digest
    assert open_shards(tmp_path / "out").digest == before
    tokens = np.memmap(tmp_path / "out" / "val.bin", "<u2", "r+")
    tokens[5] ^= 1
    tokens.flush()
    assert open_shards(tmp_path / "out").digest != before


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "train.idx.npy", "card.json"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_cut_or_missing_file_is_refused_with_a_remedy(tmp_path, source, name, how):
    build(BuildConfig(tmp_path / "out", source, "bytes"), json=True)
    path = tmp_path / "out" / name
    path.write_bytes(path.read_bytes()[:-7]) if how == "cut" else path.unlink()
    with pytest.raises(DataError, match="fledge data build"):
        open_shards(tmp_path / "out")


@pytest.mark.parametrize("out", [".", "out", "deep/out"])
def test_a_build_does_not_read_what_it_writes(tmp_path, source, out):
    with pytest.raises(ConfigError, match="expected a folder outside of the text"):
        build(BuildConfig(Path(source) / out, source, "bytes"), json=True)
    with pytest.raises(ConfigError, match="expected a folder outside of the text"):
        build_qa(QaConfig(Path(source) / out, source), json=True)
    with pytest.raises(ConfigError, match="expected a folder outside of the text"):
        from_text_path(source, "bytes", 0.1, Path(source) / out)
    assert sorted(path.name for path in Path(source).iterdir()) == sorted(FILES)


def test_a_build_does_not_replace_its_own_source(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"text": "abc"}\n')
    with pytest.raises(ConfigError, match="source: expected text, got .*corpus.jsonl, which is written here"):
        build(BuildConfig(tmp_path, str(tmp_path / "corpus.jsonl")), json=True)
    assert (tmp_path / "corpus.jsonl").read_text() == '{"text": "abc"}\n'


@pytest.mark.parametrize("verb", ["build", "qa"])
@pytest.mark.parametrize("below", ["", "/below"])
def test_a_file_is_no_folder_to_write_to(tmp_path, source, verb, below):
    (tmp_path / "file").write_text("x")
    out = Path(f"{tmp_path / 'file'}{below}")
    with pytest.raises(ConfigError, match="file.*folder to write to"):
        if verb == "build":
            build(BuildConfig(out, source), json=True)
        else:
            build_qa(QaConfig(out, source), json=True)


@pytest.mark.parametrize("card", ['{"format": 1, "files": {}}', '{"format": 1, "files": {"a": 1}}', "[" * 100_000])
def test_a_damaged_card_is_built_over(tmp_path, source, card):
    (Path(source) / "birds.py").write_text('def fly():\n    """Take off and fly."""\n')
    for verb in (build, build_qa):
        out = tmp_path / verb.__name__
        out.mkdir()
        (out / "card.json").write_text(card)
        verb((BuildConfig if verb is build else QaConfig)(out, source), json=True)
        verify(out)


@pytest.mark.parametrize("names", [held_out_names(False, 12)[-1:], held_out_names(True, 2)])
def test_a_document_that_goes_away_during_a_build_is_named(tmp_path, source, monkeypatch, names):
    real = corpus_module.survey

    def survey_and_lose(*arguments):
        found = real(*arguments)
        for name in names:
            (Path(source) / name).unlink()
        return found

    monkeypatch.setattr(corpus_module, "survey", survey_and_lose)
    with pytest.raises(DataError, match=f"{min(names)}: gone while the corpus was built"):
        build(BuildConfig(tmp_path / "out", source), json=True)
    assert not (tmp_path / "out" / "card.json").exists()


def test_scratch_of_a_living_build_is_left_to_it(tmp_path, source):
    (tmp_path / "out").mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        scratch = tmp_path / "out" / f".corpus.jsonl.tmp-{other.pid}"
        scratch.write_text("half")
        build(BuildConfig(tmp_path / "out", source), json=True)
        assert scratch.read_text() == "half"
    build(BuildConfig(tmp_path / "out", source), json=True)
    assert not scratch.exists()


def test_a_folder_named_python_is_a_folder(tmp_path, monkeypatch):
    make(tmp_path / "python", FILES)
    monkeypatch.chdir(tmp_path)
    dataset = from_text_path("python", "bytes", 0.1, tmp_path / "out")
    assert dataset.train.n_documents == 12


class Killed(BaseException):
    """What no handler catches, like a signal."""


def test_a_run_killed_at_any_step_leaves_nothing_half_valid(tmp_path, source, monkeypatch):
    """Every rename and removal in turn is the last thing an old build's folder sees; then the command is run again."""
    real = {name: getattr(os, name) for name in ("replace", "unlink")}
    wanted = BuildConfig(tmp_path / "fresh", source, "bytes")
    build(wanted, json=True)
    right = open_shards(tmp_path / "fresh").digest
    build(BuildConfig(tmp_path / "old", source, "characters", minimum_eval_bytes=10**6), json=True)
    stale = open_shards(tmp_path / "old").digest
    outcomes = []
    for moment in range(100):
        out = tmp_path / f"out{moment}"
        shutil.copytree(tmp_path / "old", out)
        left = [moment]

        def counted(name, left=left, out=out):
            def call(path, *arguments, **options):
                if str(path).startswith(str(out)):
                    if left[0] == 0:
                        raise Killed
                    left[0] -= 1
                return real[name](path, *arguments, **options)

            return call

        killed = False
        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, counted(name))
            patch.setattr("fledge.data.beside.remove", lambda path: None)  # a killed process tidies nothing up
            try:
                build(BuildConfig(out, source, "bytes"), json=True)
            except Killed:
                killed = True
        try:
            state = open_shards(out).digest
        except DataError:
            state = "refused"
        assert state in (right, stale, "refused")
        outcomes.append(state)
        again = build(BuildConfig(out, source, "bytes"), json=True)
        assert open_shards(out).digest == right
        assert not list(out.glob(".*tmp*"))
        verify(out)
        assert again["digest"] == verify(tmp_path / "fresh")["digest"]
        if not killed:
            break
    assert {right, stale, "refused"} <= set(outcomes)
    assert len(outcomes) > 8


def test_other_files_in_the_folder_are_none_of_its_business(tmp_path, source):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    build(BuildConfig(tmp_path / "out", source, "bytes"), json=True)
    (tmp_path / "out" / "notes.txt").write_text("changed")
    assert build(BuildConfig(tmp_path / "out", source, "bytes"), json=True)["reused_shards"] is True
    assert (tmp_path / "out" / "notes.txt").read_text() == "changed"


def test_the_summary_names_what_is_held_out(tmp_path, source, capsys):
    build(BuildConfig(tmp_path / "out", source, "bytes"))
    printed = capsys.readouterr().out
    assert all(name in printed for name in held_out_names(True, 2))
    assert "12 documents" in printed
    assert build_module.shown(["a"] * 50).endswith("and 10 more")


def test_a_source_that_is_missing_leaves_no_folder(tmp_path):
    with pytest.raises(DataError, match="found none; check the path"):
        build(BuildConfig(tmp_path / "out", source=str(tmp_path / "nowhere")))
    assert not (tmp_path / "out").exists()
