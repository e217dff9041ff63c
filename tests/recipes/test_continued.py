"""Pre-training that goes on from a model: its shape, its tokenizer, its weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fledge.compress.config import QuantizeConfig
from fledge.compress.prune import sparsity
from fledge.compress.prune_config import PruneConfig
from fledge.errors import CheckpointError, ConfigError, DataError, Interrupted
from fledge.lineage import artefact_digest, read_card
from fledge.log import read_log
from fledge.model.config import ShapeConfig
from fledge.model.folder import load_model
from fledge.recipes.baselines import baselines
from fledge.recipes.config import BaselinesConfig, PretrainConfig, TextDataConfig
from fledge.recipes.pretrain import pretrain
from fledge.recipes.prune import prune_model
from fledge.recipes.quantize import quantize_model
from fledge.text.tokenizer import Tokenizer
from fledge.train.config import RunConfig, TrainConfig
from tests.data.corrupted import story, wordpiece

TRAIN = TrainConfig(steps=6, rows=4, row_tokens=32, learning_rate=3e-3, eval_every_steps=0, threads=1, clip_norm=0.0)
SHAPE = ShapeConfig("llama", width=32, layers=2, heads=2, context_tokens=32)


def text(folder: Path, first: int) -> str:
    path = folder / f"{first}.txt"
    path.write_text("\n".join(story(n, 20) for n in range(first, first + 8)), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    wordpiece().save(folder / "tokenizer")
    data = TextDataConfig(path=text(folder, 0), tokenizer=str(folder / "tokenizer"))
    return Path(pretrain(PretrainConfig(SHAPE, data, TRAIN, RunConfig(str(folder / "run"))))["model"])


def config_of(base: Path, folder: Path, **more) -> PretrainConfig:
    data = TextDataConfig(path=text(folder, 100))
    return replace(
        PretrainConfig(data=data, train=TRAIN, run=RunConfig(str(folder / "run")), init_from=str(base)), **more
    )


def test_the_first_loss_is_the_models_own_and_a_rate_of_next_to_nothing_changes_no_bit(base, tmp_path):
    frozen = pretrain(config_of(base, tmp_path, train=replace(TRAIN, learning_rate=1e-30)))
    weights = [Path(folder, "model.safetensors").read_bytes() for folder in (base, frozen["model"])]
    assert weights[0] == weights[1]
    (tmp_path / "moved").mkdir()
    moved = pretrain(config_of(base, tmp_path / "moved"))
    assert Path(moved["model"], "model.safetensors").read_bytes() != weights[0]  # the control
    assert Tokenizer.load(moved["model"]).digest == Tokenizer.load(base).digest
    first = [e for e in read_log(tmp_path / "moved" / "run" / "log.jsonl") if e["kind"] == "step"][0]["loss"]
    still = [e for e in read_log(tmp_path / "run" / "log.jsonl") if e["kind"] == "step"][0]["loss"]
    assert first == still
    fresh = PretrainConfig(SHAPE, config_of(base, tmp_path).data, TRAIN, RunConfig(str(tmp_path / "fresh")))
    fresh = replace(fresh, data=replace(fresh.data, tokenizer=str(base)))
    pretrain(fresh)
    begun = [e for e in read_log(tmp_path / "fresh" / "log.jsonl") if e["kind"] == "step"][0]["loss"]
    assert begun > first + 0.05  # initial weights know less


def test_a_stopped_run_goes_on_to_the_same_bits_and_names_its_base(base, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    straight = pretrain(config_of(base, tmp_path / "a"))
    config = config_of(base, tmp_path / "b")
    with pytest.raises(Interrupted):
        pretrain(replace(config, train=replace(TRAIN, stop_after_steps=2)))
    stopped = pretrain(config)
    files = [Path(result["model"], "model.safetensors").read_bytes() for result in (straight, stopped)]
    assert files[0] == files[1]
    assert read_card(stopped["model"])["parents"]["base"] == artefact_digest(base)


def test_a_finished_run_whose_checkpoints_are_gone_is_not_written_over_unless_asked_for(base, tmp_path):
    config = config_of(base, tmp_path)
    first = pretrain(config)
    weights = Path(first["model"], "model.safetensors")
    before, more = weights.read_bytes(), replace(TRAIN, steps=8)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert pretrain(config) == first  # there is nothing to do
    with pytest.raises(CheckpointError, match="expected checkpoints of the run that published model/, got none"):
        pretrain(replace(config, train=more))
    assert weights.read_bytes() == before and read_log(tmp_path / "run" / "log.jsonl")[-1]["kind"] == "end"
    assert pretrain(replace(config, train=replace(more, allow_changes=True)))["steps"] == 8
    assert weights.read_bytes() != before


def test_baselines_of_a_run_that_went_on_from_a_model_are_counted_and_other_data_is_refused(base, tmp_path):
    result = pretrain(config_of(base, tmp_path))
    found = baselines(BaselinesConfig(tmp_path / "run"), json=True)
    assert found["targets"] == result["val_tokens"] and found["model"]["val_loss"] == result["val_loss"]
    card = json.loads((tmp_path / "run" / "model" / "card.json").read_text())
    card["facts"]["data_digest"] = "f" * 64
    (tmp_path / "run" / "model" / "card.json").write_text(json.dumps(card))
    with pytest.raises(ConfigError, match="the data has changed since the run"):  # the control
        baselines(BaselinesConfig(tmp_path / "run"), json=True)


def test_a_shape_a_tokenizer_other_text_and_quantized_weights_are_refused(base, tmp_path):
    config = config_of(base, tmp_path)
    with pytest.raises(ConfigError, match="leave model"):
        pretrain(replace(config, model=ShapeConfig(width=64)))
    with pytest.raises(ConfigError, match="data.tokenizer: expected none beside init_from"):
        pretrain(replace(config, data=replace(config.data, tokenizer="bytes")))
    with pytest.raises(ConfigError, match="objective: masked"):
        pretrain(replace(config, objective="masked"))
    other = pretrain(
        PretrainConfig(SHAPE, TextDataConfig(path=config.data.path), TRAIN, RunConfig(str(tmp_path / "x")))
    )
    shards = Path(other["model"]).parent / "data"
    with pytest.raises(DataError, match="got another's"):
        pretrain(replace(config, data=TextDataConfig(path=str(shards))))
    small = tmp_path / "int8"
    quantize_model(QuantizeConfig(base, small, method="rtn"), json=True)
    with pytest.raises(ConfigError, match="got quantized ones"):
        pretrain(replace(config, init_from=str(small)))


def test_what_was_pruned_stays_zero_where_that_is_asked_for(base, tmp_path):
    prune_model(PruneConfig(base, tmp_path / "pruned", share=0.6, threads=1), json=True)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    straight = pretrain(config_of(tmp_path / "pruned", tmp_path / "a", keep_zeros=True))
    config = config_of(tmp_path / "pruned", tmp_path / "b", keep_zeros=True)
    with pytest.raises(Interrupted):
        pretrain(replace(config, train=replace(TRAIN, stop_after_steps=2)))
    stopped = pretrain(config)
    files = [Path(result["model"], "model.safetensors").read_bytes() for result in (straight, stopped)]
    assert files[0] == files[1] != Path(tmp_path / "pruned", "model.safetensors").read_bytes()
    assert sparsity(load_model(stopped["model"])) == sparsity(load_model(tmp_path / "pruned")) > 0.59
    filled = pretrain(config_of(tmp_path / "pruned", tmp_path / "c"))
    assert sparsity(load_model(filled["model"])) < 0.01  # the control
    with pytest.raises(ConfigError, match="keep_zeros: read with init_from"):
        PretrainConfig(keep_zeros=True)
    with pytest.raises(ConfigError, match="expected train.optimizer=adamw"):
        replace(config, train=replace(TRAIN, optimizer="muon"))
