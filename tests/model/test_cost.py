"""Time, energy and price of a training run, against runs whose figures were published."""

from __future__ import annotations

import pytest

from fledge import device
from fledge.errors import ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.cost import DEVICES
from fledge.model.show import show
from fledge.model.show_config import ShowConfig


def run_of(preset: str, **keys: object) -> dict:
    return show(ShowConfig(preset, **keys), json=True)["training_run"]


def test_gpt_3_takes_the_published_34_days_on_1024_a100():
    """Narayanan et al. 2021 (arXiv 2104.04473), §5.1: 8 · 300e9 tokens · 175e9 parameters / (1,024 · 140 TFLOP/s)."""
    keys = {"tokens": "300B", "device": "a100", "devices": 1024, "utilisation": 140 / 312}
    run = run_of("gpt-3-175b", recompute=True, **keys)
    assert round(run["days_by_weights"]) == 34
    assert run["days_by_weights"] == pytest.approx(8 * 300e9 * 175e9 / (1024 * 140e12) / 86400, rel=0.005)
    # with the scores of attention, by their own equation 3 (without the vocabulary's term, which is in N):
    # 96 · layers · width² · (1 + tokens / 6 width) a token
    exact = 96 * 96 * 12288**2 * (1 + 2048 / (6 * 12288)) * 300e9 / (1024 * 140e12) / 86400
    assert run["days"] == pytest.approx(exact, rel=0.006)
    assert run["mfu"] == pytest.approx(0.75 * 140 / 312)
    # the control: without recomputation the same hardware would be done in three quarters of the time
    plain = run_of("gpt-3-175b", **keys)
    assert plain["days"] == pytest.approx(0.75 * run["days"]) and round(plain["days_by_weights"]) == 25


def test_a_trillion_parameters_take_the_published_84_days_on_3072_a100():
    """The same section: 450e9 tokens, 1,008e9 parameters, 163 TFLOP/s."""
    shape = ShapeConfig("gpt2", width=25600, layers=128, heads=160, context_tokens=2048, vocab_size=51200)
    keys = {"tokens": "450B", "devices": 3072, "utilisation": 163 / 312, "recompute": True}
    result = show(ShowConfig(model=shape, **keys), json=True)
    assert result["parameters"] == pytest.approx(1008e9, rel=0.001)
    assert round(result["training_run"]["days_by_weights"]) == 84


@pytest.mark.parametrize(("tokens", "devices", "days"), [("3T", 16, 90), ("300B", 1, 3456 / 24), ("22B", 8, 32 / 24)])
def test_tinyllama_takes_its_published_times(tokens, devices, days):
    """TinyLlama's README: 56 % MFU on A100s, no recomputation; 90 days, 3,456 GPU hours, 32 hours."""
    run = run_of("tinyllama-1.1b", tokens=tokens, devices=devices, utilisation=0.56)
    assert run["days"] == pytest.approx(days, rel=0.015) and run["mfu"] == 0.56
    assert run_of("tinyllama-1.1b", tokens=tokens, devices=devices, utilisation=0.5)["days"] > 1.1 * days


def test_llama_65b_takes_the_published_energy():
    """Touvron et al. 2023 (arXiv 2302.13971), §2.4 and table 15: 1.4T tokens at 380 tokens/s a GPU on 2,048 A100,
    1,022,362 GPU hours, 449 MWh at 400 W and a PUE of 1.1."""
    flops = show(ShowConfig("llama-65b"), json=True)["training_flops_per_token"]
    keys = {"tokens": "1.4T", "devices": 2048, "utilisation": 380 * flops / 312e12}
    run = run_of("llama-65b", energy_overhead=1.1, price_per_hour=2.0, **keys)
    assert run["device_hours"] == pytest.approx(1_022_362, rel=0.002) and round(run["days"]) == 21
    assert run["kwh"] == pytest.approx(449_000, rel=0.005)
    assert run["price"] == 2 * run["device_hours"]
    plain = run_of("llama-65b", **keys)
    assert plain["kwh"] == pytest.approx(run["kwh"] / 1.1) and plain["price"] is None


def test_every_device_is_asked_for_by_its_name_and_more_of_them_are_faster():
    days = {}
    for name, one in DEVICES.items():
        single, ten = (run_of("gpt2", tokens=2e9, device=name, devices=n) for n in (1, 10))
        assert single["peak_flops"] == one.peak and single["days"] == pytest.approx(10 * ten["days"])
        assert single["kwh"] == pytest.approx(single["device_hours"] * one.watts / 1000)
        days[name] = single["days"]
    assert days["h100"] < days["a100"] < days["rtx4090"] < days["v100"] < days["l4"]


def test_this_cpu_is_measured_and_has_no_energy_unless_its_power_is_given(monkeypatch):
    monkeypatch.setattr(device, "matmul_peak", lambda where, size: 1e11)
    run = run_of("gpt2", tokens="1M", device="cpu")
    assert run["peak_flops"] == 1e11 and run["kwh"] is None
    told = run_of("gpt2", tokens="1M", device="cpu", watts=65)
    assert told["kwh"] == pytest.approx(told["device_hours"] * 0.065)


def test_wrong_numbers_are_refused_by_name():
    for key, wrong in {"tokens": "300X", "devices": 0, "utilisation": 1.5, "energy_overhead": 0.5, "watts": -1}.items():
        with pytest.raises(ConfigError, match=key):
            ShowConfig("gpt2", **{key: wrong})
    assert "training_run" not in show(ShowConfig("gpt2"), json=True)


def test_the_run_is_printed_in_words(capsys):
    show(ShowConfig("gpt-3-175b", tokens="300B", devices=1024, utilisation=140 / 312, recompute=True))
    told = capsys.readouterr().out
    assert "1,024 × a100" in told and "33.8 by 8 N D" in told
