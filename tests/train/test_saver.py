"""Checkpoints written behind the training: values of the call, one in flight, errors that surface, ends that wait."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pytest
import torch

from fledge.errors import CheckpointError, DataError, Interrupted
from fledge.log import RunLog, read_log
from fledge.model.folder import load_model
from fledge.train import checkpointing, contents, snapshot
from fledge.train.checkpointing import State, newest_valid
from fledge.train.clock import Clock
from fledge.train.contents import Whole
from fledge.train.faults import Faults
from fledge.train.saver import Job, Saver
from tests.train.saved import read_optimizer
from tests.train.test_loop import Toy, go, settings, toy


def asynchronous(**more: object):
    return settings(**{"checkpoint_async": True, "save_every_steps": 1, **more})


class Gate:
    """Holds every write at its first file until `open`; counts writers inside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.opened, self.inside, self.most = threading.Event(), 0, 0
        real = checkpointing.save_checkpoint

        def held(*arguments):
            self.inside += 1
            self.most = max(self.most, self.inside)
            assert self.opened.wait(60)
            try:
                return real(*arguments)
            finally:
                self.inside -= 1

        monkeypatch.setattr(checkpointing, "save_checkpoint", held)


@contextmanager
def new_saver(root: Path, **more: object) -> Iterator[Saver]:
    log = RunLog(root.parent / "log.jsonl")
    yield Saver(root, asynchronous(**more), log, Faults(""), Clock())
    log.close()


def job(recipe: Toy, step: int = 1) -> Job:
    moments = {"exp_avg/x": torch.ones(3), "step/x": torch.zeros(()).reshape(1)}
    return Job(State(step=step), Whole(recipe, moments))


def saved_while_weights_change(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict, Job, Path]:
    """The weights at the call, the job, and the folder that was written after all tensors had been changed."""
    recipe, gate = toy(), Gate(monkeypatch)
    made = job(recipe)
    before = {name: p.detach().clone() for name, p in recipe.model.named_parameters()}
    with new_saver(root) as writer:
        writer.save_on_the_way(made)
        with torch.no_grad():
            for tensor in [*recipe.model.parameters(), *made.contents.moments.values()]:
                tensor.add_(1)
        made.state.tokens = 99
        gate.opened.set()
        writer.wait()
    return before, made, root / "step-00000001"


def test_the_file_holds_the_values_of_the_call(tmp_path, monkeypatch):
    before, made, folder = saved_while_weights_change(tmp_path / "checkpoints", monkeypatch)
    assert all(torch.equal(p, before[name]) for name, p in load_model(folder).named_parameters())
    kept = read_optimizer(folder)
    assert torch.equal(kept["exp_avg/x"], torch.ones(3)) and torch.equal(kept["step/x"], torch.zeros(1))
    assert torch.equal(made.contents.moments["exp_avg/x"], 2 * torch.ones(3))
    assert checkpointing.read_state(folder).tokens == 0


def test_a_shallow_copy_would_leak_later_values(tmp_path, monkeypatch):
    """The control."""
    for module in (snapshot, contents):
        monkeypatch.setattr(module, "copied", lambda tensor: tensor.detach())
    before, _, folder = saved_while_weights_change(tmp_path / "checkpoints", monkeypatch)
    assert not any(torch.equal(p, before[name]) for name, p in load_model(folder).named_parameters())
    assert torch.equal(read_optimizer(folder)["exp_avg/x"], 2 * torch.ones(3))


def test_a_frozen_module_keeps_what_is_shared_and_shares_no_tensor():
    shared = torch.nn.Linear(2, 2)
    whole = torch.nn.Sequential(shared, torch.nn.BatchNorm1d(2), shared, torch.nn.Linear(2, 2, bias=False))
    whole[3].weight = shared.weight
    whole.kept_graph = (whole[3].weight * 2,)  # a tensor that copy.deepcopy refuses
    twin = snapshot.frozen(whole, {})
    assert twin[0] is twin[2] and twin[3].weight is twin[0].weight and twin[3].bias is None
    state, copied = whole.state_dict(), twin.state_dict()
    assert state.keys() == copied.keys() and all(torch.equal(state[name], copied[name]) for name in state)
    assert not {t.data_ptr() for t in state.values()} & {t.data_ptr() for t in copied.values()}
    assert snapshot.snapshot_bytes(whole, {"m": torch.ones(3)}) == 4 * (6 + 4 + 4) + 8 + 12


def test_at_most_one_is_in_flight_and_the_wait_is_in_the_log(tmp_path, monkeypatch, capsys):
    gate, recipe = Gate(monkeypatch), toy()
    with new_saver(tmp_path / "checkpoints") as writer:
        writer.save_on_the_way(job(recipe, 1))
        threading.Timer(0.05, gate.opened.set).start()
        writer.save_on_the_way(job(recipe, 2))
        writer.save_on_the_way(job(recipe, 2))  # it is on its way
        writer.save(job(recipe, 3))
    assert gate.most == 1
    events = read_log(tmp_path / "log.jsonl")
    assert [e["step"] for e in events if e["kind"] == "checkpoint"] == [1, 2, 3]
    (waited,) = [e for e in events if e["kind"] == "checkpoint_wait" and e["waited_for"] == 1]
    assert waited["step"] == 2 and waited["seconds"] > 0
    assert "checkpoint of step 2 waited" in capsys.readouterr().err


def weights_and_losses(folder: Path) -> tuple[bytes, bytes, list[float]]:
    newest, _ = newest_valid(folder / "checkpoints") or pytest.fail("none")
    losses = [event["loss"] for event in read_log(folder / "log.jsonl") if event["kind"] == "step"]
    return (newest / "model.safetensors").read_bytes(), (newest / "optimizer.safetensors").read_bytes(), losses


def test_a_run_with_checkpoints_behind_it_ends_in_the_same_bits(tmp_path, capsys):
    for name, config in (("here", settings(save_every_steps=1, steps=6)), ("behind", asynchronous(steps=6))):
        go(tmp_path / name, toy(), config)
    assert weights_and_losses(tmp_path / "here") == weights_and_losses(tmp_path / "behind")
    assert "written behind the training, from a copy of 0.1 MB" in capsys.readouterr().err
    kept = [event["step"] for event in read_log(tmp_path / "behind" / "log.jsonl") if event["kind"] == "checkpoint"]
    assert kept == [1, 2, 3, 4, 5, 6]
    assert sorted(p.name for p in (tmp_path / "behind" / "checkpoints").iterdir()) == ["step-00000005", "step-00000006"]


def failing_at(monkeypatch: pytest.MonkeyPatch, *steps: int, code: int = errno.ENOSPC) -> None:
    real = checkpointing.write_state

    def write(folder: Path, state: State) -> None:
        if state.step in steps:
            raise OSError(code, "planted")
        real(folder, state)

    monkeypatch.setattr(checkpointing, "write_state", write)


@pytest.mark.parametrize("code, words", [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "can't be written")])
def test_an_error_behind_the_training_ends_it_as_the_same_error(tmp_path, monkeypatch, code, words):
    failing_at(monkeypatch, 2, code=code)
    messages = []
    for name, config in (("here", settings(save_every_steps=1)), ("behind", asynchronous())):
        with pytest.raises(CheckpointError, match=words) as error:
            go(tmp_path / name, toy(), config)
        messages.append(str(error.value).replace(f"/{name}/", "/"))
    assert messages[0] == messages[1]
    _, state = newest_valid(tmp_path / "behind" / "checkpoints") or pytest.fail("none")
    assert state.step in (1, 3, 4)  # what was learned until the error surfaced may be kept, a broken one never
    assert not list((tmp_path / "behind" / "checkpoints").glob(".*"))


def test_a_failed_checkpoint_may_be_borne_and_the_lost_best_is_no_best(tmp_path, monkeypatch, capsys):
    failing_at(monkeypatch, 2)
    for name, config in (("here", settings), ("behind", asynchronous)):
        recipe = toy()
        recipe.val_losses = (3.0, 1.0, 2.0, 2.5)
        config = config(save_every_steps=1, eval_every_steps=1, failed_save="continue", steps=5)
        assert go(tmp_path / name, recipe, config)["steps"] == 5
        assert "training goes on without it" in capsys.readouterr().err
        events = read_log(tmp_path / name / "log.jsonl")
        assert [e["step"] for e in events if e["kind"] == "checkpoint_failed"] == [2]
        assert [e["step"] for e in events if e["kind"] == "checkpoint"] == [1, 3, 4, 5]
    assert checkpointing.read_best(tmp_path / "here" / "checkpoints") == (3, 2.0)


class Refusing(FileIO):
    """A log on a disk that is `full` for a while: it takes half of what is written and refuses the rest."""

    full = False

    def write(self, data) -> int:
        if not Refusing.full:
            return super().write(data)
        if len(data) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(bytes(data)[: len(data) // 2])


@pytest.mark.parametrize("policy", ["continue", "stop"])
def test_a_log_on_a_full_disk_waits_where_a_failed_checkpoint_is_borne(tmp_path, monkeypatch, capsys, policy):
    monkeypatch.setattr("fledge.log.FileIO", Refusing)
    path = tmp_path / "log.jsonl"
    log = RunLog(path, waits=policy == "continue")
    log.write("step", step=1)
    monkeypatch.setattr(Refusing, "full", True)
    if policy == "stop":
        with pytest.raises(OSError, match="No space left"):
            log.write("step", step=2)
        log.close()
        assert path.read_text().count("\n") == 1 and path.read_text().endswith("\n")
        return
    for step in (2, 3):
        log.write("step", step=step)
    assert path.read_text().endswith("}\n") and [event["step"] for event in read_log(path)] == [1]
    assert capsys.readouterr().err.count("its lines wait in memory until it can") == 1
    monkeypatch.setattr(Refusing, "full", False)
    log.write("step", step=4)
    assert [event["step"] for event in read_log(path)] == [1, 2, 3, 4]
    monkeypatch.setattr(Refusing, "full", True)
    log.write("step", step=5)
    log.close()
    assert "1 lines were lost" in capsys.readouterr().err and len(read_log(path)) == 4


@pytest.mark.parametrize("behind", [False, True])
def test_the_last_checkpoint_must_be_written_whatever_the_policy(tmp_path, monkeypatch, behind):
    failing_at(monkeypatch, 4)
    with pytest.raises(CheckpointError, match="the disk is full"):
        go(tmp_path, toy(), settings(checkpoint_async=behind, save_every_steps=1, failed_save="continue"))


def test_another_error_waits_for_the_one_in_flight(tmp_path, monkeypatch):
    gate, recipe = Gate(monkeypatch), toy()

    def break_down(index: int) -> float:
        if index == 2:
            threading.Timer(0.05, gate.opened.set).start()
            raise RuntimeError("planted")
        return 0.0

    recipe.during_loss = break_down
    with pytest.raises(RuntimeError, match="planted"):
        go(tmp_path, recipe, asynchronous(save_every_steps=2))
    assert gate.inside == 0
    _, state = newest_valid(tmp_path / "checkpoints") or pytest.fail("none")
    assert state.step == 2


@pytest.mark.parametrize("error", [DataError, Interrupted])
def test_what_saves_at_its_end_returns_when_all_has_landed(tmp_path, monkeypatch, error):
    gate, recipe = Gate(monkeypatch), toy()

    def go_away(index: int) -> float:
        if index == 3:
            threading.Timer(0.05, gate.opened.set).start()
            raise error("planted")
        return 0.0

    recipe.during_loss = go_away
    config = asynchronous(save_every_steps=2)
    if error is Interrupted:
        gate.opened.set()
        recipe.during_loss = lambda index: 0.0
        config = asynchronous(save_every_steps=2, stop_after_steps=3)
    with pytest.raises(error):
        go(tmp_path, recipe, config)
    assert [path.name for path in checkpointing.list_checkpoints(tmp_path / "checkpoints")][-1] == "step-00000003"
    assert not threading.enumerate()[1:] or not any("checkpoint" in t.name for t in threading.enumerate())


def test_a_copy_that_does_not_fit_is_not_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(snapshot.devices, "available_bytes", lambda device: 1000)
    monkeypatch.setattr(Job, "frozen", lambda self: pytest.fail("a copy was made"))
    go(tmp_path, toy(), asynchronous())
    assert capsys.readouterr().err.count("does not fit into memory") == 1
    assert [path.name for path in checkpointing.list_checkpoints(tmp_path / "checkpoints")][-1] == "step-00000004"


def test_the_best_is_marked_and_old_ones_pruned_only_when_it_has_landed(tmp_path, monkeypatch):
    root = tmp_path / "checkpoints"
    with new_saver(root, keep_last=1) as writer:
        writer.save(job(toy(), 1))
        gate = Gate(monkeypatch)
        writer.save_on_the_way(Job(State(step=2), Whole(toy(), {"m": torch.ones(1)}), best=0.5))
        assert checkpointing.best_name(root) is None and (root / "step-00000001").is_dir()
        gate.opened.set()
        writer.wait()
    assert checkpointing.best_name(root) == "step-00000002" and not (root / "step-00000001").exists()
