"""The loop on a toy recipe: signals at its end, losses and gradients that are not finite, the best, what it counts."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from fledge.batch import PADDING, Batch, Loss, Term, padded
from fledge.device import Device
from fledge.errors import DataError, Interrupted, NonFiniteError
from fledge.log import RunLog, read_log
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import load_model, save_model
from fledge.model.init import initialise
from fledge.model.transformer import Transformer, build
from fledge.nn.norm import BatchNorm
from fledge.parallel.group import Group
from fledge.train import checkpointing
from fledge.train.checkpointing import State
from fledge.train.config import FREE_TO_CHANGE, RunConfig, TrainConfig
from fledge.train.loop import Run, train

SHAPE = ShapeConfig("llama", width=16, layers=1, heads=2, context_tokens=8, vocab_size=20)
LENGTHS = (8, 5)


@dataclass(frozen=True)
class Config:
    train: TrainConfig
    run: RunConfig = RunConfig()


@dataclass
class Toy:
    """Rows of 8 and of 5 tokens. `during_loss(index)` adds to a loss; `val_losses` are handed out in order."""

    model: Transformer
    during_loss: Callable[[int], torch.Tensor | float] = lambda index: 0.0
    during_validation: Callable[[], None] = lambda: None
    val_losses: Sequence[float] = (1.0,)
    data_digest: str = "toy"
    drawn: int = -1
    validated: list[float] = field(default_factory=list)

    def batch(self, index: int) -> Batch:
        self.drawn = index
        tokens, layout = padded([[(index + i) % 20 for i in range(n)] for n in LENGTHS])
        return Batch(tokens, tokens.ids.roll(-1, 1), (tokens.doc != PADDING).float(), layout)

    def weights(self, batch: Batch) -> dict[str, float]:
        return {"nats": float(batch.weight.sum())}

    def loss(self, batch: Batch) -> Loss:
        total = self.model.loss_sum(batch.tokens, batch.layout, batch.targets, batch.weight)
        return Loss({"nats": Term(total + self.during_loss(self.drawn), float(batch.weight.sum()))})

    def validate(self, rows: int) -> dict[str, float]:
        self.during_validation()
        self.validated.append(self.val_losses[min(len(self.validated), len(self.val_losses) - 1)])
        return {"val_loss": self.validated[-1]}

    def save(self, folder: Path) -> None:
        save_model(self.model, folder, card=False)


def toy() -> Toy:
    return Toy(initialise(build(family("llama").build(SHAPE), "cpu"), 1))


def settings(**more: object) -> TrainConfig:
    return TrainConfig(**{"steps": 4, "rows": 2, "save_every_steps": 0, "eval_every_steps": 0, **more})  # type: ignore


def go(folder: Path, recipe: Toy, config: TrainConfig) -> dict[str, float]:
    """Train from the newest checkpoint of `folder`, or from the start."""
    found = checkpointing.newest_valid(folder / "checkpoints")
    loaded, state = (None, State()) if found is None else found
    if loaded is not None:
        recipe.model = load_model(loaded)
    log = RunLog(folder / "log.jsonl")
    log.truncate_after(state.step, state.drawn)
    device = Device(torch.device("cpu"), torch.float32, 1)
    try:
        return train(Run(folder, Config(config), config, device, recipe, log, (), loaded), state)
    finally:
        log.close()


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def kinds(folder: Path) -> list[str]:
    return [event["kind"] for event in read_log(folder / "log.jsonl")]


def test_a_signal_in_the_last_step_stops_before_the_last_validation_and_the_same_run_then_ends(tmp_path):
    recipe = toy()
    recipe.during_loss = lambda index: 0.0 if index < 3 else float(interrupt() or 0.0)
    with pytest.raises(Interrupted, match="SIGTERM: saved at step 4"):
        go(tmp_path, recipe, settings())
    assert recipe.validated == [] and "end" not in kinds(tmp_path)
    assert go(tmp_path, toy(), settings())["steps"] == 4
    assert kinds(tmp_path).count("step") == 4 and kinds(tmp_path)[-1] == "end"


def test_a_signal_in_the_last_validation_stops_before_the_run_counts_as_ended(tmp_path):
    recipe = toy()
    recipe.during_validation = interrupt
    with pytest.raises(Interrupted, match="saved at step 4"):
        go(tmp_path, recipe, settings())
    assert "end" not in kinds(tmp_path)
    assert go(tmp_path, toy(), settings())["val_loss"] == 1.0


def test_an_end_that_was_logged_is_taken_back_when_the_run_goes_on(tmp_path):
    go(tmp_path, toy(), settings())
    go(tmp_path, toy(), settings(steps=6))
    assert kinds(tmp_path).count("end") == 1 and kinds(tmp_path).count("step") == 6


def zero_with_a_gradient_that_is_none(model: Transformer) -> torch.Tensor:
    """0 · ‖embedding‖: sqrt has no slope at 0, so the gradient is 0 · inf."""
    return (model.embedding.weight * 0).square().sum().sqrt()


def test_a_gradient_that_is_not_finite_under_a_finite_loss_never_reaches_the_weights(tmp_path):
    recipe = toy()
    before = [p.detach().clone() for p in recipe.model.parameters()]
    recipe.during_loss = lambda index: zero_with_a_gradient_that_is_none(recipe.model)
    with pytest.raises(NonFiniteError, match=r"step 0, batch 0 .*loss \d.*gradient norm nan"):
        go(tmp_path, recipe, settings())
    assert all(torch.equal(p, old) for p, old in zip(recipe.model.parameters(), before, strict=True))


def test_a_batch_with_such_a_gradient_can_be_skipped(tmp_path):
    recipe = toy()
    recipe.during_loss = lambda index: zero_with_a_gradient_that_is_none(recipe.model) if index == 1 else 0.0
    go(tmp_path, recipe, settings(non_finite="skip"))
    assert recipe.drawn == 4
    assert all(bool(torch.isfinite(p).all()) for p in recipe.model.parameters())
    steps = [event for event in read_log(tmp_path / "log.jsonl") if event["kind"] == "step"]
    assert [event["skipped"] for event in steps] == [0, 1, 1, 1]


def test_a_validation_without_a_number_is_never_the_best(tmp_path):
    recipe = toy()
    recipe.val_losses = (math.nan, 2.0, math.nan, 1.5, math.inf, math.nan, 3.0)
    go(tmp_path, recipe, settings(steps=7, eval_every_steps=1, keep_last=9))
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert best == {"checkpoint": "step-00000004", "step": 4, "val_loss": 1.5}
    _, state = checkpointing.newest_valid(tmp_path / "checkpoints") or (None, State())
    assert (state.best_step, state.best_val_loss) == (4, 1.5)


def test_data_that_goes_away_costs_no_step_that_was_made(tmp_path):
    recipe, whole = toy(), toy()
    read = recipe.batch

    def batch(index: int) -> Batch:
        if index == 3:
            raise DataError("train.bin: cut")
        return read(index)

    recipe.batch = batch  # type: ignore[method-assign]
    with pytest.raises(DataError, match="cut"):
        go(tmp_path, recipe, settings())
    assert checkpointing.newest_valid(tmp_path / "checkpoints")[1].step == 3
    recipe.batch = read  # type: ignore[method-assign]
    go(tmp_path, recipe, settings())
    go(tmp_path / "whole", whole, settings())
    pairs = zip(recipe.model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_data_that_goes_away_in_a_validation_leaves_the_step_to_be_validated_again(tmp_path):
    recipe = toy()

    def go_away() -> None:
        if len(recipe.validated) == 1:
            raise DataError("val.bin: cut")

    recipe.during_validation = go_away
    config = settings(eval_every_steps=1, save_every_steps=1, keep_last=9)
    with pytest.raises(DataError, match="val.bin: cut"):
        go(tmp_path, recipe, config)
    assert checkpointing.newest_valid(tmp_path / "checkpoints")[1].step == 1
    go(tmp_path, toy(), config)
    validated = [event["step"] for event in read_log(tmp_path / "log.jsonl") if event["kind"] == "evaluate"]
    assert validated == [1, 2, 3]


def not_a_number_at(recipe: Toy, *indices: int) -> Toy:
    recipe.during_loss = lambda index: math.nan if index in indices else 0.0
    return recipe


@pytest.mark.parametrize("more", [{"non_finite": "stop"}, {"non_finite": "skip", "max_skipped": 1}])
def test_a_run_that_policy_stops_is_saved_as_one_stopped_just_before_and_goes_on_to_the_same_bits(tmp_path, more):
    bad = (1, 3) if more["non_finite"] == "skip" else (2,)
    recipe, before = not_a_number_at(toy(), *bad), not_a_number_at(toy(), *bad)
    with pytest.raises(NonFiniteError, match=f"step 2, batch {bad[-1]} "):
        go(tmp_path / "run", recipe, settings(**more))
    with pytest.raises(Interrupted):
        go(tmp_path / "before", before, settings(**more, stop_after_steps=2))
    folders = [tmp_path / name / "checkpoints" / "step-00000002" for name in ("run", "before")]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    counts = [(s.step, s.drawn, s.skipped) for s in map(checkpointing.read_state, folders)]
    assert counts[0] == counts[1] == (2, bad[-1], len(bad) - 1)
    whole, resumed = (not_a_number_at(toy(), *bad) for _ in range(2))
    go(tmp_path / "whole", whole, settings(non_finite="skip"))
    go(tmp_path / "run", resumed, settings(non_finite="skip"))
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    told = [event["batch"] for event in read_log(tmp_path / "run" / "log.jsonl") if event["kind"] == "non_finite"]
    assert told == list(bad)


def test_what_a_rejected_batch_has_moved_is_not_saved(tmp_path):
    shape = replace(SHAPE, family="bert", task="lm", norm="batch")
    recipe = not_a_number_at(Toy(initialise(build(family("bert").new_config(shape), "cpu"), 1)), 2)
    assert any(isinstance(part, BatchNorm) for part in recipe.model.modules())
    with pytest.raises(NonFiniteError):
        go(tmp_path, recipe, settings())
    assert checkpointing.list_checkpoints(tmp_path / "checkpoints") == []


def test_a_save_that_fails_as_policy_stops_the_run_does_not_hide_why_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLEDGE_FAULTS", "full_disk@2")
    with pytest.raises(NonFiniteError, match="step 2, batch 2"):
        go(tmp_path, not_a_number_at(toy(), 2), settings())
    assert "what was learned since the last checkpoint is lost: " in capsys.readouterr().err


def test_data_that_is_not_there_at_the_first_step_leaves_no_checkpoint(tmp_path):
    recipe = toy()
    recipe.batch = lambda index: (_ for _ in ()).throw(DataError("train.bin: cut"))  # type: ignore[method-assign]
    with pytest.raises(DataError, match="cut"):
        go(tmp_path, recipe, settings())
    assert checkpointing.newest_valid(tmp_path / "checkpoints") is None


def test_processor_time_is_that_of_all_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(Group, "summed", lambda self, values: [value + 100 for value in values])  # others' 100 s
    assert 100 < go(tmp_path, toy(), settings())["cpu_seconds"] < 200
    assert 100 < checkpointing.newest_valid(tmp_path / "checkpoints")[1].cpu_seconds < 200


def test_only_tokens_of_documents_are_counted(tmp_path):
    assert go(tmp_path, toy(), settings())["tokens"] == 4 * sum(LENGTHS)


def test_the_best_is_marked_again_only_while_its_checkpoint_is_there(tmp_path):
    (tmp_path / "step-00000003").mkdir()
    checkpointing.mend_best(tmp_path, State(step=4, best_step=2, best_val_loss=0.5))
    assert checkpointing.best_name(tmp_path) is None
    checkpointing.mend_best(tmp_path, State(step=4, best_step=3, best_val_loss=0.5))
    assert checkpointing.best_name(tmp_path) == "step-00000003"


def trained_weights(folder: Path, **keys: object) -> tuple[list[torch.Tensor], int]:
    """After four steps with dropout, and how often the block was entered."""
    shape = replace(SHAPE, dropout=0.1)
    recipe = Toy(initialise(build(family("llama").new_config(shape), "cpu"), 1))
    entered: list[int] = []
    recipe.model.decoder.layers[0].register_forward_pre_hook(lambda *given: entered.append(1))
    go(folder, recipe, settings(**keys))
    return [p.detach().clone() for p in recipe.model.parameters()], len(entered)


def test_checkpointed_blocks_end_in_the_same_bits_and_may_be_switched_on_when_a_run_goes_on(tmp_path):
    plain, entered = trained_weights(tmp_path / "plain")
    again, twice = trained_weights(tmp_path / "again", checkpoint_blocks=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True)) and twice == 2 * entered
    other, _ = trained_weights(tmp_path / "other", checkpoint_blocks=True, seed=2)  # the control: another dropout
    assert not all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
    assert "checkpoint_blocks" in FREE_TO_CHANGE
