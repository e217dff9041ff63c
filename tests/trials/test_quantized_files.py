"""Hostile quantized folders are refused with a typed error before the weights are allocated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fledge.compress.quantize import quantize, uniform
from fledge.errors import CheckpointError, ConfigError
from fledge.model import folder as folders
from fledge.model.folder import load_model, save_model
from fledge.model.quantization import INT8, int4
from tests.compress.tiny import tiny

O_PROJ = "model.layers.0.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[int, Path]:
    """A folder in 8 bits and one in 4."""
    made = {}
    for scheme in (INT8, int4(32)):
        model = tiny(layers=1, width=64)
        quantize(model, uniform(model, scheme))
        made[scheme.bits] = tmp_path_factory.mktemp(f"int{scheme.bits}")
        save_model(model, made[scheme.bits])
        load_model(made[scheme.bits])  # the control
    return made


def changed(source: Path, target: Path, tensors=None, config=None) -> Path:
    """A copy whose tensors (a function of them) or quantization_config were changed."""
    state = safetensors.torch.load_file(source / "model.safetensors")
    raw = json.loads((source / "config.json").read_text())
    if tensors:
        tensors(state)
    if config:
        raw["quantization_config"] = config(raw["quantization_config"])
    target.mkdir(exist_ok=True)
    safetensors.torch.save_file(
        {k: v.contiguous() for k, v in state.items()}, target / "model.safetensors", {"format": "pt"}
    )
    (target / "config.json").write_text(json.dumps(raw))
    return target


def no_allocation(monkeypatch) -> None:
    """Reading any tensor is a failure."""

    def refused(*_: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("fledge.model.safetensors_file.SafetensorsFile.read", refused)


def put(name: str, value):
    return lambda state: state.__setitem__(name, value(state[name]))


SHAPES = {
    "scale too short": (8, put(f"{O_PROJ}_scale", lambda t: t[:-1]), "_scale: expected torch.float32"),
    "scale of no dimensions": (8, put(f"{O_PROJ}_scale", lambda t: t[0, 0]), "_scale: expected torch.float32"),
    "scale of whole numbers": (8, put(f"{O_PROJ}_scale", lambda t: t.int()), "_scale: expected torch.float32"),
    "weight too narrow": (8, put(O_PROJ, lambda t: t[:, :-32]), "expected torch.int8"),
    "weight of another type": (8, put(O_PROJ, lambda t: t.int()), "expected torch.int8"),
    "zero points of 8 bits": (
        8,
        lambda s: s.update({f"{O_PROJ}_zero_point": s[f"{O_PROJ}_scale"].int()}),
        "expected none",
    ),
    "groups that do not divide": (4, put(f"{O_PROJ}_scale", lambda t: torch.ones(64, 3)), "groups that divide"),
    "no groups": (4, put(f"{O_PROJ}_scale", lambda t: t[:, :0]), "groups that divide"),
    "another group": (4, put(f"{O_PROJ}_scale", lambda t: t[:, :1]), "by config.json, got INT4 in groups of 64"),
    "groups of 1": (4, put(f"{O_PROJ}_scale", lambda t: torch.ones(64, 64)), "by config.json, got INT4 in groups of 1"),
    "packed of another type": (4, put(f"{O_PROJ}_packed", lambda t: t.long()), "_packed: expected torch.int32"),
    "packed too short": (4, put(f"{O_PROJ}_packed", lambda t: t[:-1]), "_packed: expected torch.int32"),
    "zero points too short": (4, put(f"{O_PROJ}_zero_point", lambda t: t[:-1]), "_zero_point: expected torch.int32"),
    "no zero points": (4, lambda s: s.pop(f"{O_PROJ}_zero_point"), "got INT4 in groups of 32"),
    "no shape": (4, lambda s: s.pop(f"{O_PROJ}_shape"), "_shape: expected it beside the scale"),
    "no numbers": (4, lambda s: s.pop(f"{O_PROJ}_packed"), "got both or none"),
    "both forms": (4, lambda s: s.update({O_PROJ: torch.zeros(64, 64, dtype=torch.int8)}), "got both or none"),
    "no scale": (8, lambda s: s.pop(f"{O_PROJ}_scale"), "expected floating-point weights"),
    "an order of columns": (4, lambda s: s.update({f"{O_PROJ}_g_idx": torch.zeros(64)}), "unexpected tensor"),
    "a norm": (8, lambda s: s.update({"model.norm.weight_scale": torch.ones(64, 1)}), "expected plain weights"),
}


@pytest.mark.parametrize("case", list(SHAPES))
def test_tensors_that_do_not_fit_are_refused_by_their_headers(case, whole, tmp_path, monkeypatch):
    bits, change, message = SHAPES[case]
    folder = changed(whole[bits], tmp_path / "m", change)
    no_allocation(monkeypatch)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5])
def test_scales_that_are_no_scales_are_refused_before_the_weights_are_read(bits, value, whole, tmp_path, monkeypatch):
    def spoil(scale):
        scale = scale.clone()
        scale[3, 0] = value
        return scale

    folder = changed(whole[bits], tmp_path / "m", put(f"{O_PROJ}_scale", spoil))
    read = folders.read_maps
    seen: list[str] = []
    monkeypatch.setattr(folders, "read_maps", lambda matrix, *rest: (seen.append(matrix.name), read(matrix, *rest))[1])
    with pytest.raises(CheckpointError, match="_scale: expected finite numbers from 0"):
        load_model(folder)
    assert seen[-1] == O_PROJ


def test_a_shape_that_contradicts_the_numbers_is_refused(whole, tmp_path):
    folder = changed(whole[4], tmp_path / "m", put(f"{O_PROJ}_shape", lambda t: t * 2))
    with pytest.raises(CheckpointError, match=r"_shape: expected \[64, 64\]"):
        load_model(folder)


def weights(key: str, value):
    def change(raw):
        raw["config_groups"]["group_0"]["weights"][key] = value
        return raw

    return change


def inputs(key: str, value):
    def change(raw):
        raw["config_groups"]["group_0"]["input_activations"][key] = value
        return raw

    return change


CONFIGS = {
    "no mapping": (8, lambda raw: [1], "expected a mapping"),
    "another method": (8, lambda raw: raw | {"quant_method": "gptq"}, "quant_method: expected 'compressed-tensors'"),
    "no method": (8, lambda raw: {}, "quant_method"),
    "a huge method": (8, lambda raw: raw | {"quant_method": ["x"] * 1000}, "quant_method"),
    "another format": (8, lambda raw: raw | {"format": "float-quantized"}, "format: expected one of"),
    "a frozen status": (8, lambda raw: raw | {"quantization_status": "frozen"}, "quantization_status"),
    "a sparse one": (8, lambda raw: raw | {"sparsity_config": {"format": "x"}}, "sparsity_config: expected none"),
    "a cache scheme": (8, lambda raw: raw | {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme: expected none"),
    "no groups": (8, lambda raw: raw | {"config_groups": {}}, "config_groups: expected 1 to"),
    "many groups": (8, lambda raw: raw | {"config_groups": {str(n): {} for n in range(99)}}, "config_groups"),
    "a preset": (8, lambda raw: raw | {"config_groups": {"W8A8": ["Linear"]}}, "weights: expected a mapping"),
    "3 bits": (4, weights("num_bits", 3), "num_bits: expected one of"),
    "bits of truth": (8, weights("num_bits", True), "num_bits: expected one of"),
    "floats": (8, weights("type", "float"), "type: expected one of"),
    "a tensor's scale": (8, weights("strategy", "tensor"), "strategy: expected one of"),
    "uneven 8 bits": (8, weights("symmetric", False), "symmetric: expected one of"),
    "groups of 48": (4, weights("group_size", 48), "group_size: expected one of"),
    "groups of 0": (4, weights("group_size", 0), "group_size: expected one of"),
    "groups below 0": (4, weights("group_size", -1), "group_size: expected one of"),
    "no group": (4, weights("group_size", None), "group_size: expected one of"),
    "scales of rows beforehand": (8, inputs("dynamic", False), "dynamic: expected one of"),
    "rows of 4 bits": (8, inputs("num_bits", 4), "num_bits: expected one of"),
}


@pytest.mark.parametrize("case", list(CONFIGS))
def test_a_config_that_is_not_read_exactly_is_refused_before_anything_is_read(case, whole, tmp_path, monkeypatch):
    bits, change, message = CONFIGS[case]
    folder = changed(whole[bits], tmp_path / "m", config=change)
    no_allocation(monkeypatch)
    with pytest.raises(ConfigError, match=message):
        load_model(folder)


def test_quantized_tensors_that_the_config_does_not_announce_are_refused(whole, tmp_path, monkeypatch):
    no_allocation(monkeypatch)
    with pytest.raises(CheckpointError, match="unexpected tensor"):
        load_model(changed(whole[8], tmp_path / "m", config=lambda raw: None))
    raw = json.loads((whole[4] / "config.json").read_text())["quantization_config"]
    with pytest.raises(CheckpointError, match="expected INT4 in groups of 32 by config.json, got INT8"):
        load_model(changed(whole[8], tmp_path / "n", config=lambda _: raw))
