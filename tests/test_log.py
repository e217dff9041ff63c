"""The run log is strict JSON lines, whole after a crash; progress is a bar for people and lines for files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from fledge.cli.main import main
from fledge.log import Progress, RunLog, clock, drop_torn_line, json_safe, read_log, say


def test_every_line_is_strict_json_with_kind_and_time(tmp_path):
    log = RunLog(tmp_path / "deep" / "log.jsonl")
    log.write("step", step=1, loss=float("nan"), path=Path("a"), nested={"x": [float("inf")]})
    log.close()
    log.write("step", step=2)  # closed: nothing happens
    (line,) = (tmp_path / "deep" / "log.jsonl").read_text().splitlines()
    event = json.loads(line, parse_constant=pytest.fail)
    assert event.pop("time") > 1.7e9
    assert event == {"kind": "step", "step": 1, "loss": "nan", "path": "a", "nested": {"x": ["inf"]}}


def test_opening_again_appends(tmp_path):
    for step in (1, 2):
        log = RunLog(tmp_path / "log.jsonl")
        log.write("step", step=step)
        log.close()
    assert [event["step"] for event in read_log(tmp_path / "log.jsonl")] == [1, 2]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (b'{"a": 1}\n', b'{"a": 1}\n'),
        (b'{"a": 1}\n{"b', b'{"a": 1}\n'),
        (b'{"b', b""),
        ('{"a": 1}\n{"ä'.encode()[:-1], b'{"a": 1}\n'),
    ],
)
def test_a_torn_last_line_is_cut_off(before, after, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(before)
    drop_torn_line(path)
    assert path.read_bytes() == after
    drop_torn_line(tmp_path / "missing")


def test_a_torn_line_is_not_an_event(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"kind": "a"}\n{"kind": "b"')
    assert read_log(tmp_path / "log.jsonl") == [{"kind": "a"}]


def test_going_on_from_a_step_drops_what_is_written_again(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    log.write("start", threads=1)
    for step in (1, 2, 3, 4):
        log.write("step", step=step)
    log.write("end", steps=4)
    log.truncate_after(2, 2)
    log.write("step", step=3, again=True)
    log.close()
    events = read_log(tmp_path / "log.jsonl")
    assert [(e["kind"], e.get("step")) for e in events] == [("start", None), ("step", 1), ("step", 2), ("step", 3)]
    assert events[-1]["again"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_json_safe_changes_only_what_json_has_not():
    plain = {"a": [1, 2.5, "x", None, True], "b": {"c": -1}}
    assert json_safe(plain) == plain
    assert json_safe((1, float("-inf"), Path("a/b"), {3: float("nan")})) == [1, "-inf", "a/b", {"3": "nan"}]


def test_progress_without_a_terminal_is_plain_lines():
    stream = io.StringIO()
    progress = Progress("train", 4, every_seconds=0.0, stream=stream)
    progress.update(2, loss=1.5)
    progress.update(4)
    progress.close()
    first, last = stream.getvalue().splitlines()
    assert first.startswith("train 2/4 · loss 1.5 · ETA 0:0") and last.startswith("train 4/4")
    quiet = io.StringIO()
    Progress("train", 4, every_seconds=60.0, stream=quiet).update(2)
    assert quiet.getvalue() == ""


def test_a_clock_for_people():
    assert [clock(s) for s in (0, 75, 3675, float("nan"))] == ["0:00", "1:15", "1:01:15", "-:--"]


def test_what_steers_a_terminal_is_spelled_out_for_people(capsys, tmp_path):
    say("a\x1b[31mred\rb\u202ec\tdé 你\u3000\xa0x\ny")
    assert capsys.readouterr().err == "a\\x1b[31mred\\rb\\u202ec\tdé 你\u3000\xa0x\ny\n"
    out = io.StringIO()
    Progress("steps", 2, stream=out).note("x\x1b[2Jy\n")
    assert out.getvalue() == "x\\x1b[2Jy\n"
    assert main(["show", f"{tmp_path}/\x1b[31mred"]) != 0
    assert "\x1b" not in (told := capsys.readouterr().err) and "\\x1b[31mred" in told
