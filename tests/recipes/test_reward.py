"""`fledge align reward`: what it learns, what it says of itself, and that transformers opens it with equal rewards."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
import transformers

from fledge.align.answers import answer_rewards
from fledge.align.calibration import calibration_error, reliability
from fledge.config import from_dict
from fledge.errors import ConfigError, DataError, Interrupted
from fledge.model.folder import load_model, save_model
from fledge.recipes.preference_config import AlignRewardConfig, RewardConfig
from fledge.recipes.reward import align_reward
from fledge.recipes.reward_report import told
from fledge.text.chat import renderer_for
from fledge.text.preferences import read_preferences, render_answer
from fledge.text.tokenizer import byte_level
from tests.align.running import made_place, raw_config, steps_of
from tests.compress.tiny import tiny


def config_for(place, run, reward: dict | None = None, **train) -> AlignRewardConfig:
    return from_dict(AlignRewardConfig, raw_config(place, run, **train) | {"reward": reward or {}})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return made_place(tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="module")
def trained(place):
    return align_reward(config_for(place, place / "run", steps=16, learning_rate=0.01))


def model_bytes(run):
    return (run / "model" / "model.safetensors").read_bytes()


def rendered(place):
    renderer = renderer_for(byte_level())
    for pair in read_preferences(place / "pairs.jsonl"):
        for side in (pair.chosen, pair.rejected):
            yield render_answer(renderer, pair.prompt, side, pair.at).ids


@torch.no_grad()
def test_transformers_opens_it_and_gives_the_same_rewards(place, trained):
    theirs, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        place / "run" / "model", output_loading_info=True
    )
    assert theirs.config.num_labels == 1 and not info["missing_keys"] and not info["unexpected_keys"]
    rows = list(rendered(place))[:12]
    ours = load_model(place / "run" / "model")
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), theirs.config.pad_token_id)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = torch.tensor(row), 1
    wanted = theirs.eval()(input_ids=ids, attention_mask=mask).logits[:, 0]
    got = torch.tensor([float(rewards_alone(ours, row)) for row in rows])
    assert (got - wanted).abs().max() <= 1e-5 and wanted.std() > 0.1
    base = load_model(place / "run" / "model")  # the control
    base.heads["sequence"].out.weight.mul_(1.01)
    assert (torch.tensor([float(rewards_alone(base, row)) for row in rows]) - wanted).abs().max() > 1e-5


def rewards_alone(model, ids):
    from fledge.batch import OneDocument, one_document

    return model.head("sequence", one_document(torch.tensor([ids])), OneDocument())[0, 0]


def test_it_learns_and_tells_its_accuracy_beside_that_of_length(place, trained):
    steps = steps_of(place / "run")
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=0.1) and steps[-1]["loss"] < 0.3
    found = trained["held_out"]
    assert found["accuracy"]["n"] == 6 and found["accuracy"]["value"] >= 5 / 6
    assert trained["val_reward_accuracy"] == pytest.approx(found["accuracy"]["value"])
    assert trained["val_reward_margin"] == pytest.approx(found["margin"]["value"], abs=1e-4)
    # by hand: of 18 training pairs, chosen has 2 + n % 3 letters, rejected 1 + n % 5, each with an end of turn
    by_hand = [(2 + n % 3) - (1 + n % 5) for n in range(24)]
    longer = sum((x > 0) + (x == 0) / 2 for x in by_hand[:18]) / 18
    assert found["length_rule"] == ("longer" if longer >= 0.5 else "shorter")
    sign = 1 if longer >= 0.5 else -1
    assert found["length_accuracy"]["value"] == pytest.approx(
        sum((sign * x > 0) + (x == 0) / 2 for x in by_hand[18:]) / 6
    )
    low, high = found["accuracy"]["interval"]
    assert low <= found["accuracy"]["value"] <= high
    page = (place / "run" / "calibration.html").read_text()
    assert "Reliability" in page and "<script" not in page
    config = config_for(place, place / "run", steps=16, learning_rate=0.01)
    assert align_reward(config) == trained
    for spoilt in ("{", json.dumps({"model": "0" * 64})):  # it is measured again where the file is not this model's
        (place / "run" / "calibration.json").write_text(spoilt)
        assert align_reward(config) == trained


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(place, tmp_path):
    align_reward(config_for(place, tmp_path / "whole"))
    with pytest.raises(Interrupted):
        align_reward(config_for(place, tmp_path / "stopped", stop_after_steps=5))
    align_reward(config_for(place, tmp_path / "stopped"))
    assert model_bytes(tmp_path / "stopped") == model_bytes(tmp_path / "whole")
    align_reward(config_for(place, tmp_path / "other", seed=4))  # the control
    assert model_bytes(tmp_path / "other") != model_bytes(tmp_path / "whole")


@pytest.mark.slow
def test_micro_batches_add_up_to_the_batch_with_centring_too(place, tmp_path):
    runs = []
    for micro_rows in (0, 1):
        config = config_for(place, tmp_path / f"run{micro_rows}", {"centring": 0.5}, steps=3, micro_rows=micro_rows)
        align_reward(config)
        runs.append(steps_of(tmp_path / f"run{micro_rows}"))
    for whole, parts in zip(*runs, strict=True):
        for key in whole:
            if key.startswith(("loss", "reward", "gradient")):
                assert parts[key] == pytest.approx(whole[key], rel=2e-5, abs=2e-5), key
    assert "loss_centring" in runs[0][0]


def test_centring_adds_the_square_of_a_pairs_summed_rewards(place, tmp_path):
    align_reward(config_for(place, tmp_path / "run", {"centring": 0.5}, steps=4, rows=1))
    for step in steps_of(tmp_path / "run"):
        square = (step["reward_chosen"] + step["reward_rejected"]) ** 2
        assert step["loss_centring"] == pytest.approx(0.5 * square, rel=1e-4, abs=1e-7)
        assert step["loss"] == pytest.approx(step["loss_pairs"] + step["loss_centring"], rel=1e-6)
        assert step["loss_pairs"] == pytest.approx(math.log1p(math.exp(-step["reward_margin"])), rel=1e-4)
    assert max(step["loss_centring"] for step in steps_of(tmp_path / "run")) > 1e-4


def test_the_reward_is_the_last_tokens_whatever_stands_beside_it(place):
    """Packed side by side and padded, against each answer alone."""
    from fledge.data.keyed_batches import EveryRow
    from fledge.data.preference_batches import PreferenceBatches, fitted
    from fledge.model.retask import retask

    model = retask(tiny("llama", context_tokens=96), "sequence", 1, seed=1)
    rows = list(rendered(place))
    renderer = renderer_for(byte_level())
    pairs = [
        [render_answer(renderer, p.prompt, side, p.at) for side in (p.chosen, p.rejected)]
        for p in read_preferences(place / "pairs.jsonl")
    ]
    batches = EveryRow(PreferenceBatches(fitted(pairs, 96, True).items, 24, 0, scored=True))
    with torch.no_grad():
        got = answer_rewards(model, batches[0], 2).flatten()
        wanted = torch.stack([rewards_alone(model, row) for row in rows])
        cut = torch.stack([rewards_alone(model, row[:-1]) for row in rows])
    assert (got - wanted).abs().max() < 1e-5 and (got - cut).abs().max() > 1e-3


def test_calibration_of_a_coin_and_of_a_liar():
    sure = math.log(3)  # σ = 0.75
    bins = reliability([sure, sure, sure, -sure], 10)
    assert [(one.n, one.confidence, one.accuracy) for one in bins] == [(4, pytest.approx(0.75), 0.75)]
    assert calibration_error(bins) == pytest.approx(0.0, abs=1e-12)
    lies = reliability([-sure, -sure, -sure, -sure], 10)
    assert calibration_error(lies) == pytest.approx(0.75)
    both = reliability([sure, 0.0, 50.0], 10)
    assert [one.n for one in both] == [1, 1, 1] and both[0].accuracy == 0.5 and both[-1].high == 1.0


def test_what_is_no_reward_model_is_refused(place, tmp_path):
    config = config_for(place, tmp_path / "run")
    with pytest.raises(ConfigError, match="tune.method: expected full for a reward model"):
        align_reward(replace(config, tune=replace(config.tune, method="lora")))
    save_model(tiny("bert", context_tokens=96), tmp_path / "bert", byte_level())
    with pytest.raises(ConfigError, match="expected a decoder, whose last token has read the answer, got bert"):
        align_reward(replace(config, model=replace(config.model, path=str(tmp_path / "bert"))))
    with pytest.raises(ConfigError, match="reward: expected a decoder with a head of one label"):
        answer_rewards(tiny("llama"), None, 2)
    for bad in ({"centring": -1.0}, {"bins": 1}):
        with pytest.raises(ConfigError, match="reward"):
            RewardConfig(**bad)


def test_the_line_of_one_pair_has_no_empty_interval():
    score = {"value": 1.0, "n": 1, "interval": None}
    found = {"accuracy": score, "length_accuracy": score, "calibration_error": 0.25, "length_rule": "longer"}
    assert told(found) == "1 held-out pairs: accuracy 1.000, length alone (longer) 1.000, calibration error 0.250"
    found["accuracy"] = {"value": 0.5, "n": 8, "interval": (0.25, 0.75)}
    assert "accuracy 0.500 (0.2500 .. 0.7500), length" in told(found)


@pytest.mark.parametrize(("too_long", "advised"), [("leave_out", True), ("cut", False)])
def test_pairs_that_do_not_fit_are_told_what_is_left_to_do(place, tmp_path, too_long, advised):
    config = config_for(place, tmp_path / "run", row_tokens=4)
    config = replace(config, data=replace(config.data, too_long=too_long))
    with pytest.raises(DataError, match="train.row_tokens") as caught:
        align_reward(config)
    assert ("data.too_long=cut" in str(caught.value)) is advised
