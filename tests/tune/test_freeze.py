"""Frozen parts of a model: they keep every bit, the others move, and what means nothing is refused."""

from __future__ import annotations

import pytest
import torch

from fledge.config import from_dict
from fledge.errors import ConfigError, Interrupted
from fledge.model.folder import load_model
from fledge.recipes.sft import sft
from fledge.tune.attach import trained_parameters, tune
from fledge.tune.config import ShowTunedConfig, TuneConfig
from fledge.tune.show import show
from tests.compress.tiny import tiny
from tests.tune.running import config_for, made_place

FREEZE = {"freeze": ["h.0", "wte"]}


@pytest.fixture
def place(tmp_path):
    return made_place(tmp_path)


def frozen(name: str, *patterns: str) -> set[str]:
    model = tune(tiny(name), TuneConfig(freeze=patterns))
    return {key for key, parameter in model.named_parameters() if not parameter.requires_grad}


def test_names_mean_a_module_and_all_in_it_as_transformers_calls_it_or_as_we_do():
    block = {name for name, _ in tiny("gpt2").named_parameters() if name.startswith("decoder.layers.0.")}
    assert frozen("gpt2", "h.0") == frozen("gpt2", "decoder.layers.0") == frozen("gpt2", r"transformer\.h\.0") == block
    assert frozen("gpt2", "wte") == {"embedding.weight"} and len(block) > 10
    assert {name.partition("qkv.")[2] for name in frozen("gpt2", "c_attn")} == {
        f"{part}.{end}" for part in "qkv" for end in ("weight", "bias")
    }
    assert all(".q." in name for name in frozen("gpt2", "q"))


@pytest.mark.parametrize(
    ("patterns", "message"),
    [(("h.9",), "got 'h.9', which means none"), (("transformer",), "expected to leave something")],
)
def test_what_means_nothing_or_everything_is_refused(patterns, message):
    with pytest.raises(ConfigError, match=message):
        frozen("gpt2", *patterns)
    with pytest.raises(ConfigError, match=r"tune\.freeze: read with tune\.method=full only"):
        TuneConfig("lora", freeze=("h.0",))


def test_a_run_leaves_frozen_weights_bit_by_bit_moves_all_others_and_resumes_to_the_same_bits(place, tmp_path):
    sft(config_for(place, tmp_path / "whole", FREEZE))
    with pytest.raises(Interrupted):
        sft(config_for(place, tmp_path / "stopped", FREEZE, stop_after_steps=4))
    sft(config_for(place, tmp_path / "stopped", FREEZE))
    before, after, again = (load_model(folder) for folder in (place / "base", tmp_path / "whole", tmp_path / "stopped"))
    rows = zip(before.named_parameters(), after.parameters(), again.parameters(), strict=True)
    for (name, old), new, same in rows:
        assert torch.equal(old, new) == (name.startswith("decoder.layers.0.") or name == "embedding.weight"), name
        assert torch.equal(new, same), name


def test_show_counts_what_is_left_to_train():
    config = from_dict(ShowTunedConfig, {"model": {"preset": "gpt2"}, "tune": {"freeze": ["wte", "wpe"]}})
    found = show(config, json=True)
    assert found["tuning"]["trainable"] == 124_439_808 - 768 * (50257 + 1024)
    assert found["tuning"]["trainable"] + found["tuning"]["frozen"] == found["parameters"] == 124_439_808
    assert trained_parameters(tiny("gpt2")) > trained_parameters(tune(tiny("gpt2"), TuneConfig(freeze=("wte",))))
