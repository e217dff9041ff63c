"""Shards that are cut, replaced or written over: while a run trains, and when it goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from fledge.data.build import build
from fledge.data.config import BuildConfig
from fledge.errors import CheckpointError, DataError
from fledge.model.config import ShapeConfig
from fledge.recipes.config import PretrainConfig, TextDataConfig
from fledge.recipes.pretrain import open_data, prepare_data, pretrain
from fledge.train import checkpointing
from fledge.train.config import RunConfig, TrainConfig

TEXT = "the quick brown fox jumps over the lazy dog. " * 500


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    build(BuildConfig(tmp_path / "data", str(tmp_path / "text.txt"), "bytes"), json=True)
    return tmp_path / "data"


def config(dataset, run, **train: object) -> PretrainConfig:
    settings = {"steps": 4, "rows": 2, "eval_every_steps": 0, "save_every_steps": 0, "threads": 1, **train}
    return PretrainConfig(
        ShapeConfig(width=16, layers=1, heads=2, context_tokens=16),
        TextDataConfig(str(dataset)),
        TrainConfig(**settings),  # type: ignore[arg-type]
        RunConfig(str(run)),
    )


def write_over(path) -> bytes:
    """One token becomes another; gives what was there."""
    before = path.read_bytes()
    tokens = np.frombuffer(before, "<u2").copy()
    tokens[7] = 97 if tokens[7] != 97 else 98
    path.write_bytes(tokens.tobytes())
    return before


def test_a_shard_that_is_cut_while_it_is_trained_on_ends_the_run_with_its_state_saved(dataset, tmp_path):
    run, shard = tmp_path / "run", dataset / "train.bin"
    words = ["pretrain", f"data.path={dataset}", "model.width=16", "model.layers=1", "model.heads=2"]
    words += ["model.context_tokens=16", "train.rows=2", "train.steps=1000000", "train.eval_every_steps=0"]
    words += ["train.save_every_steps=5", "train.threads=1", f"run.dir={run}", "--json"]
    line = [sys.executable, "-m", "fledge", *words]
    child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with child:
        try:
            deadline = time.monotonic() + 120
            while not list(run.glob("checkpoints/step-*")) and child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            whole = shard.read_bytes()
            os.truncate(shard, 100)
            out, err = child.communicate(timeout=120)
        finally:
            child.kill()
    error = json.loads(out.splitlines()[-1])["error"]
    assert (child.returncode, error["type"], error["exit_code"]) == (1, "DataError", 1), err
    assert f"{shard}: expected {len(whole)} bytes, got 100" in error["message"] and "Traceback" not in err
    kept = checkpointing.newest_valid(run / "checkpoints")
    assert kept is not None and kept[1].step >= 5
    shard.write_bytes(whole)
    again = subprocess.run([*line, f"train.stop_after_steps={kept[1].step + 3}"], capture_output=True, text=True)
    assert again.returncode == 75 and f"continuing from step-{kept[1].step:08d}" in again.stderr


def test_a_shard_that_was_written_over_is_not_trained_on_unless_asked_for(dataset, tmp_path):
    before = write_over(dataset / "train.bin")
    with pytest.raises(DataError, match=r"train\.bin: expected SHA-256 \w+…, got .* was changed .*allow_changes=true"):
        pretrain(config(dataset, tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert pretrain(config(dataset, tmp_path / "run", allow_changes=True))["steps"] == 4
    (dataset / "train.bin").write_bytes(before)  # the control: the shard as it was built
    assert pretrain(config(dataset, tmp_path / "other"))["steps"] == 4


def test_a_run_whose_data_was_built_anew_from_other_text_does_not_go_on_unless_asked_to(dataset, tmp_path):
    with pytest.raises(Exception, match="saved at step 2"):
        pretrain(config(dataset, tmp_path / "run", stop_after_steps=2))
    (tmp_path / "text.txt").write_text(TEXT.replace("fox", "cat"))
    build(BuildConfig(dataset, str(tmp_path / "text.txt"), "bytes"), json=True)
    with pytest.raises(CheckpointError, match="the data has changed"):
        pretrain(config(dataset, tmp_path / "run"))
    assert pretrain(config(dataset, tmp_path / "run", allow_changes=True))["steps"] == 4


def test_opening_data_that_was_prepared_builds_nothing(tmp_path, monkeypatch):
    """Several processes open it at once; one that builds takes away what the others read."""
    (tmp_path / "text.txt").write_text("a text of some words. " * 400)
    raw = PretrainConfig(data=TextDataConfig(str(tmp_path / "text.txt")))
    prepare_data(raw, tmp_path / "run")
    monkeypatch.setattr("fledge.data.build.build", None)
    assert open_data(raw, tmp_path / "run").train.n_tokens > 1000
    with pytest.raises(TypeError, match="not callable"):  # the control
        prepare_data(raw, tmp_path / "run")
