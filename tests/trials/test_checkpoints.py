"""Trials 4, 6, 9, 10, 14 and 15 where checkpoints are written behind the training, disks fill, file servers fail,
folders are read-only and clocks go backwards."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fledge.errors import CheckpointError
from fledge.lineage import fsync_folder
from fledge.log import read_log
from fledge.model import safetensors_file
from fledge.model.folder import save_model
from fledge.train import checkpointing
from fledge.train.checkpointing import State, list_checkpoints, newest_valid, prune, read_state, save_checkpoint
from tests.train.test_loop import go, settings, toy
from tests.trials.tiny import losses, pretrain, start, wait_for_step, weights, write_config

BEHIND = "train.checkpoint_async=true"


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """An uninterrupted run of 20 steps that writes its checkpoints here and now."""
    folder = tmp_path_factory.mktemp("straight")
    assert pretrain(write_config(folder)).returncode == 0
    return folder / "run"


def same_run(one: Path, other: Path) -> bool:
    last = "checkpoints/step-00000020"
    files = [f"{last}/optimizer.safetensors", f"{last}/model.safetensors", "model/model.safetensors"]
    return losses(one) == losses(other) and all((one / f).read_bytes() == (other / f).read_bytes() for f in files)


# ---- trial 4: kills while a checkpoint is in flight


def test_trial_4_a_kill_while_a_checkpoint_is_in_flight_costs_that_one_alone(straight, tmp_path):
    config, run = write_config(tmp_path), tmp_path / "run"
    with start("pretrain", str(config), BEHIND, FLEDGE_FAULTS="slow_disk@10") as process:
        wait_for_step(run, 13, process)
        process.kill()
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-00000005"]
    done = pretrain(config, BEHIND)
    assert done.returncode == 0 and "continuing from step-00000005" in done.stderr
    assert same_run(run, straight)


def test_trial_4_kills_at_random_moments_with_checkpoints_behind(straight, tmp_path):
    config, run, chance = write_config(tmp_path), tmp_path / "run", random.Random(9)
    for kill in range(3):
        with start("pretrain", str(config), BEHIND, FLEDGE_FAULTS="sleep@19") as process:
            wait_for_step(run, 5 + 5 * kill, process)
            time.sleep(chance.random() * 0.05)
            process.kill()
    assert pretrain(config, BEHIND).returncode == 0
    assert same_run(run, straight)


@pytest.mark.slow
def test_trial_4_twenty_kills_with_checkpoints_behind_end_with_the_digest_of_the_uninterrupted_run(tmp_path):
    config_of = {"steps": 600, "save_every_steps": 5, "eval_every_steps": 50}
    whole, config = write_config(tmp_path, "whole", **config_of), write_config(tmp_path, **config_of)
    assert pretrain(whole).returncode == 0
    run, chance = tmp_path / "run", random.Random(4)
    for kill in range(20):
        with start("pretrain", str(config), BEHIND) as process:
            wait_for_step(run, 1 + 15 * kill, process)
            time.sleep(chance.random() * 0.2)
            process.kill()
        newest_valid(run / "checkpoints")  # raises if none of them is whole
    assert pretrain(config, BEHIND).returncode == 0
    assert losses(run) == losses(tmp_path / "whole")
    assert weights(run / "model") == weights(tmp_path / "whole" / "model")


# ---- trial 6: full disks


def save(root: Path, step: int) -> Path:
    recipe = toy()
    write = lambda folder: save_model(recipe.model, folder, card=False)  # noqa: E731
    return save_checkpoint(root, State(step=step), write, {"m": torch.ones(500)})


def full_after(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> Callable[[], int]:
    """Files of tensors take this many bytes, then the disk is full, in the middle of a write; gives what was asked
    for."""
    real, taken = os.writev, 0

    def writev(handle: int, views: list[memoryview]) -> int:
        nonlocal taken
        room, first = n_bytes - taken, bytes(views[0])
        taken += len(first)
        if len(first) > room:
            os.write(handle, first[: max(0, room)])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, [first])

    monkeypatch.setattr(safetensors_file.os, "writev", writev)
    return lambda: taken


def test_trial_6_a_disk_that_fills_at_any_byte_leaves_the_older_checkpoint_and_nothing_else(tmp_path):
    save(tmp_path, 1)
    with pytest.MonkeyPatch.context() as patch:
        asked = full_after(patch, 1 << 40)
        save(tmp_path / "measured", 2)
        whole = asked()
    for n_bytes in (0, 1, 7, 8, 9, *range(100, whole, whole // 9), whole - 1):
        with pytest.MonkeyPatch.context() as patch:
            full_after(patch, n_bytes)
            with pytest.raises(CheckpointError, match=r"step-00000002: the disk is full \(about \d+ bytes needed\)"):
                save(tmp_path, 2)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["measured", "step-00000001"], n_bytes
        assert read_state(tmp_path / "step-00000001").step == 1
    assert read_state(save(tmp_path, 2)).step == 2


@contextlib.contextmanager
def small_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """A disk of 800 KB with a file of 600 KB on it, and a function that makes room: a real one where mounting is
    allowed, else one whose files of tensors stop after 150 KB in all."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    patch = pytest.MonkeyPatch()
    if mounted:
        (folder / "ballast").write_bytes(bytes(600_000))
    else:
        full_after(patch, 150_000)
    monkeypatch.setattr(checkpointing, "SPARE_BYTES", -(1 << 40))  # the disk itself is to say that it is full
    try:
        yield lambda: (folder / "ballast").unlink() if mounted else patch.undo()
    finally:
        patch.undo()
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("behind", [False, True])
def test_trial_6_a_full_disk_stops_the_run_or_is_borne_and_the_next_save_works(tmp_path, monkeypatch, behind):
    common = {"checkpoint_async": behind, "save_every_steps": 1, "keep_last": 100, "steps": 12}
    with small_disk(tmp_path / "disk", monkeypatch) as make_room:
        with pytest.raises(CheckpointError, match="the disk is full"):
            go(tmp_path / "disk", toy(), settings(**common))
        _, state = newest_valid(tmp_path / "disk" / "checkpoints") or pytest.fail("none was written")
        assert 0 < state.step < 12 and not list((tmp_path / "disk" / "checkpoints").glob(".*"))
        recipe = toy()
        recipe.during_loss = lambda index: float(make_room() or 0.0) if index == 10 else 0.0
        assert go(tmp_path / "disk", recipe, settings(failed_save="continue", **common))["steps"] == 12
        events = read_log(tmp_path / "disk" / "log.jsonl")
        failed = [event["step"] for event in events if event["kind"] == "checkpoint_failed"]
        written = [event["step"] for event in events if event["kind"] == "checkpoint"]
        assert failed and max(failed) < 12 and {11, 12} <= set(written)
        go(tmp_path / "whole", toy(), settings(**common))
        ends = [tmp_path / name / "checkpoints" / "step-00000012" for name in ("disk", "whole")]
        assert weights(ends[0]) == weights(ends[1])


# ---- trial 9: the writer fails


def test_trial_9_a_writer_that_fails_behind_the_training_ends_the_command_with_an_error(tmp_path, straight):
    config = write_config(tmp_path)
    failed = pretrain(config, BEHIND, FLEDGE_FAULTS="full_disk@10")
    assert failed.returncode == 1 and "the disk is full" in failed.stderr and "Traceback" not in failed.stderr
    assert json.loads(failed.stdout.splitlines()[-1])["error"]["type"] == "CheckpointError"
    assert not (tmp_path / "run" / "model").exists()
    assert pretrain(config, BEHIND).returncode == 0
    assert same_run(tmp_path / "run", straight)


# ---- trial 10: signals


def test_trial_10_sigterm_to_the_whole_group_waits_for_the_checkpoint_in_flight(tmp_path, straight):
    config, run = write_config(tmp_path), tmp_path / "run"
    with start("pretrain", str(config), BEHIND, FLEDGE_FAULTS="slow_disk@5,sleep@7") as process:
        wait_for_step(run, 7, process)
        process.signal_group(signal.SIGTERM)
        assert process.wait(60) == 75, process.stderr
    names = [path.name for path in list_checkpoints(run / "checkpoints")]
    assert names[0] == "step-00000005" and len(names) == 2 and not list((run / "checkpoints").glob(".*"))
    assert pretrain(config, BEHIND).returncode == 0
    assert same_run(run, straight)


def test_trial_10_a_second_signal_leaves_at_once_with_a_checkpoint_in_flight(tmp_path, straight):
    config, run = write_config(tmp_path), tmp_path / "run"
    with start("pretrain", str(config), BEHIND, FLEDGE_FAULTS="slow_disk@10,sleep@12") as process:
        wait_for_step(run, 12, process)
        process.signal_group(signal.SIGTERM)
        time.sleep(0.2)
        process.signal_group(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert read_state(run / "checkpoints" / "step-00000005").step == 5
    assert pretrain(config, BEHIND).returncode == 0
    assert same_run(run, straight)


# ---- trial 14: what is kept


def test_trial_14_every_so_many_steps_the_best_and_the_last_are_kept_for_good(tmp_path):
    recipe = toy()
    recipe.val_losses = (5.0, 1.0, 4.0)
    config = settings(steps=11, save_every_steps=1, eval_every_steps=1, keep_last=2, keep_every_steps=4)
    go(tmp_path, recipe, config)
    kept = [int(path.name[5:]) for path in list_checkpoints(tmp_path / "checkpoints")]
    assert kept == [2, 4, 8, 10, 11] and checkpointing.read_best(tmp_path / "checkpoints") == (2, 1.0)


def test_trial_14_no_rule_of_what_is_kept_removes_the_last_whole_one(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step)
    for step in (4, 5):
        (tmp_path / f"step-0000000{step}" / "model.safetensors").write_bytes(b"")
    prune(tmp_path, 1, keep_every_steps=100)
    _, state = newest_valid(tmp_path) or pytest.fail("none")
    assert state.step == 3


# ---- trial 15: one folder, other machines


def test_trial_15_a_second_process_is_refused_while_a_checkpoint_is_in_flight(tmp_path):
    config, run = write_config(tmp_path), tmp_path / "run"
    with start("pretrain", str(config), BEHIND, "train.stop_after_steps=7", FLEDGE_FAULTS="slow_disk@5") as process:
        wait_for_step(run, 7, process)
        refused = pretrain(config, BEHIND)
        assert refused.returncode == 1 and f"in use by process {process.pid}" in refused.stderr
        assert process.wait(60) == 75
    assert [p.name for p in list_checkpoints(run / "checkpoints")] == ["step-00000005", "step-00000007"]


@contextlib.contextmanager
def as_nobody_in(folder: Path) -> Iterator[None]:
    """There, and not as root, whom no right stops."""
    before = os.geteuid()
    with contextlib.chdir(folder):
        if before == 0:
            os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(before)


@pytest.mark.parametrize("behind", [False, True])
def test_a_folder_that_became_read_only_is_a_typed_error(tmp_path, behind):
    run, config = tmp_path / "run", settings(save_every_steps=1, checkpoint_async=behind)
    go(run, toy(), replace(config, steps=1))  # what is imported late is imported here, while it can be read
    for path, mode in ((tmp_path, 0o755), (run, 0o777), (run / "checkpoints", 0o555), (run / "log.jsonl", 0o666)):
        path.chmod(mode)
    refused = pytest.raises(CheckpointError, match=r"step-0000000\d: can't be written \(Permission denied\)")
    with as_nobody_in(run), refused:
        go(Path("."), toy(), config)
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-00000001"]


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EBUSY])
def test_a_rename_that_a_file_server_refuses_leaves_what_there_was(tmp_path, monkeypatch, code):
    save(tmp_path, 1)
    real = os.replace

    def replace(source, target):
        if Path(source).name.startswith(".new-"):
            raise OSError(code, os.strerror(code))
        real(source, target)

    for step in (1, 2):  # over another of the same step, and beside it
        with monkeypatch.context() as patch:
            patch.setattr(checkpointing.os, "replace", replace)
            with pytest.raises(CheckpointError, match="can't be written"):
                save(tmp_path, step)
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
        assert read_state(tmp_path / "step-00000001").step == 1
    save(tmp_path, 2)


@pytest.mark.parametrize("which", [".new-", ".model", ".card", "."])
def test_a_rename_that_was_done_though_its_reply_was_lost_counts_as_done(tmp_path, monkeypatch, which):
    """A file server that is asked again says that there is nothing to rename."""
    real = os.replace

    def replace(source, target):
        real(source, target)
        if Path(source).name.startswith(which):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    with monkeypatch.context() as patch:
        patch.setattr(checkpointing.os, "replace", replace)
        path = save(tmp_path, 1)
    assert read_state(path).step == 1
    with monkeypatch.context() as patch:
        patch.setattr(checkpointing.os, "replace", lambda source, target: os.stat(tmp_path / "nothing"))
        with pytest.raises(CheckpointError, match="No such file"):
            save(tmp_path, 2)


def test_a_file_system_without_fsync_of_folders_will_do(tmp_path, monkeypatch):
    def refuse(code):
        def fsync(handle):
            raise OSError(code, os.strerror(code))

        return fsync

    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    fsync_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        fsync_folder(tmp_path)


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, monkeypatch):
    config = settings(steps=6, save_every_steps=1, eval_every_steps=2, checkpoint_async=True)
    go(tmp_path / "steady", toy(), config)
    seconds = itertools.count(2e9, -1000.0)
    monkeypatch.setattr(time, "time", lambda: next(seconds))
    go(tmp_path / "back", toy(), settings(steps=6, save_every_steps=1, eval_every_steps=2, stop_after_steps=0))
    for age, path in enumerate(list_checkpoints(tmp_path / "back" / "checkpoints")):
        os.utime(path, (1e9 - 1000 * age, 1e9 - 1000 * age))
    newest, state = newest_valid(tmp_path / "back" / "checkpoints") or pytest.fail("none")
    assert state.step == 6 and state.seconds >= 0
    assert weights(newest) == weights(tmp_path / "steady" / "checkpoints" / newest.name)
    times = [event["time"] for event in read_log(tmp_path / "back" / "log.jsonl")]
    assert times == sorted(times, reverse=True) and len(set(times)) > 5
