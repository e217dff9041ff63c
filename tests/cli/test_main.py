"""The `fledge` command as a script sees it: exit codes, last lines, quiet pipes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

import fledge as package
from fledge.cli import main as command
from fledge.cli.verbs import Verb
from fledge.errors import CheckpointError, Interrupted


def fledge(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "fledge", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, env={**os.environ, **env})


def test_version_and_help_answer_on_standard_output():
    version = fledge("--version")
    assert (version.returncode, version.stdout) == (0, f"fledge {package.__version__}\n")
    overview = fledge("--help")
    assert overview.returncode == 0 and "pretrain" in overview.stdout and overview.stderr == ""


def test_a_typo_exits_2_with_one_line_and_a_suggestion():
    got = fledge("env", "--pek", "1")
    assert got.returncode == 2
    assert got.stderr == "error: fledge env: unknown key --pek; did you mean peak?\n"


def test_the_last_line_with_json_is_the_result():
    got = fledge("env", "--no-peak", "--json")
    assert json.loads(got.stdout.splitlines()[-1])["fledge"] == package.__version__


def test_an_error_with_json_is_one_object_too():
    got = fledge("env", "--pek", "--json")
    error = json.loads(got.stdout.splitlines()[-1])["error"]
    assert (got.returncode, error["type"], error["exit_code"]) == (2, "ConfigError", 2)


def test_schema_of_a_verb_is_json():
    schema = json.loads(fledge("config", "schema", "env").stdout)
    assert schema["properties"]["peak"]["default"] is True
    assert schema["additionalProperties"] is False


def run_with(monkeypatch, capsys, function, *words: str) -> tuple[int, str, str]:
    verb = Verb("env", "a verb whose function is the test's", "fledge.cli.env:EnvConfig", "-:-", yaml=False)
    monkeypatch.setattr("fledge.cli.parse.VERBS", (verb,))
    real = command.named
    monkeypatch.setattr(command, "named", lambda path: function if path == "-:-" else real(path))
    code = command.main(["env", *words])
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("error", "code"),
    [(CheckpointError("a: damaged;\nrestore it"), 1), (Interrupted("saved"), 75), (KeyboardInterrupt(), 130)],
)
def test_errors_become_their_exit_codes(monkeypatch, capsys, error, code):
    def fail(config):
        raise error

    got, out, err = run_with(monkeypatch, capsys, fail)
    assert got == code and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err


def test_an_unexpected_error_is_one_line_unless_debugging(monkeypatch, capsys):
    def fail(config):
        raise ZeroDivisionError("division by zero")

    code, _, err = run_with(monkeypatch, capsys, fail)
    assert code == 1
    assert err == "error: ZeroDivisionError: division by zero; set FLEDGE_DEBUG=1 to see where\n"
    monkeypatch.setenv("FLEDGE_DEBUG", "1")
    code, _, err = run_with(monkeypatch, capsys, fail)
    assert code == 1 and "Traceback" in err  # the control


def test_a_missing_extra_is_named(monkeypatch, capsys):
    def fail(config):
        raise ModuleNotFoundError("No module named 'starlette'", name="starlette")

    code, _, err = run_with(monkeypatch, capsys, fail)
    assert code == 1 and "pip install 'fledge[serve]'" in err


def test_a_function_that_asks_for_json_is_told(monkeypatch, capsys):
    def run(config, json=False):
        return {"told": json, "rate": float("nan")}

    code, out, _ = run_with(monkeypatch, capsys, run, "--json")
    assert code == 0 and json.loads(out) == {"told": True, "rate": "nan"}
    assert run_with(monkeypatch, capsys, run)[1] == ""


def test_a_closed_pipe_is_no_error():
    line = [sys.executable, "-m", "fledge", "config", "schema", "env"]
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        got = subprocess.run(line, stdout=write_end, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(write_end)
    assert (got.returncode, got.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("sent", "code", "said"), [(signal.SIGINT, 130, "error: interrupted\n"), (signal.SIGTERM, -signal.SIGTERM, "")]
)
def test_a_signal_where_there_is_no_state_to_save(sent, code, said):  # a shell tells -15 as 143
    program = (
        "import time\nfrom fledge.cli import main\n"
        "def wait(*_):\n    print('waiting', flush=True)\n    time.sleep(60)\n"
        "main.dispatch = wait\nraise SystemExit(main.main(['env']))"
    )
    line = [sys.executable, "-c", program]
    child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None and child.stdout.readline() == "waiting\n"
        child.send_signal(sent)
        _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (code, said)


@pytest.mark.parametrize("words", [["--help"], ["env", "--help"], ["config", "schema", "--help"]])
def test_help_loads_no_torch(words):
    code = "import sys\nfrom fledge.cli.main import main\n"
    code += f"code = main({words!r})\nassert 'torch' not in sys.modules\nraise SystemExit(code)"
    got = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert "usage: fledge" in got.stdout


@pytest.mark.parametrize(("group", "verbs"), [("data", 6), ("tokenizer", 6), ("config", 1)])
def test_the_help_of_a_group_is_its_verbs(group, verbs, capsys):
    assert command.main([group, "--help"]) == 0
    printed = capsys.readouterr().out
    listed = [line for line in printed.splitlines() if line.startswith(f"  {group} ")]
    assert len(listed) == verbs and "pretrain" not in printed
    assert command.main([group]) == 2


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "a/b"), "a/b: Permission denied; give yourself the right"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room on the disk"),
        (IsADirectoryError(21, "Is a directory", b"d"), "d: Is a directory; choose a file"),
        (OSError("odd"), "OSError; check it"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_a_remedy(monkeypatch, capsys, error, line):
    def fail(config):
        raise error

    code, out, err = run_with(monkeypatch, capsys, fail, "--json")
    assert code == 1 and line in err and err.count("\n") == 1 and "FLEDGE_DEBUG" not in err
    assert json.loads(out)["error"]["exit_code"] == 1


def test_help_of_a_verb_is_its_help_either_way_round(capsys):
    assert command.main(["help", "env"]) == 0
    first = capsys.readouterr().out
    assert command.main(["env", "--help"]) == 0
    assert first == capsys.readouterr().out and "fledge env" in first
    assert command.main(["help", "data"]) == 0 and "data build" in capsys.readouterr().out


def test_json_with_a_value_is_told_to_take_none(capsys):
    assert command.main(["env", "--json=yes"]) == 2
    assert "--json takes no value; write --json" in capsys.readouterr().err
