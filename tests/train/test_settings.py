"""Settings that would train nonsense are refused before anything is read; what a changed setting means for a run; the
lock and the log that outlive a process."""

from __future__ import annotations

import errno
import json

import pytest

from fledge.errors import ConfigError
from fledge.log import RunLog, read_log
from fledge.optim.schedule import rate_share
from fledge.train import lock
from fledge.train.checkpointing import State
from fledge.train.config import TrainConfig
from fledge.train.lock import RunLock
from fledge.train.record import number
from fledge.train.resume import changes, rows_begun_with
from fledge.train.signals import StopRequest


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("clip_norm", -1.0), ("weight_decay", -0.1), ("beta1", 1.0), ("beta2", 1.5), ("beta2", -0.1), ("epsilon", 0.0),
        ("learning_rate", 0.0), ("learning_rate_floor", 1.5), ("learning_rate_floor", -0.1), ("warmup_steps", 1000),
        ("rows", 10**12), ("row_tokens", 10**12), ("threads", 10**5), ("seed", 1 << 70),
    ],
)  # fmt: skip
def test_a_setting_that_would_not_train_is_refused(key, value):
    with pytest.raises(ConfigError, match=f"train.{key}: expected"):
        TrainConfig(**{key: value})
    TrainConfig(**{key: 0.5 if isinstance(value, float) else 999})  # the control


def test_rows_at_once_are_a_change_only_where_dropout_is_drawn_for_them():
    def config(dropout: float, micro_rows: int) -> dict:
        return {"model": {"dropout": dropout}, "train": {"rows": 8, "micro_rows": micro_rows}}

    assert changes(config(0.0, 2), config(0.0, 4)) == []
    assert changes(config(0.1, 0), config(0.1, 8)) == []
    assert "was 2, is 4" in " ".join(changes(config(0.1, 2), config(0.1, 4)))


@pytest.mark.parametrize(
    ("train", "world_size", "dropped", "rows"),
    [({"rows": 8}, 1, True, 8), ({"rows": 8}, 2, True, 4), ({"rows": 8, "micro_rows": 2}, 1, True, 2),
     ({"rows": 8}, 1, False, 0), ({"rows": 8, "micro_rows": 2}, 1, False, 2)],
)  # fmt: skip
def test_rows_at_once_of_a_run_that_goes_on_are_those_it_began_with_where_dropout_is_drawn(
    train, world_size, dropped, rows
):
    state = State(config={"train": train}, facts={"world_size": world_size})
    assert rows_begun_with(state, dropped) == rows
    assert rows_begun_with(State(), dropped) == 0  # the control: a run that has not begun


@pytest.mark.parametrize(("steps", "share", "decay"), [(4, 0.2, 2), (100, 0.01, 2), (10, 0.3, 3), (1, 0.2, 1)])
def test_a_wsd_schedule_comes_down_in_its_last_steps_however_few(steps, share, decay):
    schedule = TrainConfig(steps=steps, schedule="wsd", decay_share=share).rate_schedule()
    assert schedule.decay_steps == decay
    assert (rate_share(steps - 1, schedule) < 0.6) == (steps > 1)


def test_a_run_folder_that_cannot_be_locked_is_a_typed_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"file: expected a folder to write to, got a file"),
        RunLock(tmp_path / "file"),
    ):
        pass

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    with pytest.raises(ConfigError, match="file system with locks, got No locks available"), RunLock(tmp_path):
        pass


def test_a_log_forgets_what_the_resumed_run_writes_again_and_nothing_else(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    for step in (1, 2, 3):
        log.write("step", step=step)
        log.write("non_finite", step=step, batch=step + 1)
    log.write("end", steps=3)
    log.write("note")
    log.truncate_after(2, 3)
    log.write("step", step=3)
    log.close()
    kept = [(e["kind"], e.get("step")) for e in read_log(log.path)]
    assert kept == [("step", 1), ("non_finite", 1), ("step", 2), ("note", None), ("step", 3)]


def test_a_signal_is_taken_though_standard_error_is_gone(monkeypatch):
    def gone(*_: object) -> None:
        raise OSError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("fledge.train.signals.os.write", gone)
    stop = StopRequest()
    stop._on_signal(15, None)
    assert stop.asked and stop.name == "SIGTERM"


def test_a_whole_number_of_400_digits_in_a_log_is_not_finite():
    assert number(json.loads("9" * 400)) == float("inf")
    assert number(json.loads("-" + "9" * 400)) == float("-inf")
