"""`evaluate` from model folder to figures: text, questions, before and after."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fledge.cli.main import main
from fledge.data.build import build
from fledge.data.config import BuildConfig
from fledge.data.corpus import read_corpus
from fledge.engine.loaded import load
from fledge.errors import ConfigError, DataError
from fledge.evals.answers import Question, answer_bits, answer_span, greedy_answers, questions_of, same
from fledge.evals.bigram import Bigram
from fledge.evals.bits import document_bits, document_ids
from fledge.evals.compressors import gzip_bits, xz_bits
from fledge.evals.config import EvaluateConfig
from fledge.evals.run import evaluate
from fledge.evals.task_scores import word_f1
from fledge.text.chat import Message
from fledge.text.tokenizer import byte_level, characters
from tests.data.folders import essay, held_out_names, make
from tests.evals.tiny import save_family, save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two models, a dataset of which three documents are held out, and questions."""
    root = tmp_path_factory.mktemp("evaluate")
    save_tiny(root / "model", seed=1)
    save_tiny(root / "before", seed=2)
    files = {name: essay(n, 600) for n, name in enumerate(held_out_names(False, 9))}
    files |= {name: essay(40 + n, 600) for n, name in enumerate(held_out_names(True, 3))}
    build(BuildConfig(root / "data", make(root / "in", files), "bytes"), json=True)
    rows = [[("user", f"Say {word}"), ("assistant", f"{word}!")] for word in ("one", "two", "three", "a" * 60)]
    rows.append([("user", "Hi"), ("assistant", "Yes?"), ("user", "Go on"), ("assistant", "No.")])
    lines = [json.dumps({"messages": [{"role": r, "content": c} for r, c in row]}) for row in rows]
    (root / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def figures(folder) -> dict:
    """Everything at once, as the last step of a quickstart would ask for it."""
    config = EvaluateConfig(
        folder / "model",
        text=folder / "data",
        compare=folder / "before",
        questions=folder / "questions.jsonl",
        max_answer_tokens=8,
        threads=1,
        out=folder / "result.json",
    )
    return evaluate(config, json=True)


def test_figures_are_total_bits_over_total_bytes_of_the_held_out_documents(folder, figures):
    documents = list(read_corpus(folder / "data", "val"))
    n_bytes = sum(len(document.text.encode()) for document in documents)
    assert (figures["documents"], figures["bytes"], figures["tokens"]) == (3, n_bytes, n_bytes)
    for name, bits in (("gzip", gzip_bits), ("xz", xz_bits)):
        total = sum(bits(document.text) for document in documents)
        assert figures[f"{name}_bits_per_byte"] == pytest.approx(total / n_bytes)
        assert figures[f"ratio_to_{name}"] == pytest.approx(figures["bits_per_byte"] * n_bytes / total)
    for name, key in (("model", "bits_per_byte"), ("before", "before_bits_per_byte")):
        total = sum(document_bits(load(folder / name), documents, 24).bits)
        assert figures[key] == pytest.approx(total / n_bytes, rel=1e-5)
    change = figures["bits_per_byte"] - figures["before_bits_per_byte"]
    assert figures["change_bits_per_byte"] == pytest.approx(change)
    assert figures["perplexity_per_token"] == pytest.approx(2 ** figures["bits_per_byte"], rel=1e-6)  # a token a byte


def test_the_bigram_is_counted_on_the_training_shard_and_scored_on_the_same_text(folder, figures):
    tokenizer = byte_level()
    train = [document_ids(tokenizer, d.text) + [tokenizer.eos_id] for d in read_corpus(folder / "data", "train")]
    val = list(read_corpus(folder / "data", "val"))
    flat, starts = [i for ids in train for i in ids], [0]
    for ids in train:
        starts.append(starts[-1] + len(ids))
    counted = Bigram(flat, starts, tokenizer.vocab_size)
    total = sum(counted.bits(document_ids(tokenizer, document.text)) for document in val)
    assert figures["bigram_bits_per_byte"] == pytest.approx(total / figures["bytes"])
    assert figures["bigram_bits_per_byte"] < 6 < figures["bits_per_byte"]  # it has learned, the random model has not


def test_every_figure_has_n_and_an_interval_and_says_how_it_was_taken(figures):
    for name, score in figures["scores"].items():
        low, high = score["interval"]
        assert low <= score["value"] == figures[name] <= high
        assert score["n"] == 3
    assert set(figures["scores"]) == {
        *(f"{name}bits_per_byte" for name in ("", "before_", "gzip_", "xz_", "bigram_", "change_")),
        *(f"{name}ratio_to_{other}" for name in ("", "before_") for other in ("gzip", "xz")),
    }
    assert figures["method"]["stride"] == 24
    assert "no context across documents" in figures["method"]["normaliser"]
    questions = figures["questions"]["scores"]
    assert {score["n"] for score in questions.values()} == {4, 5}  # one is too long to be scored


def test_the_result_is_written_as_json(folder, figures):
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(figures))


def test_answer_bits_are_those_of_the_answer_s_own_tokens(folder):
    model = load(folder / "model")
    question = Question((Message("user", "Say hi"),), "hi!")
    prompt = model.renderer.render(question.messages, generation_prompt=True).ids
    ids = prompt + model.tokenizer.encode("hi!")
    expected = -sum(model.log_probabilities(ids)[-3:]) / math.log(2)
    assert answer_bits(model, [question], "chat") == pytest.approx([expected], abs=1e-3)
    with_end = ids + [model.tokenizer.end_id]
    assert model.renderer.render((*question.messages, Message("assistant", "hi!"))).ids == with_end
    assert answer_span(model, question, "chat").ids == tuple(ids)
    plain = answer_span(model, question, "plain")
    assert model.tokenizer.decode(plain.ids) == "Question: Say hi\nAnswer: hi!"
    assert model.tokenizer.decode(plain.ids[plain.first :]) == " hi!"


def test_a_question_too_long_for_the_context_is_counted_not_cut(figures):
    assert figures["questions"]["left_out_too_long"] == 1


def test_answers_are_the_engine_s_greedy_answers(folder, figures):
    model = load(folder / "model")
    expected = model.chat("Say one", temperature=0.0, max_tokens=8).strip()
    samples = figures["questions"]["samples"]
    assert samples[0]["question"] == "Say one"
    assert samples[0]["reference"] == "one!"
    assert samples[0]["answer"] == expected
    assert "before" in samples[0]
    too_long = Question((Message("user", "x" * 60),), "y")
    assert greedy_answers(model, [too_long], "chat", 8) == [""]


def test_the_last_answer_of_a_conversation_is_the_question(folder):
    turns = (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Go on"), Message("assistant", "No."))
    assert questions_of([turns, turns[:1], turns[1:2], turns[:2]]) == [
        Question(turns[:3], "No."),
        Question(turns[:1], "Yes?"),
    ]


def test_word_f1_and_exactness_of_known_pairs():
    assert word_f1("a b c", "a b d") == pytest.approx(2 / 3)
    assert word_f1("a a", "a") == pytest.approx(2 / 3)
    assert word_f1("", "a") == 0
    assert same("a\n b", "a b")
    assert not same("a b.", "a b")


def test_a_base_model_is_asked_in_plain_text(folder, tmp_path):
    base = save_tiny(tmp_path / "base", tokenizer=byte_level(special=()))
    config = EvaluateConfig(base, questions=folder / "questions.jsonl", max_answer_tokens=4, threads=1)
    found = evaluate(config, json=True)["questions"]
    assert found["form"] == "plain"
    with pytest.raises(ConfigError, match="got a base one"):
        answer_bits(load(base), [Question((Message("user", "a"),), "b")], "chat")


def test_questions_without_an_answer_are_the_files_fault(folder, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl: expected conversations that end with an answer, found none"):
        evaluate(EvaluateConfig(folder / "model", questions=tmp_path / "empty.jsonl", threads=1), json=True)


def test_text_without_a_training_shard_has_no_bigram_and_says_why(folder, tmp_path):
    (tmp_path / "text.txt").write_text(essay(1, 50))
    found = evaluate(EvaluateConfig(folder / "model", text=tmp_path / "text.txt", threads=1), json=True)
    assert "bigram_bits_per_byte" not in found
    assert found["method"]["bigram"].startswith("left out: ")
    assert found["scores"]["bits_per_byte"]["interval"] is None
    other = save_tiny(tmp_path / "other", tokenizer=characters(essay(1, 50) + " abcdefghijklmnopqrstuvwxyz0123456789"))
    found = evaluate(EvaluateConfig(other, text=folder / "data", threads=1), json=True)
    assert "tokenizer is not the model's" in found["method"]["bigram"]
    assert "uniform" in found["method"]["first_token"]


def test_nothing_to_evaluate_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="text or questions"):
        EvaluateConfig(folder / "model")
    with pytest.raises(ConfigError, match="seed: expected at least 0, got -1"):
        EvaluateConfig(folder / "model", text=folder / "data", seed=-1)
    with pytest.raises(ConfigError, match="stride: expected at most the context of 48"):
        evaluate(EvaluateConfig(folder / "model", text=folder / "data", stride=49), json=True)
    (tmp_path / "empty.txt").write_text(" ")
    with pytest.raises(DataError, match="expected text to evaluate on"):
        evaluate(EvaluateConfig(folder / "model", text=tmp_path / "empty.txt"), json=True)


def test_text_that_is_binary_is_not_said_to_be_held_back(folder, tmp_path):
    (tmp_path / "strange.txt").write_bytes(b"caf\xe9 \x00\xff\n")
    with pytest.raises(DataError, match=r"strange\.txt: .* found none; empty and binary files are no text"):
        evaluate(EvaluateConfig(folder / "model", tmp_path / "strange.txt"), json=True)


@pytest.mark.parametrize(
    ("name", "message"), [("bert", "a model that writes text, got bert"), ("t5", "a decoder, .* got t5")]
)
def test_a_model_without_a_loss_of_the_next_token_is_refused(tmp_path, name, message):
    """An encoder sees the token that it would be asked for: what is summed then is no measure of anything."""
    save_family(tmp_path / name, name)
    (tmp_path / "text.txt").write_text("Once upon a time.\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"model: expected {message}"):
        evaluate(EvaluateConfig(tmp_path / name, tmp_path / "text.txt"), json=True)
    save_tiny(tmp_path / "tiny")
    with pytest.raises(ConfigError, match=f"compare: expected {message}"):
        evaluate(EvaluateConfig(tmp_path / "tiny", tmp_path / "text.txt", compare=tmp_path / name), json=True)


def test_text_is_a_path_whatever_its_name(folder, tmp_path, monkeypatch):
    """`python` is the installation as a source of `data build` alone."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match="text: expected a file or folder of text, found none at nowhere; check the pat"
    ):
        evaluate(EvaluateConfig(folder / "model", text=Path("nowhere")), json=True)
    with pytest.raises(DataError, match="found none at python; .* build a folder with fledge data build"):
        evaluate(EvaluateConfig(folder / "model", text=Path("python")), json=True)
    (tmp_path / "python").write_text(essay(1, 50))
    found = evaluate(EvaluateConfig(folder / "model", text=Path("python"), threads=1), json=True)
    assert found["documents"] == 1


def test_the_command_line_gives_one_object_or_a_table(folder, capsys):
    words = ["evaluate", str(folder / "model"), "--text", str(folder / "data"), "--threads", "1"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["bits_per_byte"] > 0
    assert main(words) == 0
    printed = capsys.readouterr().out
    for name in ("the model", "token bigram", "gzip -9", "xz -9", "over xz's", "perplexity"):
        assert name in printed
    assert f"{found['bits_per_byte']:.4f}" in printed


@pytest.mark.parametrize("kind", ["folder", "below a file", "of another kind"])
def test_a_result_that_could_not_be_written_is_refused_before_the_work(folder, tmp_path, monkeypatch, kind):
    (tmp_path / "file").write_text("precious")
    out = {"folder": tmp_path, "below a file": tmp_path / "file" / "a.json", "of another kind": tmp_path / "file"}[kind]
    monkeypatch.setattr("fledge.evals.run.load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigError, match="choose another"):
        evaluate(EvaluateConfig(folder / "model", text=folder / "data", out=out), json=True)
    assert (tmp_path / "file").read_text() == "precious"


def test_an_earlier_result_is_written_over(folder, figures, tmp_path):
    out = tmp_path / "result.json"
    out.write_bytes((folder / "result.json").read_bytes())
    again = evaluate(EvaluateConfig(folder / "model", text=folder / "data", threads=1, seed=9, out=out), json=True)
    assert json.loads(out.read_text())["inputs"] == again["inputs"] != figures["inputs"]
