"""Early stopping and the best weights: when a run ends, which weights it publishes, and that no stop changes either."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fledge import device
from fledge.cli.main import main
from fledge.errors import CheckpointError, ConfigError, Interrupted
from fledge.log import read_log
from fledge.model.config import ShapeConfig
from fledge.model.folder import load_model, save_model
from fledge.model.safetensors_file import SafetensorsFile
from fledge.recipes.config import PretrainConfig, TextDataConfig
from fledge.recipes.finetune import finetune
from fledge.recipes.finetune_config import FinetuneConfig
from fledge.recipes.pretrain import pretrain
from fledge.train.config import RunConfig, TrainConfig
from fledge.tune.config import TuneConfig
from tests.compress.tiny import tiny
from tests.data.corrupted import story, wordpiece
from tests.train.test_loop import go, settings, toy

PATIENT = TrainConfig(
    steps=40, rows=4, learning_rate=0.02, learning_rate_floor=1.0, seed=2, eval_every_steps=2, eval_rows=0,
    save_every_steps=3, keep_last=99, threads=1, patience=3, weight_decay=0.0,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def unmeasured():
    """Measuring the machine takes longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "matmul_peak", lambda *_, **__: 1e10)
        yield


def rule(losses: list[float], patience: int, min_delta: float = 0.0) -> int | None:
    """Which validation (from 0) is the last, by the rule as a sentence: `patience` of them, one after the other, that
    are not below the last improvement by `min_delta`."""
    reference, since = float("inf"), 0
    for n, loss in enumerate(losses):
        if loss < reference and loss <= reference - min_delta:
            reference, since = loss, 0
        else:
            since += 1
        if since == patience:
            return n
    return None


@pytest.mark.parametrize("losses, patience, min_delta", [
    ([1.0, 0.8, 0.9, 0.85, 0.7, 0.6, 0.5], 2, 0.0),
    ([1.0, 0.8, 0.9, 0.85, 0.7, 0.6, 0.5, 0.4], 3, 0.0),
    ([1.0, 0.95, 0.94, 0.93, 0.5, 0.4, 0.3], 3, 0.1),
    ([1.0, 0.96, 0.92, 0.88, 0.84, 0.80, 0.76, 0.72, 0.7, 0.69, 0.68, 0.67], 3, 0.1),
    ([1.0, float("nan"), 0.9, float("nan"), float("nan"), 0.1], 2, 0.0),
    ([0.5, 0.5, 0.5, 0.5, 0.1], 3, 0.0),
])  # fmt: skip
def test_a_run_ends_where_the_rule_says(tmp_path, losses, patience, min_delta):
    recipe = toy()
    recipe.val_losses = [*losses, 9.0, 0.0]  # the whole held-out data: the last weights, then the best
    config = settings(steps=len(losses) + 3, eval_every_steps=1, patience=patience, min_delta=min_delta)
    end = rule(losses, patience, min_delta)
    result = go(tmp_path, recipe, config)
    log = read_log(tmp_path / "log.jsonl")
    if end is None:
        assert not result["stopped_early"] and result["steps"] == config.steps
        assert not [event for event in log if event["kind"] == "early_stop"]
        return
    assert result["steps"] == end + 1 < len(losses) and result["stopped_early"]
    (event,) = [event for event in log if event["kind"] == "early_stop"]
    best = min(range(end + 1), key=lambda n: (losses[n] if losses[n] == losses[n] else 9.0, n)) + 1
    assert (event["step"], event["waited"], event["best_step"]) == (end + 1, patience, best)
    # the control: without patience it goes on
    recipe = toy()
    recipe.val_losses = losses
    assert go(tmp_path / "all", recipe, replace(config, patience=0, min_delta=0.0))["steps"] == config.steps


@pytest.mark.parametrize("key", [{"patience": 2}, {"publish_best": True}])
def test_the_best_of_nothing_held_out_is_refused_before_the_first_step(tmp_path, key):
    (tmp_path / "text.txt").write_text("one two three four five six. " * 60)

    def config(val_fraction: float) -> PretrainConfig:
        train = settings(steps=2, eval_every_steps=1, threads=1, **key)
        shape = ShapeConfig("llama", width=8, layers=1, heads=2, context_tokens=16)
        data = TextDataConfig(str(tmp_path / "text.txt"), val_fraction=val_fraction)
        return PretrainConfig(shape, data, train, RunConfig(str(tmp_path / f"{val_fraction}")))

    with pytest.raises(ConfigError, match=f"train.{next(iter(key))}: expected held-out data"):
        pretrain(config(0.0))
    assert not (tmp_path / "0.0" / "log.jsonl").exists()
    assert pretrain(config(0.2))["published_step"] in (1, 2)  # the control


@pytest.mark.parametrize("last, best, published", [(0.9, 0.5, 1), (0.4, 0.5, 4), (0.5, 0.5, 1)])
def test_published_is_the_better_of_last_and_best_by_the_whole_held_out_data(tmp_path, last, best, published):
    recipe = toy()
    recipe.val_losses = [0.5, 0.8, 0.9, last, best]
    result = go(tmp_path, recipe, settings(eval_every_steps=1, publish_best=True, save_every_steps=4, keep_last=9))
    assert (result["published_step"], result["last_val_loss"]) == (published, last)
    assert result["val_loss"] == min(last, best)
    for step in (1, 4):
        other = load_model(tmp_path / "checkpoints" / f"step-{step:08d}")
        pairs = zip(recipe.model.parameters(), other.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == (step == published)


@pytest.mark.parametrize("more, message", [
    ({"patience": 2, "eval_every_steps": 0}, "eval_every_steps: expected validations"),
    ({"publish_best": True, "publish_ema": True, "ema_decay": 0.9, "eval_every_steps": 1}, "or their running mean"),
    ({"min_delta": 0.1}, "min_delta: read with train.patience only"),
    ({"patience": -1}, "patience: expected at least 0"),
])  # fmt: skip
def test_what_cannot_be_is_refused(more, message):
    with pytest.raises(ConfigError, match=message):
        settings(**more)


# A real run: labels that have nothing to do with their texts are learnt by heart, so that validation soon gets worse


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("patience")
    bert = tiny("bert", width=16, layers=1, heads=2, context_tokens=64, vocab_size=wordpiece().vocab_size)
    save_model(bert, folder / "base", wordpiece())
    lines = [{"text": story(n, 1), "label": "ab"[n * 7919 % 13 % 2]} for n in range(48)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def config_of(place: Path, run: Path, train: TrainConfig = PATIENT, tune: TuneConfig | None = None) -> FinetuneConfig:
    plain = FinetuneConfig(train=train, run=RunConfig(str(run)), tune=tune or TuneConfig())
    data = replace(plain.data, path=str(place / "rows.jsonl"), val_fraction=0.4)
    return replace(plain, model=replace(plain.model, path=str(place / "base")), data=data)


def weights(folder: Path) -> bytes:
    (path,) = [path for path in folder.glob("*model.safetensors")]
    with SafetensorsFile(path) as file:
        return b"".join(file.read(name).numpy().tobytes() for name in sorted(file.entries))


@pytest.fixture(scope="module")
def straight(place, tmp_path_factory):
    run = tmp_path_factory.mktemp("straight")
    return run, finetune(config_of(place, run))


def test_a_run_that_overfits_stops_and_publishes_its_best_checkpoint(straight, place, tmp_path):
    run, result = straight
    told = [event for event in read_log(run / "log.jsonl") if event["kind"] == "evaluate"]
    end = rule([event["val_loss"] for event in told], 3)
    assert end is not None and result["steps"] == 2 * (end + 1) < 40 and result["stopped_early"]
    best = min(told, key=lambda event: event["val_loss"])
    assert result["published_step"] == best["step"] < result["steps"]
    assert (
        result["val_loss"] == pytest.approx(best["val_loss"], abs=1e-6) and result["last_val_loss"] > best["val_loss"]
    )
    assert weights(run / "model") == weights(run / "checkpoints" / f"step-{best['step']:08d}")
    assert weights(run / "model") != weights(run / "checkpoints" / f"step-{result['steps']:08d}")  # the control
    page = tmp_path / "page.html"
    assert main(["report", str(run), "--out", str(page)]) == 0
    assert f"stopped early at step {result['steps']}: 3 validations without a better one" in page.read_text()
    assert f"Published are the weights of step {best['step']}." in page.read_text()


@pytest.mark.parametrize("where", ["before the best", "while it waits", "at the end"])
def test_a_stop_anywhere_ends_in_the_same_bits(straight, place, tmp_path, where):
    whole, result = straight
    best, end = result["published_step"], result["steps"]
    step = {"before the best": best - 1, "while it waits": best + 3, "at the end": end}[where]
    stopping = replace(PATIENT, stop_after_steps=step)
    if where != "at the end":  # there the run is over
        with pytest.raises(Interrupted, match=f"saved at step {step}"):
            finetune(config_of(place, tmp_path, stopping))
    again = finetune(config_of(place, tmp_path))
    assert weights(tmp_path / "model") == weights(whole / "model")
    same = ("val_loss", "last_val_loss", "published_step", "steps", "stopped_early")
    assert {key: again[key] for key in same} == {key: result[key] for key in same}
    events = [event for event in read_log(tmp_path / "log.jsonl") if event["kind"] == "early_stop"]
    assert len(events) == 1


def test_a_finished_run_is_not_repeated_and_goes_on_with_more_patience(place, tmp_path):
    first = finetune(config_of(place, tmp_path))
    before = (tmp_path / "log.jsonl").read_text()
    assert finetune(config_of(place, tmp_path)) == first
    assert (tmp_path / "log.jsonl").read_text() == before
    longer = finetune(config_of(place, tmp_path, replace(PATIENT, patience=5)))
    assert longer["steps"] == first["steps"] + 4
    without = finetune(config_of(place, tmp_path, replace(PATIENT, patience=0, steps=longer["steps"] + 2)))
    assert "published_step" not in without and without["steps"] == longer["steps"] + 2
    assert weights(tmp_path / "model") == weights(tmp_path / "checkpoints" / f"step-{without['steps']:08d}")


def test_an_adapter_goes_back_to_its_best_too(place, tmp_path):
    lora = TuneConfig(method="lora", rank=4, targets=("all-linear",))
    config = config_of(place, tmp_path, replace(PATIENT, learning_rate=0.1), lora)
    result = finetune(config)
    assert result["stopped_early"] and result["published_step"] < result["steps"]
    assert weights(tmp_path / "model") == weights(tmp_path / "checkpoints" / f"step-{result['published_step']:08d}")
    assert weights(tmp_path / "model") != weights(tmp_path / "checkpoints" / f"step-{result['steps']:08d}")


def test_a_best_checkpoint_that_is_damaged_is_an_error_that_names_it(place, tmp_path):
    config = config_of(place, tmp_path, replace(PATIENT, stop_after_steps=0))
    result = finetune(config)
    folder = tmp_path / "checkpoints" / f"step-{result['published_step']:08d}"
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\1\2\3")
    with pytest.raises(CheckpointError, match=folder.name):
        finetune(config_of(place, tmp_path, replace(PATIENT, patience=0, publish_best=True, steps=result["steps"])))
