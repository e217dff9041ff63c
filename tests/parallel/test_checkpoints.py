"""Checkpoints of many processes: each writes its shards, any number reads them, and what stops one stops all."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fledge.cli.main import main
from fledge.errors import CheckpointError
from fledge.lineage import read_card
from fledge.log import read_log
from fledge.model.folder import load_model
from fledge.parallel.config import coordinates
from fledge.parallel.mesh import Line, Mesh
from fledge.train.checkpointing import list_checkpoints, newest_valid, read_state
from fledge.train.parallel.pieces import Cut, Pieces
from fledge.train.ranks import StoreRanks
from fledge.train.slices import SlicedTensors, index_of, write_slices
from tests.parallel.fleet import Fleet, Trained
from tests.parallel.test_equal import SEQUENCE, ZERO1, ZERO2, ZERO3, config
from tests.parallel.test_runs import ended, launched, said
from tests.train.saved import read_optimizer
from tests.trials.tiny import wait_for_step

LAST = "checkpoints/step-00000006"
TRAIN: dict[str, Any] = {"steps": 6, "ema_decay": 0.9}
BEHIND: dict[str, Any] = {"checkpoint_async": True, "save_every_steps": 1, "keep_last": 9}


@pytest.fixture(scope="module")
def straight(pair, folders) -> Trained:
    """An uninterrupted run of one process."""
    return pair.train(config("gpt2", folders, **TRAIN))


@pytest.mark.parametrize("mesh", [{}, ZERO3, {"tensor": 2}, {"pipe": 2}], ids=str)
def test_processes_that_share_a_model_publish_its_best_weights(pair, folders, mesh):
    better = {"publish_best": True, "eval_every_steps": 1, "eval_rows": 0, "save_every_steps": 1, "keep_last": 9,
              "learning_rate": 4.0, "learning_rate_floor": 1.0, "clip_norm": 0.0}  # fmt: skip
    run = pair.train(config("gpt2", folders, **{**TRAIN, "ema_decay": 0.0, "steps": 2}, parallel=mesh), 2, **better)
    assert run.errors == [None, None]
    best = run.result["published_step"]
    assert best == 1 and run.result["val_loss"] < run.result["last_val_loss"]
    published = weights(run.folder / "model")
    for step in (1, 2):
        saved = weights(run.folder / "checkpoints" / f"step-{step:08d}")
        alike = all(torch.equal(published[name], value) for name, value in saved.items())
        assert alike == (step == best)  # the control: the last weights are others


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in load_model(folder).named_parameters()}


def distance(one: Path, other: Path) -> float:
    """The largest difference between two checkpoints in weights, moments and running means."""
    largest = 0.0
    for read in (weights, read_optimizer):
        a, b = read(one), read(other)
        assert a.keys() == b.keys() and a
        largest = max(largest, *(float((a[name] - b[name]).abs().max()) for name in a))
    return largest


def goes_on(
    fleet: Fleet, folders: dict[str, str], model: str, parts: list[tuple[int, Any, int]], **train: Any
) -> Trained:
    """A run that goes on in each of `parts`: processes, mesh and the step to stop at, 0 for its end."""
    for index, (n, mesh, stop) in enumerate(parts):
        got = fleet.train(config(model, folders, **train), n, index > 0, parallel=mesh, stop_after_steps=stop)
        assert {error[2] for error in got.errors if error is not None} == ({75} if stop else set()), got.errors
    return got


def same_run(straight: Trained, got: Trained) -> None:
    assert list(got.steps) == list(straight.steps)
    assert [s["tokens"] for s in got.steps.values()] == [s["tokens"] for s in straight.steps.values()]
    assert max(abs(a - b) for a, b in zip(got.losses, straight.losses, strict=True)) < 1e-5
    assert distance(straight.folder / LAST, got.folder / LAST) < 1e-5


# What each writes and reads


def test_two_processes_write_their_shards_and_another_mesh_and_one_process_go_on(pair, folders, straight):
    parts = [(2, ZERO3, 1), (2, {"tensor": 2}, 2), (1, {}, 3), (2, {}, 0)]
    got = goes_on(pair, folders, "gpt2", parts, **TRAIN, **BEHIND)
    same_run(straight, got)
    first, last = got.folder / "checkpoints/step-00000001", got.folder / LAST
    for folder in (first, last):
        sizes = [path.stat().st_size for path in sorted(folder.glob("optimizer-*.safetensors"))]
        assert len(sizes) == 2 and max(sizes) < 0.6 * sum(sizes) and len(list(folder.glob("model-*"))) == 2
        assert read_card(folder)["facts"] == {"ranks": 2}
    with SlicedTensors(first, "optimizer") as sliced:
        cut = {name for name, entry in sliced.entries.items() if len(entry.slices) == 2}
        assert cut == {name for name in sliced.entries if not name.startswith("step/")}  # ZeRO-3 shares all out
    with SlicedTensors(last, "optimizer") as sliced:
        assert all(len(entry.slices) == 1 for entry in sliced.entries.values())  # what both hold one has written
    events = [event for event in read_log(got.folder / "log.jsonl") if event["kind"] == "checkpoint"]
    assert [event["step"] for event in events] == [1, 2, 3, 4, 5, 6]
    assert not list((got.folder / "checkpoints").glob(".*"))


def test_a_damaged_a_missing_and_an_extra_shard_lead_to_the_checkpoint_before(pair, folders, straight, capsys):
    goes_on(pair, folders, "gpt2", [(2, ZERO3, 4)], **TRAIN, **{**BEHIND, "checkpoint_async": False})
    run = pair.folder / f"run-{pair.runs}"
    four, three, two = (run / f"checkpoints/step-0000000{step}" for step in (4, 3, 2))
    damaged, missing = four / "optimizer-00002-of-00002.safetensors", three / "model-00001-of-00002.safetensors"
    assert main(["checkpoint", "verify", str(run), "--json"]) == 0
    assert [row["ranks"] for row in json.loads(shown(capsys, run))["checkpoints"]] == [2] * 4
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    missing.unlink()
    shutil.copy(two / "optimizer-00001-of-00002.safetensors", two / "optimizer-00003-of-00003.safetensors")
    assert main(["checkpoint", "verify", str(run), "--json"]) == 1
    told = capsys.readouterr().out
    assert "3 of 4 checkpoints are damaged" in told and damaged.name in told and missing.name in told
    found = pair.train(config("gpt2", folders, **TRAIN), 2, True, parallel=ZERO1)
    assert found.errors == [None, None]
    resumed = [event["step"] for event in read_log(run / "log.jsonl") if event["kind"] == "resume"]
    assert resumed == [1]  # with nothing damaged it would have been 4
    same_run(straight, found)


def shown(capsys, run: Path) -> str:
    capsys.readouterr()
    assert main(["checkpoint", "show", str(run), "--json"]) == 0
    return str(capsys.readouterr().out.splitlines()[-1])


def test_every_place_of_a_mesh_holds_a_box_and_together_they_are_the_whole(tmp_path):
    """Without processes: 2 x 2 x 2 of shard, tensor and data, uneven chunks, a cut along either dimension."""
    sizes = {"pipe": 1, "data": 2, "shard": 2, "tensor": 2}
    whole = {"rows": torch.arange(35.0).view(7, 5), "columns": torch.arange(12.0).view(3, 4), "norm": torch.arange(3.0)}
    cuts = {"rows": Cut(0, (4, 3)), "columns": Cut(1, (2, 2))}
    rows: list[Any] = []
    for rank in range(8):
        place = coordinates(rank, sizes)
        lines = {axis: Line(tuple(range(n)), place[axis]) for axis, n in sizes.items()}
        own_length = {"rows": cuts["rows"].sizes[place["tensor"]], "columns": 3, "norm": 3}
        pieces = Pieces(
            Mesh(rank, sizes, place, lines, 60.0), {n: tuple(t.shape) for n, t in whole.items()}, cuts, own_length
        )
        held = {f"exp_avg/{name}": pieces.own(name, tensor) for name, tensor in whole.items()}
        expected = whole["rows"].split([4, 3])[place["tensor"]].chunk(2)[place["shard"]]
        assert torch.equal(held["exp_avg/rows"], expected)
        if place["data"]:
            continue
        mine = [one for one in pieces.slices(held) if "norm" not in one.name or not place["tensor"]]
        rows += write_slices(tmp_path, "optimizer", rank + 1, 8, mine)
    for rank in range(8):
        if not (tmp_path / f"optimizer-{rank + 1:05d}-of-00008.safetensors").exists():
            write_slices(tmp_path, "optimizer", rank + 1, 8, [])
    index = index_of(rows, 8)
    (tmp_path / "optimizer.safetensors.index.json").write_text(json.dumps(index))
    found = read_optimizer(tmp_path)
    assert all(torch.equal(found[f"exp_avg/{name}"], tensor) for name, tensor in whole.items())
    with pytest.raises(CheckpointError, match="its slices are not all of its"):
        index_of(rows[1:], 8)  # the control


class Notes:
    """A store of one process."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self.kept[key] = value

    def get(self, key: str) -> str:
        return self.kept[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.kept for key in keys)

    def delete_key(self, key: str) -> None:
        del self.kept[key]


def test_a_rank_that_leaves_no_note_in_time_is_named():
    store = Notes()
    ranks = StoreRanks(store, 0, 2, 0.05)
    store.set("0/1", json.dumps("here"))
    assert ranks.exchange(7) == [7, "here"]
    with pytest.raises(CheckpointError, match="rank 1: expected its part of the checkpoint within 0.05 s"):
        ranks.exchange(8)
    slow = StoreRanks(store, 0, 2, 1800)
    slow.hurry()
    assert slow.patience_seconds == 5


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("behind", [False, True])
def test_four_one_and_two_processes_of_any_mesh_go_on_from_each_other(optimizer, behind, fleet, folders):
    train = {**TRAIN, "optimizer": optimizer}
    alone = fleet.train(config("gpt2", folders, **train))
    more = {**train, "save_every_steps": 1, "checkpoint_async": behind}
    meshes = [(4, ZERO3), (1, {}), (4, {"tensor": 2, **ZERO3}), (2, {"pipe": 2}), (4, {"pipe": 2, **ZERO1}), (2, ZERO2)]
    parts = [(n, mesh, stop) for (n, mesh), stop in zip(meshes, (1, 2, 3, 4, 5, 0), strict=True)]
    same_run(alone, goes_on(fleet, folders, "gpt2", parts, **more))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "t5", "albert", "bloom"])
def test_models_of_every_kind_go_on_in_one_process_from_shards(model, fleet, folders):
    alone = fleet.train(config(model, folders, **TRAIN))
    parts = [(2, SEQUENCE, 2), (4, ZERO2, 4), (1, {}, 0)]
    same_run(alone, goes_on(fleet, folders, model, parts, **TRAIN))


# What fails


@pytest.mark.slow
@pytest.mark.parametrize("behind", [False, True])
def test_a_full_disk_of_any_process_is_everyones_failure_and_said_once(tmp_path, behind):
    commands = launched(2, tmp_path, faults={1: "full_disk@4"}, steps=40, save_every_steps=2, checkpoint_async=behind)
    assert ended(commands) == [1, 1], said(commands)
    assert len(said(commands)) == 1 and "rank 1: " in said(commands)[0] and "the disk is full" in said(commands)[0]
    _, state = newest_valid(tmp_path / "run/checkpoints") or pytest.fail("none")
    assert state.step in ((2, 6) if behind else (2,)) and not (tmp_path / "run/model").exists()
    assert not list((tmp_path / "run/checkpoints").glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("behind", [False, True])
def test_a_failure_of_one_process_may_be_borne_by_all(tmp_path, behind):
    more = {"steps": 8, "save_every_steps": 2, "checkpoint_async": behind, "failed_save": "continue", "keep_last": 9}
    commands = launched(2, tmp_path, faults={1: "full_disk@4"}, **more)
    assert ended(commands) == [0, 0], said(commands)
    events = read_log(tmp_path / "run/log.jsonl")
    assert [e["step"] for e in events if e["kind"] == "checkpoint_failed"] == [4]
    assert [read_state(path).step for path in list_checkpoints(tmp_path / "run/checkpoints")] == [2, 6, 8]


@pytest.mark.slow
@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_kills_of_any_process_at_random_moments_leave_a_valid_checkpoint(rank, behind, tmp_path):
    more = {"steps": 60, "save_every_steps": 1, "checkpoint_async": behind, "parallel": ZERO3}
    (tmp_path / "whole").mkdir()
    whole = launched(2, tmp_path / "whole", **{**more, "save_every_steps": 0})
    assert ended(whole) == [0, 0], said(whole)
    chance, run = random.Random(7 + rank), tmp_path / "run"
    for kill in range(3):
        commands = launched(2, tmp_path, **more)
        wait_for_step(run, 4 + 12 * kill, commands[0])
        time.sleep(0.1 * chance.random())
        os.kill(commands[rank].pid, signal.SIGKILL)
        codes = ended(commands)
        assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == 1, codes
        _, state = newest_valid(run / "checkpoints") or pytest.fail("none")
        assert state.step >= 2 + 12 * kill
    commands = launched(2, tmp_path, **more)
    assert ended(commands) == [0, 0], said(commands)
    both = [
        [event["loss"] for event in read_log(place / "run/log.jsonl") if event["kind"] == "step"]
        for place in (tmp_path, tmp_path / "whole")
    ]
    assert len(both[0]) == 60 and max(abs(a - b) for a, b in zip(*both, strict=True)) < 1e-5


@pytest.mark.slow
def test_a_signal_waits_for_the_checkpoint_in_flight(tmp_path):
    more = {"save_every_steps": 4, "checkpoint_async": True, "keep_last": 9}
    commands = launched(2, tmp_path, faults={1: "slow_disk@4"}, **more)
    wait_for_step(tmp_path / "run", 5, commands[0])
    commands[1].send_signal(signal.SIGTERM)
    assert ended(commands) == [75, 75], said(commands)
    steps = [read_state(path).step for path in list_checkpoints(tmp_path / "run/checkpoints")]
    assert steps[0] == 4 and len(steps) >= 2 and all(a < b for a, b in pairwise(steps))
