"""A quantized folder is whole: it loads without the original, computes the same, and says what it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from fledge.compress.quantize import quantize, quantize_output, uniform
from fledge.engine.row import Row
from fledge.engine.runner import Runner, copied
from fledge.model.folder import config_json, load_model, save_model
from fledge.model.quantization import INT8, int4, read_quantization
from fledge.model.quantized_files import quantized_maps
from fledge.nn.native.library import library
from tests.compress.tiny import ids, logits, tiny

FAMILIES = {
    "llama": {"kv_heads": 2},
    "gpt2": {},
    "gpt_neox": {},
    "phi3": {"kv_heads": 2},
    "falcon": {},
    "gemma2": {"kv_heads": 2, "window": 16, "head_channels": 16},
    "mixtral": {"kv_heads": 2, "experts": 4, "experts_per_token": 2},
}


@pytest.mark.parametrize("scheme", [INT8, int4(32)], ids=str)
@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_saved_model_computes_the_same_bits_and_saves_the_same_bytes(name, scheme, tmp_path):
    model = tiny(name, **FAMILIES[name])
    plain = logits(model)
    outcomes = quantize(model, uniform(model, scheme))
    assert quantized_maps(model) and {one.scheme for one in outcomes} == {scheme}
    expected = logits(model)
    # a router may choose another expert where two are nearly as good
    limit = (0.3 if name == "mixtral" else 0.05) if scheme == INT8 else 0.6
    assert 0 < (expected - plain).norm() / plain.norm() < limit
    save_model(model, tmp_path / "one")
    again = load_model(tmp_path / "one")
    assert torch.equal(logits(again), expected)
    save_model(again, tmp_path / "two")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_layout_is_the_published_one(tmp_path):
    """Written out from the layout's description: 4-bit numbers eight to an int32, the first lowest; zero points packed
    along the outputs; both from 0, standing for -8."""
    model = tiny(layers=1)
    quantize(model, uniform(model, int4(32)))
    one = model.get_submodule("decoder.layers.0.attention.out")
    save_model(model, tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    stem = "model.layers.0.self_attn.o_proj.weight"
    words = stored[f"{stem}_packed"].numpy().view(np.uint32)
    q = np.stack([words >> (4 * i) & 15 for i in range(8)], -1).reshape(64, 64).astype(np.int64) - 8
    words = stored[f"{stem}_zero_point"].numpy().view(np.uint32)
    zero = np.stack([words >> (4 * i) & 15 for i in range(8)], 1).reshape(64, 2).astype(np.int64) - 8
    scale = stored[f"{stem}_scale"].numpy()
    by_hand = (q.reshape(64, 2, 32) - zero[..., None]) * scale[..., None]
    assert np.allclose(by_hand.reshape(64, 64), one.dequantized().numpy(), rtol=1e-6)
    assert stored[f"{stem}_shape"].tolist() == [64, 64] and stem not in stored
    raw = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert raw["quant_method"] == "compressed-tensors" and raw["format"] == "pack-quantized"
    (group,) = raw["config_groups"].values()
    assert group["targets"] == ["Linear"] and group["weights"] == {
        "num_bits": 4, "type": "int", "symmetric": False, "dynamic": False, "strategy": "group", "group_size": 32,
    }  # fmt: skip
    assert "lm_head" in raw["ignore"] and read_quantization({"quantization_config": raw}) == (int4(32),)


def test_maps_of_different_bits_are_targets_by_name(tmp_path):
    model = tiny(layers=1)
    plan = uniform(model, int4(64)) | {"decoder.layers.0.ffn.down": INT8, "decoder.layers.0.attention.qkv": None}
    quantize(model, plan)
    save_model(model, tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert raw["format"] == "mixed-precision"
    targets = {group["format"]: group["targets"] for group in raw["config_groups"].values()}
    assert targets["int-quantized"] == ["model.layers.0.mlp.down_proj"]
    assert "model.layers.0.self_attn.o_proj" in targets["pack-quantized"]
    assert "model.layers.0.self_attn.q_proj" in raw["ignore"]
    assert torch.equal(logits(load_model(tmp_path)), logits(model))


@pytest.mark.parametrize("tie", [True, False])
def test_the_output_matrix_in_8_bits(tie, tmp_path):
    model = tiny("llama", tie=tie)
    plain = logits(model)
    quantize_output(model)
    expected = logits(model)
    assert 0 < (expected - plain).norm() / plain.norm() < 0.02
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert not again.config.tie and torch.equal(logits(again), expected)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("scheme", [INT8, int4(32)], ids=str)
def test_the_engine_gives_the_same_with_joined_maps_alone_and_in_company(scheme):
    model = tiny(kv_heads=2, tie=False)
    quantize(model, uniform(model, scheme))
    quantize_output(model)
    rows = ids(3, 20)
    expected = logits(model, rows)
    runner = Runner(copied(model), n_slots=3)
    packed = [type(one).__name__ for one in runner.model.modules()]
    assert "Joined" not in packed and "Linear" not in packed
    if library() is not None:
        assert runner.compiled is not None and "Int8Linear" not in packed and "Int4Linear" not in packed
    step = runner.n_blocks // 3
    assert runner.block_tokens * step >= 20

    def row(slot: int, start: int, end: int) -> Row:
        blocks = tuple(range(slot * step, slot * step + step))
        return Row(blocks, start, tuple(rows[slot, start:end].tolist()), sequence=slot)

    for slot in range(3):
        runner.forward([row(slot, 0, 10)])
    limit = 2e-3 * float(expected.abs().max())
    for at in range(10, 20):
        together = torch.cat([torch.as_tensor(one) for one in runner.forward([row(n, at, at + 1) for n in range(3)])])
        alone = torch.as_tensor(runner.forward([row(1, at, at + 1)])[0])
        assert torch.allclose(together, expected[:, at], rtol=0, atol=limit)
        assert torch.allclose(alone[0], together[1], rtol=0, atol=1e-4)


def test_a_model_that_is_not_quantized_says_nothing_of_it(tmp_path):
    save_model(tiny(), tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert config_json(tiny().config, torch.float32).get("quantization_config") is None


def test_symmetric_4_bits_of_other_software_are_read(tmp_path):
    """Without zero points the numbers stand for -8..7."""
    model = tiny(layers=1)
    quantize(model, uniform(model, int4(32)))
    for one in quantized_maps(model).values():
        one.zero.fill_(8)
    expected = logits(model)
    save_model(model, tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    without = {name: tensor for name, tensor in stored.items() if not name.endswith("_zero_point")}
    safetensors.torch.save_file(without, tmp_path / "model.safetensors", {"format": "pt"})
    raw = json.loads((tmp_path / "config.json").read_text())
    for group in raw["quantization_config"]["config_groups"].values():
        group["weights"]["symmetric"] = True
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert torch.equal(logits(load_model(tmp_path)), expected)
