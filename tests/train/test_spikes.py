"""Spikes: what is called one, what each policy does, and a run that stops and goes on around one to the same bits."""

from __future__ import annotations

import random
from statistics import NormalDist

import pytest
import torch

from fledge.config import from_dict, parse_yaml
from fledge.errors import ConfigError, Interrupted, SpikeError
from fledge.log import read_log
from fledge.recipes.config import PretrainConfig
from fledge.train import checkpointing
from fledge.train.checkpointing import State
from fledge.train.spikes import Spikes, deviations
from tests.train.test_loop import go, settings, toy
from tests.train.test_precision import no_measuring  # noqa: F401 (a fixture)

PLANTED = 20


def spiked(recipe=None):
    recipe = recipe or toy()
    recipe.during_loss = lambda index: 400.0 if index == PLANTED else 0.0  # of some 40 nats: the loss tenfold
    return recipe


def keys(**more: object):
    return settings(**{"steps": 30, "spike_window": 24, "learning_rate": 1e-3, **more})


def events(folder, kind: str) -> list[dict]:
    return [event for event in read_log(folder / "log.jsonl") if event["kind"] == kind]


def test_deviations_are_those_of_a_normal_distribution():
    chance = random.Random(1)
    drawn = [chance.gauss(5.0, 0.5) for _ in range(20_000)]
    for share in (0.5, 0.9, 0.999):
        z = NormalDist().inv_cdf(share)
        assert deviations(5.0 + 0.5 * z, drawn) == pytest.approx(z, rel=0.03, abs=0.03)


def test_a_window_full_of_spikes_moves_the_scale_little():
    chance = random.Random(2)
    calm = [chance.gauss(3.0, 0.1) for _ in range(100)]
    spoilt = calm[:80] + [300.0] * 20
    assert deviations(4.0, spoilt) > 6
    mean = sum(spoilt) / 100
    spread = (sum((x - mean) ** 2 for x in spoilt) / 100) ** 0.5
    assert (4.0 - mean) / spread < 0  # the control: mean and deviation would see none


def test_noise_a_falling_loss_and_a_constant_one_are_no_spikes():
    chance = random.Random(3)
    state = State()
    spikes = Spikes(state, 128, 10.0)
    for step in range(2000):
        loss, norm = 3 + 7 * 0.99**step + chance.gauss(0, 0.05), 2.0 ** chance.gauss(0, 0.5)
        assert spikes.found(loss, norm) == ""
        spikes.take(loss, norm)
    assert len(state.recent_losses) == len(state.recent_norms) == 128
    flat = Spikes(State(), 32, 10.0)
    for _ in range(32):
        flat.take(2.0, 1.0)
    assert flat.found(2.3, 1.1) == "" and "loss 3 is" in flat.found(3.0, 1.0) and "norm 5 is" in flat.found(2.0, 5.0)


def test_nothing_is_judged_before_there_is_something_to_judge_by():
    spikes = Spikes(State(), 128, 10.0)
    for step in range(16):
        assert spikes.found(1000.0 if step == 15 else 1.0, 1.0) == ""
        spikes.take(1.0, 1.0)
    assert spikes.found(1000.0, 1.0)


def test_off_in_yaml_wants_quotes():
    for key in ("spike", "compile"):
        with pytest.raises(ConfigError, match=f"train.{key}: expected one of 'off'.*got False; .* put it in quotes"):
            from_dict(PretrainConfig, parse_yaml(f"train: {{{key}: off}}"))
        assert getattr(from_dict(PretrainConfig, parse_yaml(f'train: {{{key}: "off"}}')).train, key) == "off"


def test_a_spike_is_left_out_and_counted_and_its_batch_is_named(tmp_path):
    recipe = spiked()
    go(tmp_path, recipe, keys(spike="skip"))
    (found,) = events(tmp_path, "spike")
    assert (found["batch"], found["step"]) == (PLANTED, PLANTED) and recipe.drawn == 30
    steps = events(tmp_path, "step")
    assert [e["spikes"] for e in steps] == [0] * 20 + [1] * 10 and max(e["loss"] for e in steps) < 5
    plain = spiked()
    go(tmp_path / "plain", plain, keys())
    assert plain.drawn == 29 and max(e["loss"] for e in events(tmp_path / "plain", "step")) > 30  # the control


def test_a_warning_changes_no_bit(tmp_path, capsys):
    warned, plain = spiked(), spiked()
    go(tmp_path / "warned", warned, keys(spike="warn"))
    assert "warning: step 20, batch 20 (samples unnamed): loss" in capsys.readouterr().err
    go(tmp_path / "plain", plain, keys())
    assert all(torch.equal(a, b) for a, b in zip(warned.model.parameters(), plain.model.parameters(), strict=True))


def test_a_spike_stops_the_run_before_it_moves_a_weight(tmp_path):
    recipe, before = spiked(), toy()
    with pytest.raises(SpikeError, match=r"step 20, batch 20 .*loss .* deviations above .* set train.spike=skip"):
        go(tmp_path / "run", recipe, keys(spike="stop"))
    with pytest.raises(Interrupted):
        go(tmp_path / "before", before, keys(stop_after_steps=20))
    assert all(torch.equal(a, b) for a, b in zip(recipe.model.parameters(), before.model.parameters(), strict=True))


def test_skipping_is_bounded(tmp_path):
    recipe = toy()
    recipe.during_loss = lambda index: 400.0 if index >= PLANTED else 0.0
    with pytest.raises(SpikeError, match="more than train.max_skipped=3"):
        go(tmp_path, recipe, keys(spike="skip", max_skipped=3))
    assert len(events(tmp_path, "spike")) == 4


def test_a_spike_that_stops_a_run_in_float16_is_stopped_before_the_loss_scale_has_seen_it(tmp_path):
    recipe, before = spiked(), toy()
    keep = {"precision": "float16", "loss_scale_steps": PLANTED + 1}
    with pytest.raises(SpikeError):
        go(tmp_path / "run", recipe, keys(spike="stop", **keep))
    with pytest.raises(Interrupted):
        go(tmp_path / "before", before, keys(spike="stop", stop_after_steps=20, **keep))
    found = [checkpointing.newest_valid(tmp_path / name / "checkpoints") for name in ("run", "before")]
    saved = [one[1] for one in found if one is not None]
    assert len(saved) == 2
    assert [(s.step, s.drawn, s.spikes, s.loss_scale, s.since_overflow) for s in saved] == [
        (20, 20, 0, 65536.0, 20)
    ] * 2
    assert saved[0].recent_losses == saved[1].recent_losses


def test_spikes_that_were_only_warned_of_are_not_counted_as_skipped(tmp_path):
    def often(*indices: int):
        recipe = toy()
        recipe.during_loss = lambda index: 400.0 if index in indices else 0.0
        return recipe

    batches = (17, 19, 21, 26)
    with pytest.raises(Interrupted):
        go(tmp_path, often(*batches), keys(spike="warn", max_skipped=1, stop_after_steps=24))
    go(tmp_path, often(*batches), keys(spike="skip", max_skipped=1))
    state = checkpointing.newest_valid(tmp_path / "checkpoints")[1]  # type: ignore[index]
    assert (state.spikes, state.skipped_spikes) == (4, 1)


@pytest.mark.parametrize("stop", [19, 20, 21])
def test_a_run_that_goes_on_around_a_spike_ends_in_the_same_bits(tmp_path, stop):
    more = {"spike": "skip", "steps": 24}
    whole, stopped, resumed = spiked(), spiked(), spiked()
    go(tmp_path / "whole", whole, keys(**more))
    with pytest.raises(Interrupted):
        go(tmp_path / "run", stopped, keys(**more, stop_after_steps=stop))
    go(tmp_path / "run", resumed, keys(**more))
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    ends = [checkpointing.newest_valid(tmp_path / n / "checkpoints")[1] for n in ("whole", "run")]  # type: ignore
    assert ends[0].spikes == ends[1].spikes == 1 and ends[0].drawn == ends[1].drawn == 25
    assert [x.hex() for x in ends[0].recent_losses] == [x.hex() for x in ends[1].recent_losses]
    assert [x.hex() for x in ends[0].recent_norms] == [x.hex() for x in ends[1].recent_norms]


def test_without_its_memory_a_resumed_run_would_train_on_the_spike(tmp_path, monkeypatch):
    """The control of the test above."""
    whole, stopped, resumed = spiked(), spiked(), spiked()
    go(tmp_path / "whole", whole, keys(spike="skip", steps=24))
    with pytest.raises(Interrupted):
        go(tmp_path / "run", stopped, keys(spike="skip", steps=24, stop_after_steps=19))
    read = checkpointing.read_state

    def forgetful(folder, *ranks):
        state = read(folder, *ranks)
        state.recent_losses, state.recent_norms = [], []
        return state

    monkeypatch.setattr(checkpointing, "read_state", forgetful)
    go(tmp_path / "run", resumed, keys(spike="skip", steps=24))
    assert events(tmp_path / "run", "spike") == []
    assert not torch.equal(whole.model.embedding.weight, resumed.model.embedding.weight)
