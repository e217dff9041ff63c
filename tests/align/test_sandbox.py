"""Code from a model computes and does nothing else: each way out is tried."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from fledge.align import sandbox
from fledge.align.sandbox import Limits, check_sandbox, passes, run
from fledge.errors import ConfigError

SHORT = Limits(seconds=1.0)


def test_code_that_passes_its_tests_passes():
    assert run("import math, re, json\ndef f(x):\n    return math.sqrt(x)", "assert f(4) == 2").outcome == "passed"
    assert passes("print('x' * 100_000)", "assert True")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("def f(): return 1", "AssertionError"),
        ("def f(: return 2", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
    ],
)
def test_code_that_fails_says_how(code, kind):
    verdict = run(code, "assert f() == 2")
    assert (verdict.outcome, verdict.detail) == ("failed", kind)


ESCAPES = {
    "network": "import socket; socket.socket()",
    "a process": "import os; os.fork()",
    "a command": "import subprocess; subprocess.run(['true'])",
    "another program": "import os; os.execv('/bin/true', ['true'])",
    "a thread": "import threading; threading.Thread(target=print).start()",
    "a signal": "import os; os.kill(os.getppid(), 0)",
    "writing": "open({path!r}, 'w')",
    "writing to its folder": "open('x', 'w')",
    "removing": "import os; os.unlink({path!r})",
    "renaming": "import os; os.rename({path!r}, {path!r} + '2')",
    "a folder": "import os; os.mkdir('x')",
    "its limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "memory": "x = bytearray(1 << 30)",
}


@pytest.mark.parametrize("what", ESCAPES)
def test_there_is_no_way_out_by(what, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("here")
    assert run(ESCAPES[what].format(path=str(victim)), "", SHORT).outcome == "failed"
    assert victim.read_text() == "here"


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.write(1, b'{}'); os._exit(0)",
        "import os; os.write(3, b'[' * 4000); os._exit(0)",
        "import ctypes; ctypes.string_at(0)",
    ],
)
def test_leaving_before_the_tests_is_no_pass(code):
    assert run(code, "assert False", SHORT).outcome == "died"


def test_code_without_end_is_ended(monkeypatch):
    assert run("while True:\n    pass", "", SHORT).outcome == "time"
    monkeypatch.setattr(sandbox, "START_SECONDS", 0.5)
    began = time.monotonic()
    assert run("import time\ntime.sleep(60)", "", SHORT).outcome == "time"
    assert time.monotonic() - began < 10


def test_nothing_of_our_environment_and_no_folder_is_left_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run("import os\nassert 'SECRET' not in os.environ\nassert os.listdir('.') == []", "").outcome == "passed"
    assert list(tmp_path.iterdir()) == []


def test_where_the_filter_cannot_be_had_nothing_is_run(monkeypatch):
    """A machine of another make: the child refuses, and code as a reward is refused by name."""
    boot = "import platform; platform.machine = lambda: 'vax'; " + sandbox.BOOT
    monkeypatch.setattr(sandbox, "BOOT", boot)
    check_sandbox.cache_clear()
    assert run("open('/etc/hostname')", "").outcome == "refused"
    with pytest.raises(ConfigError, match=r"sandbox: expected seccomp .* vax"):
        check_sandbox()
    check_sandbox.cache_clear()


def children() -> set[str]:
    """This process's children, zombies included; other tests in it may have left some."""
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def test_the_child_is_waited_for():
    """No zombie: this process has no child more when it returns."""
    before = children()
    run("import time\ntime.sleep(0.1)", "")
    assert children() <= before
    left = subprocess.Popen(["true"])  # the control: one that nobody waits for
    time.sleep(0.2)
    assert str(left.pid) in children() - before
    left.wait()
