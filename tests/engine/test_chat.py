"""`fledge chat`: over a pipe line by line, on a terminal with commands and Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fledge.cli.chat import Talk, chat, sampling_of
from fledge.cli.main import main
from fledge.engine.config import ChatConfig
from fledge.engine.load import load_engine
from fledge.errors import RequestError
from fledge.text.chat import Message, renderer_for

ROOT = Path(__file__).resolve().parents[2]


def talk(model: str = "stub:", **settings) -> Talk:
    config = ChatConfig(model, **settings)
    engine = load_engine(model)
    return Talk(engine, renderer_for(engine.tokenizer), sampling_of(config), config.system, config.max_tokens)


def pipe(monkeypatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))


def test_a_pipe_gets_one_answer_a_line_and_nothing_else(monkeypatch, capfd):
    pipe(monkeypatch, "hello\n\nagain\n")
    assert main(["chat", "stub:text=Good%20day"]) == 0
    assert capfd.readouterr() == ("Good day\nGood day\n", "")


def test_json_holds_the_conversation(monkeypatch, capfd):
    pipe(monkeypatch, "hello\n//slash\n/exit\nnever\n")
    assert main(["chat", "stub:text=Yes", "--system", "Be brief.", "--json"]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert result["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "/slash"},
        {"role": "assistant", "content": "Yes"},
    ]
    assert (result["turns"], result["generated_tokens"]) == (2, 8)


def test_the_prompt_is_what_the_renderer_gives_for_the_whole_conversation(monkeypatch):
    seen = []
    one = talk("stub:text=Fine", system="S")
    submit = one.engine.submit
    monkeypatch.setattr(one.engine, "submit", lambda request: (seen.append(request), submit(request))[1])
    one.take("first")
    one.take("second <|end|>")
    messages = (
        Message("system", "S"),
        Message("user", "first"),
        Message("assistant", "Fine"),
        Message("user", "second <|end|>"),
    )
    expected = one.renderer.render(messages, generation_prompt=True).ids
    assert seen[1].prompt_ids == tuple(expected)
    assert expected.count(one.engine.tokenizer.end_id) == 4  # what a user types is never a control token


def test_the_commands_do_what_they_say(capsys):
    one = talk()
    one.take("hi")
    assert len(one.history) == 2
    one.take("/reset")
    one.take("/system Be kind.")
    one.take("/temperature 0")
    one.take("/seed 42")
    assert (one.history, one.system) == ([], "Be kind.")
    assert (one.sampling.temperature, one.sampling.seed) == (0.0, 42)
    one.take("/system")
    assert one.system is None
    assert one.take("/help") and "/reset" in capsys.readouterr().err
    assert not one.take("/exit")


@pytest.mark.parametrize("line", ["/temperature hot", "/temperature -1", "/seed 1.5", "/nonsense", "/temperature"])
def test_a_mistaken_command_changes_nothing_and_is_named(line):
    one = talk()
    before = one.sampling
    with pytest.raises(Exception, match=r"/temperature|/seed|/nonsense|temperature: expected"):
        one.take(line)
    assert one.sampling == before and one.n_turns == 0


def test_a_conversation_that_outgrows_the_context_is_refused_and_keeps_what_it_had():
    one = talk("stub:text=ok&context_tokens=60")
    one.take("x" * 30)
    before = list(one.history)
    with pytest.raises(RequestError, match=r"has 70 tokens, the model's context holds 60.*not taken.*/reset") as caught:
        one.take("y" * 30)
    assert caught.value.code == "context_length_exceeded" and one.history == before
    one.take("short")
    assert len(one.history) == 4
    one.take("/reset")
    one.take("y" * 30)
    assert one.history[-1].content == "ok"


def test_from_a_pipe_the_overflow_is_an_error(monkeypatch, capfd):
    pipe(monkeypatch, "x" * 100 + "\n")
    assert main(["chat", "stub:context_tokens=60"]) == 1
    assert "context holds 60" in capfd.readouterr().err


def test_an_answer_that_the_context_cuts_says_so(capsys):
    one = talk("stub:text=" + "z" * 100 + "&context_tokens=60")
    one.take("hello")
    assert "the answer was cut: the context of 60 tokens is full" in capsys.readouterr().err
    limited = talk("stub:text=" + "z" * 100, max_tokens=5)
    limited.take("hello")
    assert limited.history[-1].content == "zzzzz" and capsys.readouterr().err == ""


def test_settings_are_checked_before_a_model_is_loaded(capfd):
    assert main(["chat", "stub:nonsense", "--temperature", "1000"]) == 2
    assert "temperature" in capfd.readouterr().err


def test_a_base_model_is_sent_to_completions(monkeypatch):
    from fledge.errors import ConfigError
    from fledge.text.tokenizer import byte_level

    monkeypatch.setattr("fledge.engine.stub_spec.StubSpec.tokenizer", lambda self: byte_level(special=()))
    with pytest.raises(ConfigError):
        chat(ChatConfig("stub:"))


class Terminal:
    """`fledge chat` on a pseudo-terminal of its own, with Ctrl-C as a terminal sends it."""

    def __init__(self, model: str):
        self.screen = b""
        pid, self.end = pty.fork()
        if pid == 0:
            os.chdir(ROOT)
            os.execve(sys.executable, [sys.executable, "-m", "fledge", "chat", model], {**os.environ, "TERM": "dumb"})
        self.pid = pid
        os.set_blocking(self.end, False)

    def type(self, text: str) -> None:
        self.screen = b""
        os.write(self.end, text.encode())

    def wait_for(self, text: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while text.encode() not in self.screen:
            assert time.monotonic() < deadline, self.screen
            try:
                self.screen += os.read(self.end, 10_000)
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                raise AssertionError(self.screen) from None

    def leave(self) -> int:
        deadline = time.monotonic() + 10
        while True:
            try:
                os.read(self.end, 10_000)
            except OSError:
                pass  # nothing to read, or the other end is gone
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.end)
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_on_a_terminal_ctrl_c_stops_the_answer_and_not_the_program():
    terminal = Terminal("stub:text=" + "abcdefghij" * 30 + "&delay_ms=30")
    terminal.wait_for("> ")
    terminal.type("hello\n")
    terminal.wait_for("abcdefghijabc")
    terminal.type("\x03")
    terminal.wait_for("stopped")
    terminal.wait_for("> ")
    terminal.type("/nonsense\n")
    terminal.wait_for("unknown command")
    terminal.wait_for("> ")
    terminal.type("half a line\x03")
    terminal.wait_for("leaves")
    terminal.wait_for("> ")
    terminal.type("/seed 3\n")
    terminal.wait_for("seed 3")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.leave() == 0


def test_ctrl_c_over_a_pipe_ends_the_answer_and_the_rest_goes_on():
    command = [sys.executable, "-m", "fledge", "chat", "stub:text=" + "abcdefghij" * 20 + "&delay_ms=30"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=2) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(b"hello\n")
        child.stdin.flush()
        first = os.read(child.stdout.fileno(), 1)
        child.send_signal(2)
        child.stdin.close()
        rest = child.stdout.read()
        assert child.wait(30) == 0
    assert (first + rest).endswith(b"\n") and len(rest) < 190
