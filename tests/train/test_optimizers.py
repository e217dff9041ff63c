"""Muon, groups, schedules and the running mean of weights in a run: the same bits when it goes on, what is validated
and published, and run folders from before these settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fledge.config import from_dict, to_dict
from fledge.errors import CheckpointError, ConfigError, Interrupted
from fledge.log import read_log
from fledge.optim.config import GroupConfig, MuonConfig
from fledge.recipes.config import PretrainConfig
from fledge.recipes.pretrain import pretrain
from fledge.train import checkpointing
from fledge.train.config import TrainConfig
from fledge.train.optimizer import new_optimizer
from fledge.train.resume import changes, with_defaults
from tests.train.saved import read_optimizer
from tests.train.test_loop import go, settings, toy

KINDS = {
    "muon": {"optimizer": "muon"},
    "muon, as published": {"optimizer": "muon", "muon": MuonConfig(0.02, scale="published", precision="bfloat16")},
    "ema": {"ema_decay": 0.9},
    "all": {
        "optimizer": "muon", "ema_decay": 0.9, "publish_ema": True, "schedule": "wsd",
        "groups": (GroupConfig("embedding.weight", 0.5), GroupConfig("*norm*", weight_decay=0.1)),
    },
}  # fmt: skip


@pytest.mark.parametrize("keys", KINDS.values(), ids=list(KINDS))
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, keys):
    straight, stopped, resumed = toy(), toy(), toy()
    go(tmp_path / "straight", straight, settings(**keys))
    with pytest.raises(Interrupted):
        go(tmp_path / "run", stopped, settings(**keys, stop_after_steps=2))
    go(tmp_path / "run", resumed, settings(**keys))
    last = "checkpoints/step-00000004/optimizer.safetensors"
    assert (tmp_path / "run" / last).read_bytes() == (tmp_path / "straight" / last).read_bytes()
    pairs = list(zip(straight.model.parameters(), resumed.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)


def test_each_kind_ends_in_other_weights(tmp_path):
    """The control: the settings reach the weights."""
    ends = {}
    for name, keys in ({"adamw": {}} | KINDS).items():
        recipe = toy()
        go(tmp_path / name, recipe, settings(**keys))
        ends[name] = recipe.model.decoder.layers[0].ffn.down.weight.detach().clone()
    assert torch.equal(ends["adamw"], ends["ema"])  # which is kept beside the weights
    different = [ends[name] for name in ends if name != "ema"]
    assert all(not torch.equal(a, b) for i, a in enumerate(different) for b in different[:i])


def test_the_running_mean_is_in_the_checkpoint_validated_and_published_on_request(tmp_path):
    def ema_of(folder: Path) -> torch.Tensor:
        saved = read_optimizer(folder / "checkpoints" / "step-00000004")
        return saved["ema/embedding.weight"]

    plain, published = toy(), toy()
    result = go(tmp_path / "plain", plain, settings(ema_decay=0.9, eval_every_steps=2))
    assert {"val_loss", "ema_val_loss"} <= set(result) and "last_val_loss" not in result
    logged = [event for event in read_log(tmp_path / "plain" / "log.jsonl") if event["kind"] == "evaluate"]
    assert logged and all("ema_val_loss" in event for event in logged)
    result = go(tmp_path / "published", published, settings(ema_decay=0.9, publish_ema=True))
    assert result["val_loss"] == result["ema_val_loss"] and "last_val_loss" in result
    mean = ema_of(tmp_path / "plain")
    assert torch.equal(mean, ema_of(tmp_path / "published"))
    assert torch.equal(published.model.embedding.weight, mean) and not torch.equal(plain.model.embedding.weight, mean)


def test_without_a_running_mean_there_is_none_to_publish():
    with pytest.raises(ConfigError, match=r"train.publish_ema: .*; set train.ema_decay"):
        TrainConfig(publish_ema=True)
    with pytest.raises(ConfigError, match="train.ema_decay: expected"):
        TrainConfig(ema_decay=1.0)


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path):
    go(tmp_path, toy(), settings())
    with pytest.raises(CheckpointError, match=r"expected momentum/\S+ of .*, got none"):
        go(tmp_path, toy(), settings(steps=6, optimizer="muon"))
    with pytest.raises(CheckpointError, match="expected ema/embedding.weight"):
        go(tmp_path, toy(), settings(steps=6, ema_decay=0.9))


LATER = (
    "warmup", "decay_share", "decay_shape", "optimizer", "muon", "groups", "ema_decay", "publish_ema", "precision",
    "loss_scale", "loss_scale_steps", "compile", "spike", "spike_window", "spike_threshold", "watch_every_steps",
    "dropout",
)  # fmt: skip


def test_a_config_from_before_these_keys_means_their_defaults():
    now = PretrainConfig()
    before = to_dict(now)
    for key in LATER:
        del before["train"][key]
    assert changes(before, to_dict(now)) != []  # what would be refused without the defaults
    assert changes(with_defaults(before, now), to_dict(now)) == []
    muon = from_dict(PretrainConfig, {"train": {"optimizer": "muon"}})
    assert changes(with_defaults(before, muon), to_dict(muon)) == ["train.optimizer: was 'adamw', is 'muon'"]


def test_a_setting_inside_a_group_is_strict():
    with pytest.raises(ConfigError, match=r"train.muon.momentun: unknown key; did you mean momentum"):
        from_dict(PretrainConfig, {"train": {"muon": {"momentun": 0.9}}})
    with pytest.raises(ConfigError, match=r"train.groups\[0\].weight_decai: unknown key"):
        from_dict(PretrainConfig, {"train": {"groups": [{"weight_decai": 0.9}]}})


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("a small text that is long enough to learn something from. " * 60)
    return path


def config_of(folder: Path, text: Path, **train: object) -> PretrainConfig:
    model = {"family": "llama", "width": 16, "layers": 1, "heads": 2, "context_tokens": 16}
    keys = {"steps": 6, "rows": 2, "learning_rate": 3e-3, "device": "cpu", "threads": 1, **train}
    return from_dict(
        PretrainConfig,
        {"model": model, "data": {"path": str(text)}, "train": keys, "run": {"dir": str(folder)}},
    )


def test_a_run_folder_from_before_these_keys_goes_on_and_a_finished_one_is_known(tmp_path, text):
    folder = tmp_path / "run"
    first = pretrain(config_of(folder, text))
    for card in (folder / "model" / "card.json", folder / "checkpoints" / "step-00000006" / "card.json"):
        assert card.is_file()
    strip(folder)
    again = pretrain(config_of(folder, text))
    assert again["val_loss"] == first["val_loss"] and again["seconds"] == first["seconds"]  # not trained again
    longer = pretrain(config_of(folder, text, steps=8))
    assert longer["steps"] == 8


def strip(folder: Path) -> None:
    """Take the later keys out of a run folder, as an earlier fledge would have written it."""
    from fledge import lineage

    path = folder / "model" / "card.json"
    card = json.loads(path.read_text())
    for key in LATER:
        del card["facts"]["config"]["train"][key]
    path.write_text(json.dumps(card))
    for checkpoint in checkpointing.list_checkpoints(folder / "checkpoints"):
        state = json.loads((checkpoint / "state.json").read_text())
        for key in LATER:
            del state["config"]["train"][key]
        (checkpoint / "state.json").write_text(json.dumps(state))
        lineage.write_card(checkpoint, "checkpoint")


def test_the_running_mean_of_a_finished_run_can_be_published_later(tmp_path, text):
    from fledge.model.folder import load_model

    folder = tmp_path / "run"
    last = pretrain(config_of(folder, text, ema_decay=0.9))
    weights = load_model(folder / "model").embedding.weight.detach().clone()
    mean = pretrain(config_of(folder, text, ema_decay=0.9, publish_ema=True))
    assert mean["val_loss"] == last["ema_val_loss"] != last["val_loss"] and mean["last_val_loss"] == last["val_loss"]
    assert not torch.equal(load_model(folder / "model").embedding.weight, weights)
    back = pretrain(config_of(folder, text, ema_decay=0.9))
    assert back["val_loss"] == last["val_loss"]
    assert torch.equal(load_model(folder / "model").embedding.weight, weights)


def test_the_rate_of_muons_matrices_is_a_share_of_adamws():
    train = TrainConfig(learning_rate=1e-3, optimizer="muon", muon=MuonConfig(learning_rate=0.02))
    assert new_optimizer(toy().model, train).ratio == pytest.approx(20.0)  # type: ignore[attr-defined]
    train = TrainConfig(learning_rate=1e-3, optimizer="muon")
    assert new_optimizer(toy().model, train).ratio == 1.0  # type: ignore[attr-defined]
