"""Adapter folders of strangers: what lies, is damaged or asks for more than is computed here ends in a typed error."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from fledge.engine.loaded import load
from fledge.errors import CheckpointError, ConfigError
from fledge.model.folder import find_model, load_model, save_model
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors
from fledge.text.tokenizer import byte_level
from fledge.tune.attach import tune
from fledge.tune.config import TuneConfig
from fledge.tune.folder import load_adapter, save_adapter
from tests.compress.tiny import tiny

FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    save_model(tiny("llama"), folder / "base", byte_level())
    config = TuneConfig("lora")
    save_adapter(tune(load_model(folder / "base"), config), folder / "adapter", config, folder / "base")
    return folder


@pytest.fixture
def adapter(good, tmp_path):
    """A copy to spoil."""
    shutil.copytree(good / "adapter", tmp_path / "adapter")
    return tmp_path / "adapter"


def read(good, adapter):
    return load_adapter(load_model(good / "base"), adapter, good / "base")


def test_what_nobody_spoilt_is_read(good, adapter):
    read(good, adapter)
    assert load(adapter).generate("a", max_tokens=2, ignore_eos=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "P_TUNING"}, "peft_type: expected one of LORA, IA3, .*, got 'P_TUNING'"),
        ({"peft_type": ["LORA"]}, "peft_type"),
        ({"bias": "all"}, "bias: expected none"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save'"),
        ({"modules_to_save": 5}, "'modules_to_save'"),
        ({"layer_replication": [[0, 1]]}, "'layer_replication'"),
        ({"trainable_token_indices": [1]}, "'trainable_token_indices'"),
        ({"a_key_of_tomorrow": {"x": 1}}, "'a_key_of_tomorrow'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: expected one that leaves the base as it is"),
        ({"r": 0}, "r: expected 1 to"),
        ({"r": 1e300}, "r: expected"),
        ({"r": "8"}, "r: expected a number"),
        ({"lora_alpha": float("nan")}, "NaN is not a JSON number"),
        ({"lora_alpha": True}, "lora_alpha"),
        ({"use_dora": "yes"}, "use_dora: expected true or false"),
        ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern: expected a name"),
        ({"rank_pattern": [1]}, "rank_pattern: expected a mapping"),
        ({"rank_pattern": {".?" * 40 + "!": 4}}, "rank_pattern: expected a name, or a regular expression"),
        ({"rank_pattern": {"a{99999999999999999999}": 4}}, "rank_pattern: expected a regular expression"),
        ({"rank_pattern": {"(" * 20_000 + ")" * 20_000: 4}}, "rank_pattern: expected at most 1000 characters"),
        ({"rank_pattern": {"(?i)q_PROJ": 8}}, "rank_pattern: expected a regular expression"),
        ({"rank_pattern": {"q_proj": 1.5}}, "rank_pattern: expected whole numbers"),
        ({"alpha_pattern": {"q_proj": 10**400}}, "q_proj: expected a number"),
        ({"alpha_pattern": {"q": "x"}}, "q: expected a number"),
    ],
)
def test_configs_that_ask_for_what_is_not_computed_here_are_refused(good, adapter, change, message):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        read(good, adapter)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"peft_type": "LORA", "peft_type": "IA3"}', "[" * 100_000])
def test_a_config_that_is_no_mapping_is_refused(good, adapter, text):
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(ConfigError):
        read(good, adapter)


def spoilt(tensors, how):
    a, b = f"{FIRST}.lora_A.weight", f"{FIRST}.lora_B.weight"
    if how == "missing":
        del tensors[b]
    elif how == "wider":
        tensors[a] = torch.zeros(8, 65)
    elif how == "of another rank":
        tensors[a], tensors[b] = torch.zeros(4, 64), torch.zeros(64, 4)
    elif how == "not finite":
        tensors[a][0, 0] = float("inf")
    elif how == "whole numbers":
        tensors[a] = tensors[a].to(torch.int64)
    elif how == "of no module":
        tensors["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = tensors[a]
    elif how == "a stranger's":
        tensors["model.embed_tokens.weight"] = tensors[a]
    elif how == "a trained head":
        tensors["base_model.model.lm_head.weight"] = tensors[a]
    elif how == "of another method":
        tensors[f"{FIRST}.ia3_l"] = torch.ones(64, 1)
    elif how == "one dimension":
        tensors[a] = torch.zeros(8)
    elif how == "none":
        tensors.clear()
    return tensors


HOW = (
    "missing", "wider", "of another rank", "not finite", "whole numbers", "of no module", "a stranger's",
    "a trained head", "of another method", "one dimension", "none",
)  # fmt: skip


@pytest.mark.parametrize("how", HOW)
def test_tensors_that_do_not_fit_are_refused(good, adapter, how):
    path = adapter / "adapter_model.safetensors"
    with SafetensorsFile(path) as file:
        tensors = {name: file.read(name) for name in file.entries}
    write_safetensors(path, spoilt(tensors, how))
    with pytest.raises(CheckpointError):
        read(good, adapter)


def test_files_that_are_damaged_missing_pickled_or_elsewhere_are_refused(good, adapter, tmp_path):
    path = adapter / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError):
        read(good, adapter)
    path.unlink()
    with pytest.raises(CheckpointError, match="can't be opened"):
        read(good, adapter)
    (adapter / "adapter_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="pickled weights"):
        read(good, adapter)
    (tmp_path / "away").write_bytes(whole)
    path.symlink_to(tmp_path / "away")
    with pytest.raises(CheckpointError, match="a link out of the folder"):
        read(good, adapter)
    with pytest.raises(CheckpointError, match="expected an adapter folder"):
        load_adapter(tiny("llama"), tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["somebody/a-model", "", None, "\0", "x" * 5000, 3])
def test_a_base_that_is_not_here_is_named_and_nothing_is_downloaded(good, adapter, name):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name}))
    with pytest.raises(CheckpointError, match="expected base_model_name_or_path to be a folder here.*fledge merge"):
        load(adapter)


def test_an_adapter_is_no_model_folder(good):
    with pytest.raises(CheckpointError, match="an adapter's, which has no weights of its own; fledge merge"):
        find_model(good / "adapter")
