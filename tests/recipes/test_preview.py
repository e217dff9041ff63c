"""`data preview` marks what the trainer's batches weigh: each one that the loop draws, of every verb."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from fledge.batch import PADDING, Batch
from fledge.cli.main import main
from fledge.cli.preview import task_of, verb_of
from fledge.lineage import write_text_durably
from fledge.model.folder import save_model
from fledge.recipes.preview_config import PreviewConfig
from fledge.recipes.preview_text import COLOURED, PLAIN, text
from fledge.text.chat import Message, renderer_for
from fledge.text.tokenizer import byte_level
from fledge.train.loop import Loop
from tests.compress.tiny import text_file, tiny
from tests.data.corrupted import story, wordpiece

STEPS, ROWS = 2, 4
TRAIN = [f"train.steps={STEPS}", f"train.rows={ROWS}", "train.threads=1", "train.eval_every_steps=0"]
SMALL = ["model.width=16", "model.layers=1", "model.heads=2", "model.context_tokens=48"]
QUESTIONS = ("What is it?", "And why?\nTell me.", "Where to? «really»", "Who said that to whom, and when was it?")


def chat(n: int) -> dict:
    turns = [("user", QUESTIONS[n % 4]), ("assistant", f"answer {n}" * (1 + n % 3))] * (1 + n % 2)
    return {"messages": [{"role": role, "content": said} for role, said in turns]}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("preview")
    save_model(tiny("llama", width=16, layers=1, heads=2, context_tokens=96), folder / "base", byte_level())
    bert = tiny("bert", width=16, layers=1, heads=2, context_tokens=64, vocab_size=wordpiece().vocab_size)
    save_model(bert, folder / "bert", wordpiece())
    rows = {
        "chats": [chat(n) for n in range(14)] + [{"prompt": "long " * 30, "response": "never learnt"}],
        "pairs": [{"prompt": f"say {n}", "chosen": "yes " * (n % 4 + 1), "rejected": "no"} for n in range(12)],
        "labels": [{"text": story(n, 1 + n % 3), "label": ("red", "blue")[n % 2]} for n in range(12)],
        "tags": [{"tokens": story(n, 1).split(), "tags": ["B-PER", *["O"] * (len(story(n, 1).split()) - 1)]}
                 for n in range(12)],
    }  # fmt: skip
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text_file(folder / "words.txt")
    (folder / "many").mkdir()
    for n in range(40):
        (folder / "many" / f"{n}.txt").write_text(story(n, 1 + n % 3))
    return folder


CASES = {
    "sft": ("sft", "chats.jsonl", ["model.path=base", "data.val_fraction=0.2"]),
    "pairs": ("align dpo", "pairs.jsonl", ["model.path=base"]),
    "judged": ("align dpo", "pairs.jsonl", ["model.path=base", "preference.loss=kto"]),
    "labels": ("finetune", "labels.jsonl", ["model.path=bert"]),
    "behind": ("finetune", "labels.jsonl", ["model.path=bert", "tune.method=prompt", "tune.virtual_tokens=44"]),
    "tags": ("finetune", "tags.jsonl", ["model.path=bert", "task=token"]),
    "causal": ("pretrain", "words.txt", SMALL),
    "documents": ("pretrain", "many", SMALL),
    "masked": ("pretrain", "many", ["objective=masked", "model.family=bert", *SMALL]),
    "spans": ("pretrain", "many", ["objective=spans", "model.family=t5", *SMALL]),
    "prefix": ("pretrain", "many", ["objective=prefix", *SMALL]),
}


@pytest.fixture
def drawn(monkeypatch) -> list[Batch]:
    """Every batch that the loop trains on."""
    found: list[Batch] = []
    plain = Loop.next_batch

    def spied(self):
        found.append(plain(self))
        return found[-1]

    monkeypatch.setattr(Loop, "next_batch", spied)
    return found


def shown(capsys, *words: str) -> dict:
    assert main(["data", "preview", *words, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def marked(row: dict) -> list[int]:
    """Ids of the tokens that a row marks as trained, in order."""
    part = row["parts"].get("target", row["parts"].get(""))
    return [i for one in part["documents"] for i, weight in zip(one["ids"], one["weights"], strict=True) if weight > 0]


def read(row: dict, name: str) -> list[list[int]]:
    return [one["ids"] for one in row["parts"][name]["documents"]]


def documents(ids: torch.Tensor, doc: torch.Tensor) -> list[list[int]]:
    """Ids of each document of a row, by its numbers alone."""
    return [ids[doc == number].tolist() for number in dict.fromkeys(doc.tolist()) if number != PADDING]


def differences(rows: list[dict], batches: list[Batch], same: bool, answers: bool = False) -> list[int]:
    """Rows whose marks are not the trainer's weights, whose tokens are not its tokens, or whose borders not its own."""
    wrong = []
    for n, row in enumerate(rows):
        batch, b = batches[n // ROWS], n % ROWS
        there = batch.weight[b] > 0
        target = row["parts"].get("target", row["parts"].get(""))
        trained = [] if answers else (batch.tokens.ids if same else batch.targets)[b][there].tolist()
        inputs = documents(batch.tokens.ids[b], batch.tokens.doc[b])
        found = [one["ids"] for one in target["documents"]]
        alike = marked(row) == trained and row["from"] == batch.sample_ids[b]
        alike &= len(found) == len(inputs)
        alike &= all(a[: len(b)] == b and len(a) - len(b) <= 1 for a, b in zip(found, inputs, strict=False))
        alike &= target["padding"] == int((batch.tokens.doc[b] == PADDING).sum())
        if batch.source is not None:
            tokens = batch.source[0]
            alike &= read(row, "source") == documents(tokens.ids[b], tokens.doc[b])
            alike &= not any(w for one in row["parts"]["source"]["documents"] for w in one["weights"])
        if not alike:
            wrong.append(n)
    return wrong


@pytest.mark.parametrize("name", CASES)
def test_what_is_marked_is_what_the_trainers_batches_weigh(place, tmp_path, monkeypatch, capsys, drawn, name):
    verb, data, words = CASES[name]
    monkeypatch.chdir(place)
    assert main([*verb.split(), f"data.path={data}", *words, *TRAIN, f"run.dir={tmp_path / 'run'}"]) == 0
    capsys.readouterr()
    changes = [*words, *TRAIN]
    result = shown(capsys, data, *changes, "--rows", str(STEPS * ROWS))
    assert result["verb"] == verb and len(drawn) == STEPS
    same, answers = name in ("masked", "tags"), name in ("labels", "behind")
    assert differences(result["rows"], drawn, same, answers) == []
    assert any(marked(row) for row in result["rows"]) != answers
    borders = any(len(one["parts"][""]["documents"]) > 1 for one in result["rows"] if "" in one["parts"])
    assert borders == (name in ("sft", "pairs", "documents", "masked", "prefix"))
    # the control: rows of another order differ, and so does one token that is not trained
    other = shown(capsys, data, *changes, "--rows", str(STEPS * ROWS), "--first_row", "1")
    assert differences(other["rows"], drawn, same, answers)
    drawn[0].weight[0, drawn[0].weight[0].nonzero()[0]] = 0
    assert answers or differences(result["rows"], drawn, same) == [0]


def test_counts_are_those_of_an_epoch_and_rules_tell_what_does_not_fit(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    result = shown(capsys, "chats.jsonl", "model.path=base", "data.val=chats.jsonl", "train.row_tokens=80", *TRAIN)
    renderer = renderer_for(byte_level())
    lines = [json.loads(line) for line in (place / "chats.jsonl").read_text().splitlines()]
    whole = [renderer.render([Message(**m) for m in line["messages"]]) for line in lines[:-1]]
    cut = [one for one in whole if len(one.ids) > 81]
    kept = [(one.ids[:81], one.trained[:81]) for one in whole]
    n = result["counts"]
    assert n["trained"] == sum(sum(trained) for _, trained in kept)
    assert n["tokens"] == sum(len(ids) - 1 for ids, _ in kept)
    assert n["documents"] == 14 and n["rows"] == result["rows_per_epoch"]
    assert n["tokens"] + n["padding"] == 80 * n["rows"]
    assert [rule["n"] for rule in result["rules"]] == [len(cut) + 1, 1] and cut
    assert "cut at their end to 81 tokens" in result["rules"][0]["rule"]


def test_a_plain_terminal_gets_brackets_and_a_colour_terminal_colours(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    words = ["chats.jsonl", "model.path=base", "data.val_fraction=0.2", "--rows", "2", *TRAIN]
    assert main(["data", "preview", *words]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\n -- document 1, " in printed and "places of padding" in printed
    joined = "".join(re.findall("«(.*?)»", printed.partition("row 0")[2])).replace("│", "")
    assert re.fullmatch(r"((answer \d+)+<\|end\|>)+", joined)
    result = shown(capsys, *words)
    coloured = text(result, False, 512, COLOURED)
    assert "\x1b[1;32ma│n│s│w│e│r" in coloured and "\x1b[1;32mW│h│a│t" not in coloured
    assert f"({byte_level().encode('a')[0]})" in text(result, True, 512, PLAIN)
    assert "… " in text(result, False, 5, PLAIN) and "… " not in text(result, False, 512, PLAIN)


def test_text_cannot_steer_the_terminal_or_the_page(place, tmp_path, capsys):
    row = {"prompt": "\x1b[2J<script>alert(1)</script>", "response": "fine"}
    (tmp_path / "bad.jsonl").write_text((json.dumps(row) + "\n") * 4)
    page = tmp_path / "page.html"
    words = [str(tmp_path / "bad.jsonl"), f"model.path={place / 'base'}", *TRAIN]
    assert main(["data", "preview", *words, "--html", str(page)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    told = page.read_text()
    assert "<script" not in told and "http://" not in told and "https://" not in told
    assert told.count('class="trained"') > 10 and "&lt;" in told


def test_a_page_that_could_not_be_written_is_refused_before_rows_are_drawn(place, tmp_path, capsys, monkeypatch):
    words = ["data", "preview", str(place / "chats.jsonl"), f"model.path={place / 'base'}", *TRAIN, "--json"]
    words += ["data.val_fraction=0.2"]
    assert main([*words, "--html", str(tmp_path / "new" / "page.html")]) == 0
    assert (tmp_path / "new" / "page.html").stat().st_size
    monkeypatch.setattr("fledge.recipes.preview.preview_rows", lambda *_: pytest.fail("rows were drawn"))
    (tmp_path / "file").write_text("x")
    for page, says in ((tmp_path, "got a folder"), (tmp_path / "file" / "page.html", "file: expected a folder to")):
        capsys.readouterr()
        assert main([*words, "--html", str(page)]) == 2
        assert says in capsys.readouterr().err


def test_what_could_not_be_written_is_named_and_not_its_scratch(tmp_path):
    for path in (tmp_path / "nowhere" / "page.html", tmp_path / "folder"):
        (tmp_path / "folder" / "full").mkdir(parents=True, exist_ok=True)
        with pytest.raises(OSError) as refused:
            write_text_durably(path, "x")
        assert refused.value.filename == str(path)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("lines, at", [
    (['{"prompt": "a", "response": "b"}'] * 2 + ['{"prompt": "a", "response": 3}'], "line 3"),
    (['{"chosen": "a", "rejected": "b", "prompt": "c"}', '{"chosen": "a"}'], "line 2"),
    (['{"text": "a", "label": "b"}', '{"text": "a"}'], "line 2"),
    (["[3"], "rows.jsonl"),
])  # fmt: skip
def test_a_wrong_row_is_told_with_its_file_and_line(place, tmp_path, capsys, lines, at):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    assert main(["data", "preview", str(path), f"model.path={place / 'base'}"]) == 1
    told = capsys.readouterr().err
    assert str(path) in told and at in told


def test_a_config_file_and_a_run_folder_are_previewed_as_they_train(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    config = tmp_path / "tune.yaml"
    config.write_text("model: {path: base}\ndata: {path: chats.jsonl, val_fraction: 0.2}\n"
                      f"run: {{dir: {tmp_path / 'run'}}}\n"
                      "train: {steps: 1, rows: 2, threads: 1, eval_every_steps: 0, seed: 5}\n")  # fmt: skip
    by_file = shown(capsys, str(config))
    assert by_file["verb"] == "sft"
    assert main(["sft", str(config)]) == 0
    capsys.readouterr()
    assert shown(capsys, str(tmp_path / "run"))["rows"] == by_file["rows"]
    assert shown(capsys, str(config), "train.seed=6")["rows"] != by_file["rows"]
    assert main(["data", "preview", str(config), "train.sed=6"]) == 2
    assert "train.sed" in capsys.readouterr().err
    assert main(["data", "preview", str(config), "--first_row", "99", "--split", "val"]) == 2
    assert "first_row: expected one of the rows of split val, got 99" in capsys.readouterr().err


@pytest.mark.parametrize("name, lines, verb, task", [
    ("a.tsv", "sentence\tlabel\nwhy\tx\n", "finetune", "sequence"),
    ("a.csv", "source,target\nwhy,not\n", "finetune", "text2text"),
    ("a.conll", "Anna B-PER\nsings O\n", "finetune", "token"),
    ("a.jsonl", '{"question": "q", "choices": ["a", "b"], "answer": 0}', "finetune", "choice"),
    ("a.json", '{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q"}]}]}]}', "finetune", "span"),
    ("a.json", '[{"tokens": ["a"], "tags": ["O"]}]', "finetune", "token"),
    ("a.jsonl", '{"prompt": "p", "completion": "c", "label": true}', "align dpo", ""),
    ("a.jsonl", '{"instruction": "p", "output": "c"}', "sft", ""),
    ("a.txt", "text", "pretrain", ""),
])  # fmt: skip
def test_the_verb_and_the_task_are_told_by_the_first_row(tmp_path, name, lines, verb, task):
    path = tmp_path / name
    path.write_text(lines)
    assert verb_of(str(path)) == verb
    assert verb != "finetune" or task_of(str(path)) == task


@pytest.mark.parametrize("verb", ["align dpo", "finetune"])
def test_the_verb_can_be_named_beside_the_data(place, monkeypatch, capsys, verb):
    monkeypatch.chdir(place)
    _, data, words = next(case for case in CASES.values() if case[0] == verb)
    asked = shown(capsys, data, *words, "--verb", verb)
    assert asked["verb"] == verb and asked == shown(capsys, data, *words)
    assert main(["data", "preview", data, *words, "--verb", verb, "train.sed=6"]) == 2  # its keys, its errors
    assert "unknown key train.sed" in capsys.readouterr().err


def test_nothing_is_written_beside_the_data(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    before = sorted(path for path in place.rglob("*"))
    shown(capsys, "many", *SMALL, *TRAIN)
    assert sorted(path for path in place.rglob("*")) == before
    with pytest.raises(Exception, match="rows: expected at least 0"):
        PreviewConfig("many", rows=-1)
