"""Trials 1, 2, 4 (a sample), 7, 10, 12, 14, 15: determinism, resume, damage, signals, non-finite loss, retention."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from fledge.model.folder import load_model
from fledge.train.lock import RunLock
from tests.trials.tiny import (
    Command,
    fledge,
    fresh_process,
    losses,
    pretrain,
    start,
    wait_for_step,
    weights,
    write_config,
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """An uninterrupted run of 20 steps."""
    folder = tmp_path_factory.mktemp("straight")
    done = pretrain(write_config(folder))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert {"val_loss", "steps", "tokens", "seconds"} <= set(result) and result["steps"] == 20
    assert result["tokens"] == 20 * 4 * 32
    return folder / "run"


def test_trial_1_the_same_seed_gives_the_same_bits_and_another_does_not(straight, tmp_path):
    for name, seed in (("same", 1), ("other", 2)):
        assert pretrain(write_config(tmp_path, name, seed=seed)).returncode == 0
    assert losses(tmp_path / "same") == losses(straight)
    assert weights(tmp_path / "same" / "model") == weights(straight / "model")
    assert losses(tmp_path / "other") != losses(straight)
    assert weights(tmp_path / "other" / "model") != weights(straight / "model")


def test_trial_2_a_stopped_run_goes_on_to_the_same_bits(straight, tmp_path):
    config = write_config(tmp_path)
    first = pretrain(config, "train.stop_after_steps=7")
    assert first.returncode == 75, first.stderr
    assert max(losses(tmp_path / "run")) == 7
    assert not (tmp_path / "run" / "model").exists()
    second = fresh_process("pretrain", str(config), "--json")
    assert second.returncode == 0, second.stderr
    assert losses(tmp_path / "run") == losses(straight)
    for name in ("model", "checkpoints/step-00000020"):
        assert weights(tmp_path / "run" / name) == weights(straight / name)
    moments = "checkpoints/step-00000020/optimizer.safetensors"
    assert (tmp_path / "run" / moments).read_bytes() == (straight / moments).read_bytes()


def test_a_finished_run_is_not_repeated_and_a_changed_one_is_refused(straight):
    config = straight.parent / "run.yaml"
    began = (straight / "model" / "model.safetensors").stat().st_mtime_ns
    again = pretrain(config)
    assert again.returncode == 0 and "already trained" in again.stderr
    assert (straight / "model" / "model.safetensors").stat().st_mtime_ns == began
    changed = pretrain(config, "train.learning_rate=0.1")
    assert changed.returncode == 1 and "train.learning_rate: was 0.003, is 0.1" in changed.stderr


def test_changed_data_is_refused_on_resume(tmp_path):
    config = write_config(tmp_path)
    assert pretrain(config, "train.stop_after_steps=5").returncode == 75
    (tmp_path / "text.txt").write_text("something else entirely, " * 400)
    refused = pretrain(config)
    assert refused.returncode == 1 and "the data has changed" in refused.stderr, refused.stderr
    assert pretrain(config, "train.allow_changes=true").returncode == 0


def start_training(config: Path, **environment: str) -> Command:
    return start("pretrain", str(config), "--json", **environment)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_trial_10_a_signal_saves_exits_75_and_the_same_command_goes_on_exactly(straight, tmp_path, number):
    config = write_config(tmp_path, steps=4000, save_every_steps=0, eval_every_steps=0)
    with start_training(config) as process:
        wait_for_step(tmp_path / "run", 3, process)
        asked = time.monotonic()
        process.send_signal(number)
        assert process.wait(30) == 75
        assert time.monotonic() - asked < 30
    stopped = max(losses(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints" / f"step-{stopped:08d}").is_dir()
    further = str(stopped + 5)
    assert pretrain(config, f"train.stop_after_steps={further}").returncode == 75
    whole = write_config(tmp_path, "whole", steps=4000, save_every_steps=0, eval_every_steps=0)
    assert pretrain(whole, f"train.stop_after_steps={further}").returncode == 75
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_trial_10_the_second_signal_leaves_at_once(tmp_path):
    config = write_config(tmp_path, steps=4000)
    with start_training(config, FLEDGE_FAULTS="sleep@3") as process:
        wait_for_step(tmp_path / "run", 3, process)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM


@pytest.mark.parametrize("kill_at", [4, 11, 16])
def test_trial_4_a_killed_run_resumes_by_itself_to_the_same_bits(straight, tmp_path, kill_at):
    config = write_config(tmp_path)
    with start_training(config, FLEDGE_FAULTS=f"sleep@{kill_at}") as process:
        wait_for_step(tmp_path / "run", kill_at, process)
        process.kill()
    assert pretrain(config).returncode == 0
    assert losses(tmp_path / "run") == losses(straight)
    assert weights(tmp_path / "run" / "model") == weights(straight / "model")


@pytest.mark.slow
def test_trial_4_twenty_kills_at_random_moments_end_with_the_digest_of_the_uninterrupted_run(tmp_path):
    settings = {"steps": 600, "save_every_steps": 5, "eval_every_steps": 50}
    whole = write_config(tmp_path, "whole", **settings)
    assert pretrain(whole).returncode == 0
    config, chance = write_config(tmp_path, **settings), random.Random(4)
    for kill in range(20):
        with start_training(config) as process:
            wait_for_step(tmp_path / "run", 1 + 15 * kill, process)
            time.sleep(chance.random() * 0.2)
            before = max(losses_or_none(tmp_path / "run"))
            process.kill()
        kept = [int(path.name[5:]) for path in (tmp_path / "run" / "checkpoints").glob("step-*")]
        assert before - max(kept, default=0) <= 7  # at most five steps redone, and what the last reading missed
    assert pretrain(config).returncode == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert weights(tmp_path / "run" / "model") == weights(tmp_path / "whole" / "model")


def losses_or_none(run: Path) -> list[int]:
    steps = [0]
    for line in (run / "log.jsonl").read_text().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event["kind"] == "step":
            steps.append(event["step"])
    return steps


def stopped_at_20(tmp_path: Path) -> Path:
    config = write_config(tmp_path, steps=30)
    assert pretrain(config, "train.stop_after_steps=20").returncode == 75
    return config


def damage(path: Path, how: str) -> None:
    weights_file = path / "model.safetensors"
    data = weights_file.read_bytes()
    if how == "truncated":
        weights_file.write_bytes(data[: len(data) // 2])
    elif how == "flipped":
        weights_file.write_bytes(data[:-7] + bytes([data[-7] ^ 1]) + data[-6:])
    elif how == "empty":
        weights_file.write_bytes(b"")
    elif how == "missing":
        (path / "optimizer.safetensors").unlink()
    elif how == "card":
        (path / "card.json").write_text("{")


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "missing", "card"])
def test_trial_7_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, how):
    config = stopped_at_20(tmp_path)
    damage(tmp_path / "run" / "checkpoints" / "step-00000020", how)
    done = pretrain(config)
    assert done.returncode == 0, done.stderr
    assert "step-00000020 is damaged and passed over (1 so far)" in done.stderr
    assert "continuing from step-00000015" in done.stderr
    assert sorted(losses(tmp_path / "run")) == list(range(1, 31))


def test_trial_7_when_all_are_damaged_nothing_is_deleted_and_the_run_fails_clearly(tmp_path):
    config = stopped_at_20(tmp_path)
    folders = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    for path in folders:
        damage(path, "flipped")
    failed = pretrain(config)
    assert failed.returncode == 1
    assert f"all {len(folders)} checkpoints are damaged" in failed.stderr and "Traceback" not in failed.stderr
    assert sorted((tmp_path / "run" / "checkpoints").glob("step-*")) == folders


def test_trial_12_a_non_finite_loss_stops_the_run_and_never_reaches_a_checkpoint(straight, tmp_path):
    config = write_config(tmp_path)
    failed = pretrain(config, FLEDGE_FAULTS="nan_loss@7")
    assert failed.returncode == 1
    assert "step 7, batch 7" in failed.stderr and "train@" in failed.stderr, failed.stderr
    saved = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert [path.name for path in saved] == ["step-00000005", "step-00000007"]  # what was learned before the batch
    for path in saved:
        assert all(tensor.isfinite().all() for tensor in load_model(path).state_dict().values())
    again = pretrain(config)  # without the fault the same command goes on, exactly
    assert again.returncode == 0 and "continuing from step-00000007" in again.stderr
    assert losses(tmp_path / "run") == losses(straight)


def test_trial_12_skipping_is_bounded_counted_and_draws_the_next_batch(tmp_path):
    config = write_config(tmp_path, non_finite="skip", max_skipped=2)
    done = pretrain(config, FLEDGE_FAULTS="nan_loss@7,nan_loss@9")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [e["batch"] for e in events if e["kind"] == "non_finite"] == [7, 9]
    assert [e["skipped"] for e in events if e["kind"] == "step"][-1] == 2
    assert sorted(losses(tmp_path / "run")) == list(range(1, 21))
    other = write_config(tmp_path, "other", non_finite="skip", max_skipped=1)
    assert "more than train.max_skipped=1" in pretrain(other, FLEDGE_FAULTS="nan_loss@7,nan_loss@9").stderr


def test_a_skipped_batch_survives_resume(tmp_path):
    faults = "nan_loss@3"
    whole = write_config(tmp_path, "whole", non_finite="skip")
    assert pretrain(whole, FLEDGE_FAULTS=faults).returncode == 0
    config = write_config(tmp_path, non_finite="skip")
    assert pretrain(config, "train.stop_after_steps=9", FLEDGE_FAULTS=faults).returncode == 75
    assert pretrain(config, FLEDGE_FAULTS=faults).returncode == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_trial_12_a_spike_names_its_samples_and_exits_1(tmp_path):
    config = write_config(tmp_path, steps=22, spike="stop")
    failed = pretrain(config, FLEDGE_FAULTS="spike@18")
    assert failed.returncode == 1 and "step 18, batch 18 (samples train@" in failed.stderr, failed.stderr
    assert [p.name for p in sorted((tmp_path / "run" / "checkpoints").glob("step-*"))][-1] == "step-00000018"
    whole = write_config(tmp_path, "whole", steps=22, spike="skip")
    assert pretrain(whole, FLEDGE_FAULTS="spike@18").returncode == 0
    assert pretrain(config, "train.spike=skip", FLEDGE_FAULTS="spike@18").returncode == 0  # the policy may change
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert weights(tmp_path / "run" / "model") == weights(tmp_path / "whole" / "model")


def test_trial_14_the_last_and_the_best_checkpoints_are_kept(tmp_path):
    config = write_config(tmp_path, steps=60, eval_every_steps=7, learning_rate=0.3, weight_decay=0.0)
    assert pretrain(config).returncode == 0
    root = tmp_path / "run" / "checkpoints"
    best = json.loads((root / "best.json").read_text())
    saved = [
        event["step"]
        for event in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
        if event["kind"] == "checkpoint"
    ]
    assert len(saved) > 8 and best["step"] in saved
    wanted = {best["step"], *saved[-2:]}
    assert {int(path.name[5:]) for path in root.glob("step-*")} == wanted


def test_trial_15_a_second_process_on_a_live_run_is_refused_and_a_dead_owner_leaves_no_lock(tmp_path):
    config = write_config(tmp_path, steps=4000, save_every_steps=0)
    with start_training(config) as process:
        wait_for_step(tmp_path / "run", 2, process)
        refused = pretrain(config)
        assert refused.returncode == 1 and f"in use by process {process.pid}" in refused.stderr
        process.kill()
    assert pretrain(config, "train.stop_after_steps=5").returncode == 75


def test_trial_15_nothing_is_written_into_a_run_folder_that_another_process_holds(tmp_path):
    config = write_config(tmp_path)
    with RunLock(tmp_path / "run"):
        refused = pretrain(config)
        assert refused.returncode == 1 and f"in use by process {os.getpid()}" in refused.stderr
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.lock"]  # no text was tokenised either
    assert pretrain(config, "train.stop_after_steps=1").returncode == 75


def test_accumulated_micro_batches_train_like_the_whole_batch(straight, tmp_path):
    assert pretrain(write_config(tmp_path, "whole", micro_rows=0)).returncode == 0
    assert pretrain(write_config(tmp_path, "single", micro_rows=1)).returncode == 0
    reference = losses(straight)
    for name in ("whole", "single"):
        got = losses(tmp_path / name)
        for step, value in reference.items():
            assert float.fromhex(got[step]) == pytest.approx(float.fromhex(value), rel=2e-5)


def test_a_bad_config_is_an_error_of_one_line_and_exit_2(tmp_path):
    config = write_config(tmp_path)
    for words, part in (
        (["train.stepz=3"], "did you mean train.steps?"),
        (["train.steps=-1"], "train.steps"),
        (["train.micro_rows=3"], "divisor of rows 4"),
        (["model.width=15"], "nearest is 16"),
        (["train.learning_rate=fast"], "expected number"),
    ):
        failed = fledge("pretrain", str(config), *words)
        assert failed.returncode == 2 and part in failed.stderr.splitlines()[-1], failed.stderr
        assert "Traceback" not in failed.stderr
