"""Checkpoints under failing disks, failing deletes, half-written folders (trials 6 and 14 below the command line)."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fledge import lineage
from fledge.errors import CheckpointError, NonFiniteError
from fledge.model.safetensors_file import write_safetensors
from fledge.train import checkpointing
from fledge.train.checkpointing import State, mark_best, newest_valid, prune, save_checkpoint


def write_model(folder: Path, value: float = 1.0) -> None:
    write_safetensors(folder / "model.safetensors", {"w": torch.full((8,), value)})


def save(root: Path, step: int, value: float = 1.0) -> Path:
    return save_checkpoint(root, State(step=step), lambda folder: write_model(folder, value), {"m": torch.ones(8)})


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def test_a_full_disk_names_path_and_bytes_and_leaves_the_older_checkpoint_valid(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(path, *_):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpointing, "write_safetensors", full)
        with pytest.raises(CheckpointError, match=r"step-00000002: the disk is full \(about \d+ bytes"):
            save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001"]
    found = newest_valid(tmp_path)
    assert found is not None and found[1].step == 1
    save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_too_little_space_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(checkpointing.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="1000 are free"):
        save(tmp_path, 1)
    assert names(tmp_path) == []


def test_a_weight_that_is_not_finite_is_never_written(tmp_path):
    with pytest.raises(NonFiniteError, match="w: not finite"):
        save(tmp_path, 1, float("nan"))
    assert names(tmp_path) == []


def test_the_best_is_kept_though_it_is_older_than_all(tmp_path):
    for step in range(1, 7):
        save(tmp_path, step)
        if step == 1:
            mark_best(tmp_path, 1, 0.5)
        prune(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000005", "step-00000006"]


def test_nothing_is_deleted_while_the_newest_does_not_verify(tmp_path, capsys):
    for step in range(1, 5):
        save(tmp_path, step)
    (tmp_path / "step-00000004" / "model.safetensors").write_bytes(b"")
    prune(tmp_path, 1)
    assert len(names(tmp_path)) == 4
    assert "does not verify" in capsys.readouterr().err


def test_a_delete_that_fails_is_a_warning(tmp_path, monkeypatch, capsys):
    for step in range(1, 4):
        save(tmp_path, step)

    def refuse(*_):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpointing.os, "replace", refuse)
    prune(tmp_path, 1)
    assert "could not be deleted (Permission denied)" in capsys.readouterr().err


def test_a_half_written_folder_is_not_a_checkpoint_and_is_cleared(tmp_path):
    save(tmp_path, 1)
    leftover = tmp_path / ".new-step-00000002-1"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    mark = tmp_path / f".{checkpointing.BEST}.tmp-1"  # killed while it marked the best
    mark.write_text("{")
    found = newest_valid(tmp_path)
    assert found is not None and found[1].step == 1
    save(tmp_path, 3)
    assert not leftover.exists() and not mark.exists()


def test_a_checkpoint_of_a_later_format_is_refused_clearly(tmp_path):
    path = save(tmp_path, 1)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "format": 99}))
    os.unlink(path / "card.json")
    checkpointing.lineage.write_card(path, "checkpoint")
    with pytest.raises(CheckpointError, match="expected format 1, got 99"):
        checkpointing.read_state(path)


def test_checkpoints_stand_in_the_order_of_their_steps_beyond_eight_digits(tmp_path):
    steps = (99_999_500, 100_000_000, 100_000_500)
    for step in steps:
        (tmp_path / checkpointing.folder_name(step)).mkdir()
    (tmp_path / "step-aside").mkdir()
    names = [path.name for path in checkpointing.list_checkpoints(tmp_path)]
    assert names == ["step-aside", *map(checkpointing.folder_name, steps)] and names != sorted(names)


LATER = ("loss_scale", "since_overflow", "overflows", "spikes", "skipped_spikes", "recent_losses", "recent_norms")


def rewritten(root: Path, change: Callable[[dict], None]) -> Path:
    """A checkpoint whose state another release wrote."""
    folder = save(root, 3)
    state = json.loads((folder / "state.json").read_text())
    change(state)
    (folder / "state.json").write_text(json.dumps(state))
    lineage.write_card(folder, "checkpoint", {}, {})
    return folder


def test_a_state_from_before_precision_and_spikes_goes_on_with_their_beginnings(tmp_path):
    found = checkpointing.read_state(rewritten(tmp_path, lambda state: [state.pop(key) for key in LATER] and None))
    assert found == State(step=3)


def test_a_state_with_a_field_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="expected the fields of format 1, got others"):
        checkpointing.read_state(rewritten(tmp_path, lambda state: state.update(colour="blue")))
