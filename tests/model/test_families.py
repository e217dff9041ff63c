"""What a family writes into config.json it reads back, and what it can't write is refused before training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fledge.errors import ConfigError
from fledge.model.config import InitConfig, ModelConfig, ShapeConfig
from fledge.model.families import FAMILIES, family, over_preset
from fledge.model.families.family import ACTIVATIONS, activation_name
from fledge.model.folder import config_json, read_config
from fledge.model.show import resolve
from fledge.model.show_config import ShowConfig

SHAPE = ShapeConfig(width=16, layers=2, heads=2, context_tokens=32, vocab_size=20)
VARIANTS = {
    "plain": {},
    "biased": {"bias": True},
    "unbiased": {"bias": False},
    "tied": {"tie": True},
    "untied": {"tie": False},
    "hidden": {"hidden": 40},
    "epsilon": {"norm_eps": 1e-3},
}


def through_a_folder(config: ModelConfig, folder: Path) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(config_json(config, torch.float32)))
    return read_config(folder)[1]


@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.parametrize("activation", sorted(set(ACTIVATIONS.values())))
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_a_config_is_read_back_equal_or_refused_by_the_name_of_what_its_family_cannot_write(
    name, activation, variant, tmp_path
):
    shape = replace(SHAPE, family=name, activation=activation, **VARIANTS[variant])
    try:
        config = family(name).build(shape)
        again = through_a_folder(config, tmp_path)
    except ConfigError as error:  # a family without that choice says so
        assert name not in ("gpt2", "llama") and "model." in str(error)
        return
    assert again == config


def test_the_control_another_activation_is_another_config(tmp_path):
    config = family("llama").build(replace(SHAPE, activation="relu"))
    assert through_a_folder(config, tmp_path) != family("llama").build(replace(SHAPE, activation="gelu"))


def test_an_activation_without_a_name_in_transformers_is_refused():
    with pytest.raises(ConfigError, match="model.activation"):
        activation_name("swish2")  # type: ignore[arg-type]


def test_a_model_has_at_least_one_layer(tmp_path):
    config = family("llama").build(SHAPE)
    with pytest.raises(ConfigError, match="decoder.layers"):
        replace(config, decoder=replace(config.stack, layers=()))
    raw = {"model_type": "llama", "vocab_size": 20, **family("llama").write(config), "num_hidden_layers": 0}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="decoder.layers"):
        read_config(tmp_path)


def test_fields_that_are_set_stand_over_the_preset_and_the_rest_is_the_presets():
    shape = over_preset(ShapeConfig(preset="gpt2-medium", vocab_size=50304, init=InitConfig("xavier"), dropout=0.1))
    expected = replace(FAMILIES["gpt2"].presets["gpt2-medium"], vocab_size=50304, init=InitConfig("xavier"))
    assert shape == replace(expected, dropout=0.1)
    assert over_preset(SHAPE) == SHAPE


def test_show_gives_a_preset_named_as_path_or_as_field_the_same_changes():
    fields = {"vocab_size": 50304, "init": InitConfig("he")}
    by_path = resolve(ShowConfig(path="gpt2", model=ShapeConfig(**fields)))
    assert by_path == resolve(ShowConfig(model=ShapeConfig(preset="gpt2", **fields)))
    assert by_path.vocab_size == 50304 and by_path.init == InitConfig("he")


def test_a_new_gpt_bigcode_has_one_key_value_head_unless_all_are_asked_for():
    heads = {n: family("gpt_bigcode").new_config(replace(SHAPE, family="gpt_bigcode", heads=4, kv_heads=n)).stack
             for n in (0, 1, 4)}  # fmt: skip
    assert {n: stack.layers[0].mixer.n_kv_heads for n, stack in heads.items()} == {0: 1, 1: 1, 4: 4}
    with pytest.raises(ConfigError, match="kv_heads"):
        family("gpt_bigcode").new_config(replace(SHAPE, family="gpt_bigcode", heads=4, kv_heads=2))
