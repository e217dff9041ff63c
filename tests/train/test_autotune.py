"""The largest micro-batch that fits, and the learning-rate range test: both leave weights and run folders alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fledge.batch import slice_rows
from fledge.device import Device
from fledge.errors import ConfigError, DataError, Interrupted
from fledge.model.config import ShapeConfig
from fledge.nn.live_bytes import LiveBytes
from fledge.recipes.config import LrRangeConfig, PretrainConfig, RangeConfig, TextDataConfig, TuneBatchConfig
from fledge.recipes.lr_range import lr_range
from fledge.recipes.pretrain import fresh_recipe, pretrain
from fledge.recipes.tune_batch import tune_batch
from fledge.train.autotune import choose_micro_rows, counted_bytes, divisors, largest_that_fits, measured_bytes
from fledge.train.config import RunConfig, TrainConfig
from fledge.train.range_test import Tried, rate_of, suggestion
from fledge.train.record import read_run
from tests.train.test_precision import no_measuring  # noqa: F401 (a fixture)

CPU = Device(torch.device("cpu"), torch.float32, 1)
SHAPE = ShapeConfig("llama", width=32, layers=2, heads=2, context_tokens=32)


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} is a number, and {n + 1} comes after it. " for n in range(600)))
    return path


def keys(text: Path, folder: Path, **train: object) -> dict:
    settings = TrainConfig(**{"rows": 8, "steps": 4, "threads": 1, "eval_every_steps": 0, **train})  # type: ignore
    return {"model": SHAPE, "data": TextDataConfig(str(text)), "train": settings, "run": RunConfig(str(folder / "run"))}


def test_the_largest_divisor_that_fits_is_taken_and_what_is_counted_too_large_is_not_tried():
    tried: list[int] = []

    def measure(n: int) -> int:
        tried.append(n)
        return 90 + 12 * n

    found = largest_that_fits(12, 150, lambda n: 80 + 10 * n, measure)
    assert divisors(12) == [12, 6, 4, 3, 2, 1] and tried == [6, 4] and found[-1].micro_rows == 4
    assert [one.fits for one in found] == [False, False, True]
    assert largest_that_fits(12, 150, lambda n: None, lambda n: None if n > 2 else 100)[-1].micro_rows == 2
    with pytest.raises(ConfigError, match=r"one row to fit in 50 bytes, got 90 .*checkpoint_blocks"):
        largest_that_fits(12, 50, lambda n: 80 + 10 * n, measure)


@pytest.mark.slow
def test_what_was_counted_is_what_a_step_takes_and_weights_are_left_alone(text, tmp_path):
    config = PretrainConfig(**keys(text, tmp_path))
    recipe = fresh_recipe(config, tmp_path / "data")
    before = [p.detach().clone() for p in recipe.model.parameters()]
    for rows in (8, 2):
        counted = counted_bytes(recipe, config.train, rows)
        measured = measured_bytes(recipe, config.train, CPU, rows)
        assert measured == pytest.approx(counted, rel=0.15)
        # the control: with its optimizer and gradients a bare pass of the same rows is far below
        with LiveBytes() as live:
            recipe.loss(slice_rows(recipe.batch(0), 0, rows))
        assert live.peak < 0.9 * measured
    assert all(torch.equal(a, b) for a, b in zip(recipe.model.parameters(), before, strict=True))
    assert all(p.grad is None for p in recipe.model.parameters())
    limit = measured_bytes(recipe, config.train, CPU, 4) or 0
    assert choose_micro_rows(recipe, config.train, CPU, limit)[-1].micro_rows == 4
    assert choose_micro_rows(recipe, config.train, CPU, limit - 1)[-1].micro_rows == 2


def test_the_verb_tells_the_rows_and_touches_no_run(text, tmp_path):
    config = TuneBatchConfig(**keys(text, tmp_path), out=tmp_path / "out")
    found = tune_batch(config, json=True)
    assert found["micro_rows"] == 8 and found["tried"][-1]["fits"]
    tight = tune_batch(replace(config, memory_bytes=found["tried"][-1]["measured"] - 1), json=True)
    assert tight["micro_rows"] < 8
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="expected one row to fit in 1,000 bytes"):
        tune_batch(replace(config, memory_bytes=1000), json=True)


def test_a_run_with_auto_finds_its_rows_states_them_and_keeps_them(text, tmp_path, monkeypatch):
    config = PretrainConfig(**keys(text, tmp_path, micro_rows="auto", steps=2))
    result = pretrain(config)
    assert read_run(tmp_path / "run").config["train"]["micro_rows"] == 8
    other = PretrainConfig(**keys(text, tmp_path / "other", steps=2))
    assert pretrain(other)["val_loss"] == pytest.approx(result["val_loss"], rel=1e-6)
    monkeypatch.setattr("fledge.recipes.session.choose_micro_rows", None)  # going on, nothing is tried again
    more = PretrainConfig(**keys(text, tmp_path, micro_rows="auto", steps=3))
    assert pretrain(more)["steps"] == 3


def test_a_run_with_dropout_that_began_with_all_rows_goes_on_with_them_under_auto(text, tmp_path, monkeypatch):
    def config(name: str, **train: object) -> PretrainConfig:
        return PretrainConfig(**keys(text, tmp_path / name, **train) | {"model": replace(SHAPE, dropout=0.2)})

    whole = pretrain(config("whole"))
    with pytest.raises(Interrupted):
        pretrain(config("run", stop_after_steps=2))
    monkeypatch.setattr("fledge.recipes.session.rows_that_fit", lambda *given: 2)  # less memory than before
    assert pretrain(config("run", micro_rows="auto"))["val_loss"] == whole["val_loss"]
    assert pretrain(config("other", micro_rows="auto"))["val_loss"] != whole["val_loss"]  # the control


def test_a_range_test_of_experts_says_that_their_batch_cannot_be_split(text, tmp_path):
    shape = replace(SHAPE, family="mixtral", experts=4)
    config = LrRangeConfig(**keys(text, tmp_path, micro_rows=2) | {"model": shape}, out=tmp_path / "out")
    with pytest.raises(ConfigError, match="couples its batch; set micro_rows=0"):
        lr_range(config, json=True)


def curve(loss_at) -> list[Tried]:
    rates = [rate_of(step, 1e-6, 10.0, 141) for step in range(141)]
    tried = [Tried(rate, loss_at(rate), loss_at(rate)) for rate in rates]
    end = next((i for i, one in enumerate(tried) if one.smoothed > 1.05 * tried[0].smoothed), len(tried) - 1)
    return tried[: end + 1]


def test_a_suggestion_is_where_the_loss_falls_fastest_and_a_tenth_of_where_it_diverges():
    def learns(rate: float) -> float:  # falls fastest at 1e-3
        return 4 - 2 / (1 + math.exp(-3 * math.log(rate / 1e-3)))

    found = suggestion(curve(learns))
    assert found.steepest == pytest.approx(1e-3, rel=0.2) and found.diverged is None
    assert found.suggested == found.steepest
    found = suggestion(curve(lambda rate: learns(rate) + (rate / 4e-3) ** 2))
    assert found.diverged == pytest.approx(6e-3, rel=0.3) and found.suggested == pytest.approx(found.diverged / 10)
    with pytest.raises(DataError, match="a loss that falls somewhere"):
        suggestion(curve(lambda rate: 4 + 0.1 * math.log10(rate / 1e-6)))


def test_rates_grow_by_one_factor_from_low_to_high():
    rates = [rate_of(step, 1e-5, 1e-1, 5) for step in range(5)]
    assert rates == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])


@pytest.mark.slow
def test_the_range_test_suggests_a_rate_that_learns_and_leaves_no_run(text, tmp_path):
    asked = RangeConfig(1e-5, 30.0, 60, 0.8)
    config = LrRangeConfig(**keys(text, tmp_path, optimizer="muon", ema_decay=0.9), range=asked, out=tmp_path / "out")
    found = lr_range(config, json=True)
    assert 1e-4 < found["suggested"] < 1.0 and found["diverged"] is not None
    assert not (tmp_path / "run").exists()
    figures = json.loads((tmp_path / "out" / "range.json").read_text())
    assert len(figures["tried"]) == found["steps"] <= 60
    page = (tmp_path / "out" / "range.html").read_text()
    assert "learning-rate range test" in page and "<polyline" in page and "<script" not in page
    base = keys(text, tmp_path, steps=30, schedule="constant")

    def trained(rate: float) -> float:
        train = replace(base["train"], learning_rate=rate)
        run = RunConfig(str(tmp_path / f"run-{rate:.0e}"))
        return float(pretrain(PretrainConfig(**base | {"train": train, "run": run}))["val_loss"])

    good = trained(found["suggested"])
    assert good < trained(found["suggested"] / 100)  # the control: another rate learns less
