"""A run that is refused leaves nothing behind, and the error names the key that can mend it."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from fledge.cli.main import main
from fledge.config import load
from fledge.errors import ConfigError, DataError
from fledge.model.folder import save_model
from fledge.model.retask import retask
from fledge.recipes.config import ChatDataConfig, PretrainConfig, SftConfig
from fledge.recipes.sft import conversations
from fledge.text.tokenizer import byte_level
from fledge.train.resume import write_run_yaml
from tests.compress.tiny import tiny

SMALL = ("model.width=16", "model.layers=1", "model.heads=2", "model.context_tokens=16", "train.steps=1")


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("The cat sat on the mat.\n" * 50)
    return tmp_path / "text"


REFUSED = {
    "run folder inside of the text": ("run.dir={text}/run", "expected a folder outside of the text"),
    "run folder deep inside of the text": ("run.dir={text}/a/b", "expected a folder outside of the text"),
    "text that isn't there": ("data.path={text}/nowhere", "found none; check"),
    "tokenizer that isn't there": ("data.tokenizer={text}/nowhere", "characters, bytes or a tokenizer, found none"),
    "heads that don't divide": ("model.heads=3", "nearest is 15"),
    "rows beyond the context": ("train.row_tokens=17", "at most the context of 16"),
    "a family that can't be saved": ("model.family=palm", "can be counted but not saved"),
    "a share above 1": ("data.val_fraction=2.5", "data: val_fraction: expected at least 0 and below 1"),
    "a sample without a token": ("sample.max_tokens=0", "sample.max_tokens: expected at least 1, got 0"),
    "a sample below zero": ("sample.temperature=-1", "sample.temperature: expected a number in 0..100, got -1.0"),
    "a key with a typo": ("model.widht=16", "did you mean model.width"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_makes_nothing(name, text, tmp_path, capsys):
    word, message = REFUSED[name]
    words = ["pretrain", f"data.path={text}", f"run.dir={tmp_path / 'run'}", *SMALL, word.format(text=text)]
    assert main(words) in (1, 2)
    assert message in capsys.readouterr().err
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {"text", "text/a.txt"}


def test_the_control_the_same_words_without_a_mistake_train(text, tmp_path):
    assert main(["pretrain", f"data.path={text}", f"run.dir={tmp_path / 'run'}", *SMALL, "--json"]) == 0
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.parametrize("verb", ["lr-range", "convert"])
def test_an_output_that_could_not_be_written_is_refused_before_the_work(verb, text, tmp_path, capsys, monkeypatch):
    def refuse(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("fledge.recipes.lr_range.fresh_recipe", lambda *_: pytest.fail("the model was built"))
    monkeypatch.setattr("fledge.model.convert.read_source", lambda *_: pytest.fail("the model was read"))
    out = tmp_path / "new" / "out"
    words = {"lr-range": [f"data.path={text}", f"out={out}", *SMALL[:-1]], "convert": [str(text), str(out)]}[verb]
    assert main([verb, *words]) == 2
    assert re.search(r"new.*: can't be written to \(Read-only file system\)", capsys.readouterr().err)
    assert {path.name for path in tmp_path.iterdir()} == {"text"}


def talk(path, n: int) -> str:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    path.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(n)))
    return str(path)


@pytest.mark.parametrize(
    ("n", "n_val", "message"),
    [(3, 0, "data.val: .*val.jsonl: expected conversations, found none"),
     (0, 3, "data.path: .*train.jsonl: expected conversations, found none"),
     (1, None, "data.path: .*train.jsonl: expected at least two conversations, one to hold out, got 1"),
     (0, None, "at least two conversations, one to hold out, got 0")],
)  # fmt: skip
def test_conversations_that_are_missing_are_named_by_their_own_key(n, n_val, message, tmp_path):
    val = "" if n_val is None else talk(tmp_path / "val.jsonl", n_val)
    data = ChatDataConfig(talk(tmp_path / "train.jsonl", n), val)
    with pytest.raises(DataError, match=message):
        conversations(SftConfig(data=data))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_some_conversations_are_always_left_to_train_on_and_some_held_out(share, tmp_path):
    training, held_out = conversations(SftConfig(data=ChatDataConfig(talk(tmp_path / "a.jsonl", 2), "", share)))
    assert len(training) == len(held_out) == 1
    with pytest.raises(ConfigError, match="val_fraction"):
        ChatDataConfig("a.jsonl", "", 1.0)


def test_a_run_s_config_is_read_back_equal_whatever_its_texts_look_like(tmp_path):
    changes = {"data.path": "3e4", "run.dir": "010", "sample.prompt": "1:30", "data.tokenizer": "no"}
    config = load(PretrainConfig, changes=changes)
    write_run_yaml(tmp_path, config, {"torch": "2"})
    assert load(PretrainConfig, tmp_path / "run.yaml") == config


WRITERS = {
    "sft": "sft model.path={model} data.path={chats} run.dir={run} train.steps=1",
    "dpo": "align dpo model.path={model} data.path={pairs} run.dir={run} train.steps=1",
    "grpo": "align grpo model.path={model} data.path={prompts} rewards=[{{kind: number}}] run.dir={run}",
    "best of": "align best-of {model} --data {prompts} rewards=[{{kind: number}}] --out {run}",
    "measure": "align measure {model} --data {prompts} rewards=[{{kind: number}}]",
    "generate": "generate {model} --prompt a",
}


KINDS = [(kind, verb) for kind in ("encoder", "encoder-decoder", "reward") for verb in WRITERS]
KINDS.remove(("encoder-decoder", "generate"))  # which writes from its source


@pytest.mark.parametrize(("kind", "verb"), KINDS)
def test_a_model_that_does_not_go_on_from_a_prompt_is_refused_before_anything_begins(kind, verb, tmp_path, capsys):
    models = {"encoder": tiny("bert"), "encoder-decoder": tiny("t5"), "reward": retask(tiny("llama"), "sequence", 1)}
    save_model(models[kind], tmp_path / "model", byte_level(("<|im_start|>", "<|im_end|>")))
    prompt = [{"role": "user", "content": "1+1="}]
    rows = {
        "prompts": {"messages": prompt, "answer": "2"},
        "pairs": {"messages": prompt, "chosen": "2", "rejected": "3"},
        "chats": {"messages": [*prompt, {"role": "assistant", "content": "2"}]},
    }
    places = {name: tmp_path / f"{name}.jsonl" for name in rows}
    for name, row in rows.items():
        places[name].write_text(f"{json.dumps(row)}\n" * 3)
    places |= {"model": tmp_path / "model", "run": tmp_path / "run"}
    words = [word.replace("~", " ").format(**places) for word in WRITERS[verb].replace(": ", ":~").split(" ")]
    assert main(words) == 2
    assert "expected a" in (said := capsys.readouterr().err) and ("decoder" in said or "writes" in said)
    assert not places["run"].exists()


def test_the_control_a_decoder_goes_on_from_a_prompt(tmp_path):
    save_model(tiny("llama"), tmp_path / "model", byte_level())
    assert main(["generate", str(tmp_path / "model"), "--prompt", "a", "--max-tokens", "1", "--json"]) == 0


@pytest.mark.parametrize("verb", ["generate M --prompt a", "chat M", "fill M a", "predict M a", "evaluate M --text a"])
def test_more_threads_than_a_machine_bears_are_refused(verb, tmp_path, capsys):
    save_model(tiny("llama"), tmp_path / "model", byte_level())
    words = [str(tmp_path / "model") if word == "M" else word for word in verb.split()]
    assert main([*words, "--threads", "100000"]) == 2
    assert "threads: expected 0..1024, got 100000" in capsys.readouterr().err


STRANGERS = {"model": "model/important.txt", "log.jsonl": "log.jsonl", "run.yaml": "run.yaml"}


@pytest.mark.parametrize("name", STRANGERS)
def test_files_that_no_run_wrote_are_left_where_they_are(name, text, tmp_path, capsys):
    path = tmp_path / "run" / STRANGERS[name]
    path.parent.mkdir(parents=True)
    for mine in ('{"mine": 1}\n', '{"mine": 1}'):
        path.write_text(mine)
        assert main(["pretrain", f"data.path={text}", f"run.dir={tmp_path / 'run'}", *SMALL]) == 2
        assert f"with {name} that no run wrote" in capsys.readouterr().err
        assert path.read_text() == mine


@pytest.mark.parametrize("cut", ["", '{"ki', '{"kind": "start", "ti'])
def test_a_log_whose_first_line_a_crash_cut_is_the_runs_own(cut, text, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text(cut)
    assert main(["pretrain", f"data.path={text}", f"run.dir={tmp_path / 'run'}", *SMALL]) == 0


def test_a_run_that_ended_before_its_first_checkpoint_is_begun_again(text, tmp_path):
    words = ["pretrain", f"data.path={text}", f"run.dir={tmp_path / 'run'}", *SMALL]
    assert main(words) == 0
    for name in ("checkpoints", "model"):  # as a run leaves its folder that was killed early
        shutil.rmtree(tmp_path / "run" / name)
    assert (tmp_path / "run" / "log.jsonl").is_file() and (tmp_path / "run" / "run.yaml").is_file()
    assert main(words) == 0
