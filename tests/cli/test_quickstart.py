"""Quickstart is the ordinary verbs with ordinary files: every file fits its verb, folders move with --out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fledge import config as configs
from fledge.cli import quickstart as module
from fledge.cli.main import named
from fledge.cli.parse import find_verb
from fledge.cli.quickstart import OUT, SERVE, STEPS, QuickstartConfig, placed, quickstart, runs_folder, step_config
from fledge.data.build import build
from fledge.errors import ConfigError, DataError, Interrupted
from tests.data.folders import essay, make


@pytest.mark.parametrize(("verb", "file"), [*STEPS, SERVE], ids=lambda text: text)
def test_every_file_is_a_config_of_its_verb(verb, file):
    config = named(find_verb(verb.split())[0].config)
    assert configs.load(config, runs_folder() / file) == step_config(QuickstartConfig(), verb, runs_folder() / file)


def test_every_file_of_the_folder_is_a_step():
    assert sorted(p.name for p in runs_folder().iterdir()) == sorted(file for _, file in [*STEPS, SERVE])


def test_all_folders_move_with_out():
    config = QuickstartConfig(out=Path("/elsewhere/x"), text=Path("books"))
    for verb, file in [*STEPS, SERVE]:
        tree = str(configs.to_dict(step_config(config, verb, runs_folder() / file)))
        assert OUT not in tree and "/elsewhere/x" in tree
        assert ("books" in tree) == (verb == "data build")
    assert placed({"a": [f"{OUT}/b", f"{OUT}s", 3]}, "c") == {"a": ["c/b", f"{OUT}s", 3]}


def test_what_a_step_reads_an_earlier_step_wrote():
    """Every folder named in a file is the out of an earlier one, so no step can miss its input."""
    written: set[str] = set()
    for verb, file in [*STEPS, SERVE]:
        tree = configs.read_yaml(runs_folder() / file)
        own = {tree.get("out"), tree.get("run", {}).get("dir") if isinstance(tree.get("run"), dict) else None}
        named_here = {text for text in texts(tree) if text.startswith(OUT)}
        for text in named_here - own:
            assert any(text == folder or text.startswith(f"{folder}/") for folder in written), (verb, text)
        written |= {text for text in own if text}


def texts(value) -> set[str]:
    if isinstance(value, dict | list):
        return {t for item in (value.values() if isinstance(value, dict) else value) for t in texts(item)}
    return {value} if isinstance(value, str) else set()


@pytest.fixture
def called(monkeypatch):
    """Verbs that only note that they were called; `called.failing` names one that is interrupted."""
    calls: list[tuple[str, bool]] = []
    failing: set[str] = set()

    def fake(path: str):
        if path.split(":")[1].endswith("Config"):
            return named(path)

        def run(config, json=False):
            if path in failing:
                raise Interrupted("saved")
            calls.append((path.partition(":")[2], json))
            return {"matmul_peak_flops": 2e11}

        return run

    monkeypatch.setattr(module, "named", fake)
    calls_and_failing = (calls, failing)
    return calls_and_failing


def test_the_steps_run_in_order_and_the_time_is_told(called, tmp_path, capsys):
    calls, _ = called
    result = quickstart(QuickstartConfig(out=tmp_path, serve=False), json=True)
    order = ["build", "train_tokenizer", "build", "pretrain", "build_qa", "sft", "evaluate", "evaluate", "report"]
    assert calls == [(name, True) for name in order]
    assert list(result["steps"]) == [
        "corpus",
        "tokenizer",
        "shards",
        "pretrain",
        "questions",
        "sft",
        "text",
        "answers",
        "report",
    ]
    said = capsys.readouterr().err
    assert "[9/9] done in" in said and "computing time" in said and "matmul peak of 200 GFLOP/s" in said


def test_an_interrupted_step_ends_it_there(called, tmp_path):
    calls, failing = called
    failing.add("fledge.recipes.pretrain:pretrain")
    with pytest.raises(Interrupted):
        quickstart(QuickstartConfig(out=tmp_path, serve=False), json=True)
    assert [name for name, _ in calls] == ["build", "train_tokenizer", "build"]
    failing.clear()
    quickstart(QuickstartConfig(out=tmp_path, serve=False), json=True)
    assert calls[-1][0] == "report"


def test_it_becomes_the_server(called, tmp_path, monkeypatch):
    became: list[list[str]] = []
    monkeypatch.setattr(module.os, "execv", lambda program, words: became.append(words))
    quickstart(QuickstartConfig(out=tmp_path, port=0), json=True)
    (words,) = became
    assert words[1:4] == ["-m", "fledge", "serve"] and words[5:] == [f"model={tmp_path / 'sft'}", "port=0", "--json"]
    quickstart(QuickstartConfig(out=tmp_path, serve=False), json=True)
    assert len(became) == 1  # the control


@pytest.fixture
def runs(tmp_path) -> Path:
    """The files of the quickstart, to be changed."""
    return Path(shutil.copytree(runs_folder(), tmp_path / "runs"))


@pytest.mark.parametrize("file", [file for _, file in (*STEPS, SERVE)])
def test_a_mistake_in_any_file_is_found_before_the_first_step(called, runs, tmp_path, file):
    calls, _ = called
    (runs / file).write_text((runs / file).read_text() + "planted: 1\n")
    with pytest.raises(ConfigError, match=f"{file}: planted: unknown key"):
        quickstart(QuickstartConfig(runs=runs, out=tmp_path / "out", serve=False), json=True)
    assert calls == []


def test_a_port_out_of_range_is_found_before_the_first_step(called, tmp_path):
    calls, _ = called
    with pytest.raises(ConfigError, match="port"):
        quickstart(QuickstartConfig(out=tmp_path / "out", port=70_000), json=True)
    assert calls == []


def test_a_missing_server_is_found_before_the_first_step(called, tmp_path, monkeypatch):
    calls, _ = called
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(ModuleNotFoundError) as raised:
        quickstart(QuickstartConfig(out=tmp_path / "out"), json=True)
    assert raised.value.name == "uvicorn" and calls == []
    quickstart(QuickstartConfig(out=tmp_path / "out", serve=False), json=True)  # the control
    assert calls


def test_an_out_that_moves_nothing_is_refused(called, runs, tmp_path):
    calls, _ = called
    for _, file in (*STEPS, SERVE):
        (runs / file).write_text((runs / file).read_text().replace(OUT, str(tmp_path / "mine")))
    with pytest.raises(ConfigError, match="out: expected files that name out/quickstart"):
        quickstart(QuickstartConfig(runs=runs, out=tmp_path / "out", serve=False), json=True)
    assert calls == []
    quickstart(QuickstartConfig(runs=runs, serve=False), json=True)
    assert calls


def test_a_folder_in_its_own_text_is_refused(called, tmp_path):
    calls, _ = called
    with pytest.raises(ConfigError, match="expected a folder outside of the text"):
        quickstart(QuickstartConfig(text=tmp_path, out=tmp_path / "out", serve=False), json=True)
    assert calls == []


def test_a_text_folder_named_python_is_a_folder():
    step = step_config(QuickstartConfig(text=Path("python")), *STEPS[0][:1], runs_folder() / STEPS[0][1])
    assert step.source == str(Path("python").absolute())


def test_another_text_is_refused_before_the_corpus_is_touched(called, tmp_path):
    calls, _ = called
    make(tmp_path / "text", {f"{n}.txt": essay(n) for n in range(4)})
    chosen = QuickstartConfig(text=tmp_path / "text", out=tmp_path / "out", serve=False)
    build(step_config(chosen, *STEPS[0][:1], runs_folder() / STEPS[0][1]), json=True)
    (tmp_path / "text" / "5.txt").write_text(essay(5))
    quickstart(chosen, json=True)  # nothing is trained yet
    (tmp_path / "out" / "pretrain").mkdir()
    (tmp_path / "out" / "pretrain" / "run.yaml").write_text("")
    calls.clear()
    with pytest.raises(DataError, match="out: holds a quickstart of another text; use another --out"):
        quickstart(chosen, json=True)
    assert calls == []
    (tmp_path / "text" / "5.txt").unlink()
    quickstart(chosen, json=True)
    assert calls


def test_a_mistake_in_a_file_names_file_and_key(tmp_path):
    (tmp_path / "1-corpus.yaml").write_text("sorce: python\nout: out/quickstart/corpus\n")
    with pytest.raises(ConfigError, match=r"1-corpus.yaml: sorce: unknown key; did you mean source"):
        quickstart(QuickstartConfig(runs=tmp_path, serve=False), json=True)
