"""Trial 24, what an index may claim of files in the folder: each tensor once, where it is said to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fledge.errors import CheckpointError, ConfigError
from fledge.model.folder import load_model
from fledge.model.weight_files import INDEX, WEIGHTS
from tests.trials.test_model_files import tiny_folder

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def split(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A tiny model in two files; gives its tensors and weight_map."""
    state = safetensors.torch.load_file(tiny_folder(folder) / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = list(state)
    write(folder / ONE, {name: state[name] for name in names[:5]})
    write(folder / TWO, {name: state[name] for name in names[5:]})
    weight_map = {name: ONE if name in names[:5] else TWO for name in names}
    indexed(folder, weight_map)
    return state, weight_map


def write(path: Path, state: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(state, path, {"format": "pt"})


def indexed(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_trial_24_the_control_two_files_load(tmp_path):
    split(tmp_path / "m")
    load_model(tmp_path / "m")


def test_trial_24_a_tensor_in_two_files_is_refused_and_both_are_named(tmp_path):
    state, _ = split(tmp_path / "m")
    names = list(state)
    write(tmp_path / "m" / TWO, {name: state[name] + 1 for name in names[4:]})
    with pytest.raises(CheckpointError, match=f"'{names[4]}': expected in one file, got {ONE} and {TWO}"):
        load_model(tmp_path / "m")


def test_trial_24_a_tensor_that_is_not_in_the_file_the_index_names_is_refused(tmp_path):
    state, weight_map = split(tmp_path / "m")
    first = next(iter(state))
    indexed(tmp_path / "m", {**weight_map, first: TWO})
    with pytest.raises(CheckpointError, match=f"'{first}': expected in {TWO}, found in {ONE}"):
        load_model(tmp_path / "m")
    indexed(tmp_path / "m", {**weight_map, "model.ghost.weight": TWO})
    with pytest.raises(CheckpointError, match=f"'model.ghost.weight': expected in {TWO}, found in no file"):
        load_model(tmp_path / "m")


def test_trial_24_a_name_with_two_files_is_refused(tmp_path):
    state, weight_map = split(tmp_path / "m")
    text = json.dumps({"weight_map": weight_map})
    first = next(iter(state))
    (tmp_path / "m" / INDEX).write_text(text.replace('{"weight_map": {', f'{{"weight_map": {{"{first}": "{TWO}", ', 1))
    with pytest.raises(ConfigError, match="stands twice, with two values"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    "shard",
    ["a\0.safetensors", "a" * 5000 + ".safetensors", "a\nb.safetensors", "\ud800.safetensors", "a\u2215b.safetensors",
     "~.safetensors", " .safetensors", "http://x/y.safetensors", "d.safetensors", ".hidden.safetensors", "", 3, None,
     True, ["a.safetensors"], {}],
    ids=lambda shard: ascii(shard)[:24],
)  # fmt: skip
def test_trial_24_a_strange_name_of_a_file_is_a_typed_error_that_can_be_printed(tmp_path, shard):
    state, _ = split(tmp_path / "m")
    (tmp_path / "m" / "d.safetensors").mkdir()
    indexed(tmp_path / "m", dict.fromkeys(state, shard))
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "m")
    assert "\n" not in str(caught.value) and len(str(caught.value).encode()) < 500


@pytest.mark.parametrize("name", [INDEX, ONE])
def test_trial_24_a_link_is_not_followed_wherever_it_leads(tmp_path, name):
    split(tmp_path / "m")
    path = tmp_path / "m" / name
    for target in (tmp_path / "outside", tmp_path / "m" / "beside"):
        path.rename(target)
        path.symlink_to(target)
        with pytest.raises(CheckpointError, match=f"{name}: a link"):
            load_model(tmp_path / "m")
        path.unlink()
        target.rename(path)
    load_model(tmp_path / "m")  # the control


def test_trial_24_a_folder_of_one_file_and_an_index_is_the_one_file_as_in_transformers(tmp_path):
    state, _ = split(tmp_path / "m")
    write(tmp_path / "m" / WEIGHTS, {name: tensor * 0 + 3 for name, tensor in state.items()})
    model = load_model(tmp_path / "m")
    assert all(bool((parameter == 3).all()) for parameter in model.parameters())
