"""What a run of many processes does besides its sums: it goes on with another number of them, stops together, and ends
with the error of the one that failed."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fledge.errors import ConfigError
from fledge.log import read_log
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import load_model
from fledge.parallel.config import ParallelConfig, coordinates, ranks_along
from fledge.train.config import DropoutConfig, TrainConfig
from fledge.train.parallel.data import check_rows
from fledge.train.parallel.fit import check_model, reasons
from tests.parallel.fleet import free_port
from tests.parallel.test_equal import ZERO1, ZERO3, config, told
from tests.train.saved import read_optimizer
from tests.trials.tiny import Command, start, wait_for_step

pytestmark = pytest.mark.slow  # two processes have been seen to wait for each other for ever, in about 1 run of 50

# Going on


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_processes(optimizer, fleet, folders):
    train = {"steps": 6, "optimizer": optimizer, "ema_decay": 0.9}
    straight = fleet.train(config("gpt2", folders, **train))
    parts = [(2, ZERO3, 2), (1, {}, 4), (4, {"tensor": 2, **ZERO1}, 0)]
    for index, (n, mesh, stop) in enumerate(parts):
        got = fleet.train(config("gpt2", folders, **train), n, index > 0, parallel=mesh, stop_after_steps=stop)
        codes = {error[2] for error in got.errors if error is not None}
        assert codes == ({75} if stop else set()), got.errors
    assert list(got.steps) == [1, 2, 3, 4, 5, 6]
    assert [s["tokens"] for s in got.steps.values()] == [s["tokens"] for s in straight.steps.values()]
    assert max(abs(a - b) for a, b in zip(got.losses, straight.losses, strict=True)) < 1e-5
    last = "checkpoints/step-00000006"
    for read in (read_optimizer, lambda folder: dict(load_model(folder).named_parameters())):
        a, b = (read(run.folder / last) for run in (straight, got))
        assert a.keys() == b.keys() and all(torch.allclose(a[key], b[key], atol=1e-5) for key in a)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{}, ZERO1, ZERO3, {"tensor": 2}, {"pipe": 2}], ids=told)
def test_muon_moves_whole_matrices_however_they_are_shared(mesh, fleet, folders):
    alone = fleet.train(config("llama", folders, optimizer="muon"))
    got = fleet.train(config("llama", folders, optimizer="muon"), 2, parallel=mesh)
    assert max(abs(a - b) for a, b in zip(got.losses, alone.losses, strict=True)) < 2e-6
    if mesh == ZERO3:  # the control
        wrong = fleet.train(config("llama", folders, optimizer="muon"), 2, sabotage="part of a matrix", parallel=mesh)
        assert max(abs(a - b) for a, b in zip(wrong.losses, alone.losses, strict=True)) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{}, ZERO3, {"tensor": 2}], ids=told)
def test_dropout_and_recomputed_blocks_are_those_of_one_process(mesh, fleet, folders):
    tree = config("gpt2", folders, checkpoint_blocks=True)
    tree["model"]["dropout"] = 0.1
    alone, got = fleet.train(tree), fleet.train(tree, 2, parallel=mesh)
    assert max(abs(a - b) for a, b in zip(got.losses, alone.losses, strict=True)) < 2e-6
    tree["model"]["dropout"] = 0.0
    assert abs(fleet.train(tree).losses[0] - alone.losses[0]) > 1e-4  # the control


def test_what_was_drawn_by_micro_batches_may_not_be_cut_otherwise(fleet, folders):
    tree = config("gpt2", folders, micro_rows=0, stop_after_steps=1)
    tree["model"]["dropout"] = 0.1
    assert fleet.train(tree, 2).errors[0][2] == 75
    refused = fleet.train({**tree, "train": {**tree["train"], "stop_after_steps": 0}}, 1, go_on=True)
    assert "train.micro_rows: was 4, is 8" in refused.errors[0][1]


# Ending


RUN = {"family": "llama", "width": 16, "layers": 2, "heads": 2, "context_tokens": 32}


def launched(n: int, folder: Path, *words: str, faults: dict[int, str] | None = None, **train: Any) -> list[Command]:
    """The processes of one run, as torchrun would start them."""
    text = folder / "text.txt"
    text.write_text("".join(f"{i}. The quick brown fox jumps over the lazy dog.\n" for i in range(300)))
    tree = {
        "model": RUN, "data": {"path": str(text)}, "run": {"dir": str(folder / "run")},
        "train": {"steps": 2000, "rows": 4, "threads": 1, "device": "cpu", "eval_every_steps": 0, **train},
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    port = str(free_port())
    return [
        start("pretrain", str(folder / "run.yaml"), "--json", *words, RANK=str(rank), LOCAL_RANK=str(rank),
              WORLD_SIZE=str(n), MASTER_ADDR="127.0.0.1", MASTER_PORT=port, FLEDGE_FAULTS=(faults or {}).get(rank, ""))
        for rank in range(n)
    ]  # fmt: skip


def ended(commands: list[Command]) -> list[int]:
    try:
        return [command.wait(120) for command in commands]
    finally:
        for command in commands:
            if command.process.is_alive():
                command.process.kill()


def said(commands: list[Command]) -> list[str]:
    """Every line that begins with `error: `, of all processes."""
    return [line for command in commands for line in command.stderr.splitlines() if line.startswith("error: ")]


def test_a_signal_to_the_group_saves_once_and_all_end_with_its_code(tmp_path):
    commands = launched(2, tmp_path)
    wait_for_step(tmp_path / "run", 2, commands[0])
    for number in (1, 0, 1, 0):  # a launcher passes on what its processes got too
        commands[number].send_signal(signal.SIGTERM)
    assert ended(commands) == [75, 75]
    assert len(said(commands)) == 1 and "saved at step" in said(commands)[0]
    saved = list((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert len(saved) == 1 and (saved[0] / "optimizer-00002-of-00002.safetensors").exists()
    steps = [e["step"] for e in read_log(tmp_path / "run" / "log.jsonl") if e["kind"] == "step"]
    assert steps == list(range(1, len(steps) + 1)) and saved[0].name == f"step-{steps[-1]:08d}"
    assert commands[1].stdout == "" and "step " not in commands[1].stderr


def test_the_last_checkpoint_must_be_written_whatever_the_policy(tmp_path):
    train = {"steps": 4, "save_every_steps": 2, "failed_save": "continue", "rows": 2}
    commands = launched(2, tmp_path, faults={0: "full_disk@2,full_disk@4"}, **train)
    assert ended(commands) == [1, 1], said(commands)
    assert len(said(commands)) == 1 and "the disk is full" in said(commands)[0]
    failed = [e["step"] for e in read_log(tmp_path / "run" / "log.jsonl") if e["kind"] == "checkpoint_failed"]
    assert failed == [2, 4] and not (tmp_path / "run" / "model").exists()


def test_a_killed_process_is_named_and_no_other_hangs(tmp_path):
    commands = launched(2, tmp_path)
    wait_for_step(tmp_path / "run", 2, commands[0])
    os.kill(commands[1].pid, signal.SIGKILL)
    assert ended(commands) == [1, -signal.SIGKILL]
    assert len(said(commands)) == 1 and said(commands)[0].startswith("error: rank 1: expected an answer")


@pytest.mark.slow
def test_a_process_that_hangs_is_named_within_the_time_limit(tmp_path):
    commands = launched(3, tmp_path, rows=3, parallel={"timeout_seconds": 8})
    wait_for_step(tmp_path / "run", 2, commands[0])
    began = time.monotonic()
    commands[2].send_signal(signal.SIGSTOP)
    codes = [command.wait(60) for command in commands[:2]]
    commands[2].process.kill()
    commands[2].wait(30)
    assert codes == [1, 1] and time.monotonic() - began < 50
    assert len(said(commands)) == 1 and said(commands)[0].startswith("error: rank 2: expected an answer")


def test_the_error_of_one_process_ends_all_with_its_code(tmp_path):
    commands = launched(2, tmp_path, "train.non_finite=stop", faults={1: "nan_loss@3"})
    assert ended(commands) == [1, 1], said(commands)
    assert len(said(commands)) == 1 and "loss nan" in said(commands)[0]


def test_what_policy_stops_in_all_processes_is_saved_and_in_one_alone_is_not(tmp_path):
    for name, ranks in (("all", (0, 1)), ("one", (1,))):
        (tmp_path / name).mkdir()
        commands = launched(2, tmp_path / name, faults={rank: "nan_loss@3" for rank in ranks})
        assert ended(commands) == [1, 1], said(commands)
        assert len(said(commands)) == 1 and "step 3, batch 3" in said(commands)[0]
        saved = [path.name for path in (tmp_path / name / "run" / "checkpoints").glob("step-*")]
        assert saved == ["step-00000003"] * (name == "all")
    assert ended(launched(2, tmp_path / "all", steps=6)) == [0, 0]
    steps = [e["step"] for e in read_log(tmp_path / "all" / "run" / "log.jsonl") if e["kind"] == "step"]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_data_that_goes_away_in_the_validation_of_one_process_ends_all_with_its_message(fleet, folders):
    train = {"steps": 4, "eval_every_steps": 2, "parallel": {"timeout_seconds": 30}}
    got = fleet.train(config("gpt2", folders), 2, sabotage="no validation", **train)
    kinds = [error[0] for error in got.errors if error is not None]
    assert kinds == ["PeerError", "DataError"] and got.errors[1][1] == "planted", got.errors
    assert not list((got.folder / "checkpoints").glob("step-*"))


def test_a_wrong_mesh_or_key_is_said_once_with_its_code(tmp_path):
    commands = launched(2, tmp_path, "train.parallel.tensor=3")
    assert ended(commands) == [2, 2]
    assert len(said(commands)) == 1 and "tensor 3 x pipe 1 processes, got 2 (WORLD_SIZE)" in said(commands)[0]
    answers = [command.stdout for command in commands]
    assert json.loads(answers[0])["error"]["exit_code"] == 2 and answers[1] == ""


# What is refused


def shape(name: str, **more: Any) -> Any:
    sizes = {"width": 32, "layers": 2, "heads": 4, "context_tokens": 32, "vocab_size": 64}
    return family(name).new_config(ShapeConfig(name, **{**sizes, **more}))


REFUSED: list[tuple[str, dict[str, Any], int, dict[str, Any], str]] = [
    ("llama", {"kv_heads": 1}, 2, {"tensor": 2}, "tensor: expected heads"),
    ("olmo2", {}, 2, {"tensor": 2}, "normalised per head"),
    ("deberta-v2", {}, 2, {"tensor": 2}, "disentangled"),
    ("mixtral", {}, 2, {"tensor": 2}, "tensor: expected 1 for a mixture"),
    ("mixtral", {}, 2, {"pipe": 2}, "pipe: expected 1 for a mixture"),
    ("mixtral", {}, 2, {"shard": 2}, "got the load balance of experts"),
    ("bert", {"norm": "batch"}, 2, {}, "got batch"),
    ("gpt2", {"dropout": 0.1}, 2, {"tensor": 2, "sequence": True}, "model.dropout=0"),
    ("gpt2", {}, 3, {"pipe": 3}, "at most the model's 2 layers"),
    ("gpt2", {}, 4, {"pipe": 2, "shard": 2}, "shard_stage: expected 1 beside a pipe"),
    ("gpt2", {}, 4, {"pipe": 2, "tensor": 2, "sequence": True}, "sequence: expected no pipe"),
    ("t5", {}, 2, {"pipe": 2}, "got both"),
]


@pytest.mark.parametrize(("name", "more", "n", "mesh", "message"), REFUSED, ids=told)
def test_what_can_not_be_shared_exactly_is_refused(name, more, n, mesh, message):
    parallel = ParallelConfig(**mesh)
    with pytest.raises(ConfigError, match=message):
        check_model(shape(name, **more), TrainConfig(rows=12, parallel=parallel), parallel.sizes(n))


STEPS: list[tuple[dict[str, Any], int, dict[str, Any], str]] = [
    ({"watch_every_steps": 1}, 2, {"shard": 2, "shard_stage": 1}, "watch_every_steps"),
    ({"compile": "blocks"}, 2, {"tensor": 2}, "train.compile"),
    ({"precision": "bfloat16"}, 2, {"pipe": 2}, "train.precision"),
    ({"dropout": DropoutConfig(layers=0.1)}, 2, {"shard": 2}, "train.dropout.layers"),
    ({"dropout": DropoutConfig(attention=0.1)}, 2, {"tensor": 2}, "inside of attention"),
    ({"dropout": DropoutConfig(residual=0.1)}, 2, {"tensor": 2, "sequence": True}, "train.dropout"),
]


@pytest.mark.parametrize(("settings", "n", "mesh", "message"), STEPS, ids=told)
def test_what_a_step_can_not_do_in_parts_is_refused(settings, n, mesh, message):
    parallel = ParallelConfig(**mesh)
    with pytest.raises(ConfigError, match=message):
        check_model(shape("gpt2"), TrainConfig(rows=12, parallel=parallel, **settings), parallel.sizes(n))
    check_model(shape("gpt2"), TrainConfig(rows=12, **settings), ParallelConfig().sizes(1))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{}, ZERO3], ids=told)
def test_lower_precision_is_that_of_one_process(mesh, fleet, folders):
    tree = config("gpt2", folders, precision="bfloat16")
    alone, got = fleet.train(tree), fleet.train(tree, 2, parallel=mesh)
    assert max(abs(a - b) for a, b in zip(got.losses, alone.losses, strict=True)) < 1e-3
    exact = fleet.train(config("gpt2", folders))
    assert max(abs(a - b) for a, b in zip(exact.losses, alone.losses, strict=True)) > 1e-5  # it is lower


def test_experts_without_a_load_balance_are_shared_by_their_optimizer_alone():
    config = shape("mixtral")
    layers = tuple(replace(one, ffn=replace(one.ffn, balance=0.0)) for one in config.decoder.layers)
    config = replace(config, decoder=replace(config.decoder, layers=layers))
    for stage, reason in ((1, None), (2, "shard_stage: expected 1 for a mixture")):
        parallel = ParallelConfig(shard=2, shard_stage=stage)
        found = list(reasons(config, TrainConfig(parallel=parallel), parallel.sizes(2)))
        assert [text.partition(" of experts")[0] for text in found] == ([reason] if reason else [])


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "albert", "bloom"])
def test_what_can_be_is_not(name):
    parallel = ParallelConfig(tensor=2)
    check_model(shape(name), TrainConfig(parallel=parallel), parallel.sizes(4))


def test_rows_that_do_not_come_out_even_are_refused():
    with pytest.raises(ConfigError, match="expected a multiple of 6 for 2 processes .* got 9; nearest is 12"):
        check_rows(TrainConfig(rows=9, micro_rows=3), 2)
    check_rows(TrainConfig(rows=12, micro_rows=3), 2)


def test_every_rank_has_one_place_and_every_line_runs_through_it():
    sizes = ParallelConfig(shard=2, tensor=2, pipe=3).sizes(24)
    assert sizes == {"pipe": 3, "data": 2, "shard": 2, "tensor": 2}
    places = [tuple(coordinates(rank, sizes).values()) for rank in range(24)]
    assert len(set(places)) == 24
    for axis, n in sizes.items():
        lines = ranks_along((axis,), sizes)
        assert sorted(rank for line in lines for rank in line) == list(range(24)) and {len(one) for one in lines} == {n}
    assert ranks_along(("tensor",), sizes)[0] == [0, 1]  # neighbours
