"""`fledge checkpoint`: what it lists, finds damaged and writes anew, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fledge.cli.main import main
from fledge.train.checkpointing import mark_best, read_state
from tests.train.saved import read_optimizer
from tests.train.test_loop import go, settings, toy


@pytest.fixture
def run(tmp_path) -> Path:
    go(tmp_path / "run", toy(), settings(save_every_steps=2))
    mark_best(tmp_path / "run" / "checkpoints", 2, 1.0)
    return tmp_path / "run"


def answer(capsys, *words: object) -> tuple[int, dict]:
    capsys.readouterr()
    code = main([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_show_lists_every_checkpoint_of_a_run(run, capsys):
    code, found = answer(capsys, "checkpoint", "show", run)
    assert code == 0 and [(r["checkpoint"], r["best"], r["ranks"]) for r in found["checkpoints"]] == [
        ("step-00000002", True, 1),
        ("step-00000004", False, 1),
    ]
    folder = run / "checkpoints" / "step-00000004"
    assert found["checkpoints"][1]["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert main(["checkpoint", "show", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("step-00000004 · 0.1 MB · 1 rank · ")
    assert answer(capsys, "checkpoint", "show", run.parent)[0] == 1


def test_verify_reads_all_and_names_what_is_damaged(run, capsys):
    code, found = answer(capsys, "checkpoint", "verify", run)
    assert code == 0 and [row["step"] for row in found["checkpoints"]] == [2, 4]
    weights = run / "checkpoints" / "step-00000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    code, found = answer(capsys, "checkpoint", "verify", run)
    assert code == 1 and f"1 of 2 checkpoints are damaged: {weights}: expected SHA-256" in found["error"]["message"]
    assert answer(capsys, "checkpoint", "verify", run / "checkpoints" / "step-00000004")[0] == 0


def test_a_checkpoint_is_resharded_4_to_1_to_2_and_training_goes_on_from_each(run, tmp_path, capsys):
    first = run / "checkpoints" / "step-00000004"
    before = run
    go(run, toy(), settings(steps=6))
    wanted = (run / "checkpoints" / "step-00000006" / "model.safetensors").read_bytes()
    for number, ranks in enumerate((4, 1, 2)):
        source = before if before != run else first
        folder = tmp_path / f"again-{number}" / "checkpoints" / "step-00000004"
        folder.parent.mkdir(parents=True)
        code, found = answer(capsys, "checkpoint", "reshard", source, "--out", folder, "--ranks", ranks)
        assert code == 0 and found["ranks"] == ranks
        assert len(list(folder.glob("optimizer*.safetensors"))) == ranks
        assert read_state(folder) == read_state(first)
        one, other = read_optimizer(folder), read_optimizer(first)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        before = folder.parent.parent
    go(before, toy(), settings(steps=6))
    assert (before / "checkpoints" / "step-00000006" / "model.safetensors").read_bytes() == wanted


def test_reshard_refuses_what_is_there_or_damaged_and_leaves_nothing(run, tmp_path, capsys):
    code, found = answer(capsys, "checkpoint", "reshard", run, "--out", run, "--ranks", 2)
    assert code == 2 and "expected a new folder" in found["error"]["message"]
    assert answer(capsys, "checkpoint", "reshard", run, "--out", tmp_path / "new", "--ranks", 0)[0] == 2
    folder = run / "checkpoints" / "step-00000004"
    (folder / "optimizer.safetensors").unlink()
    code, found = answer(capsys, "checkpoint", "reshard", folder, "--out", tmp_path / "new", "--ranks", 2)
    assert code == 1 and "optimizer.safetensors: missing file" in found["error"]["message"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
