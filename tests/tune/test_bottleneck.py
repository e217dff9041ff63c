"""Bottleneck adapters: the published counts, the formula, folders, and what is served."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch

from fledge.cli.main import main
from fledge.config import from_dict
from fledge.engine.row import Row
from fledge.engine.runner import Runner, copied
from fledge.errors import CheckpointError, ConfigError, Interrupted
from fledge.model.folder import load_model, save_model
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors
from fledge.recipes.sft import sft
from fledge.text.tokenizer import byte_level
from fledge.tune.attach import adapters, tune
from fledge.tune.config import ShowTunedConfig, TuneConfig
from fledge.tune.folder import load_adapter, save_adapter
from fledge.tune.merge import merge, served
from fledge.tune.show import show
from tests.compress.tiny import ids, logits, tiny
from tests.tune.running import config_for, made_place
from tests.tune.test_counts import GPT3
from tests.tune.theirs import random_adapters

PUBLISHED = [
    # Hu et al. 2021, tables 4 and 9: Houlsby's adapters in GPT-3, 7.1 and 40.1 million
    (GPT3, "houlsby", 1, 7_077_888 + 192), (GPT3, "houlsby", 8, 40_109_568),
    # AdapterHub's summary of roberta-base, reduction factor 16: seq_bn and double_seq_bn
    ({"preset": "roberta-base"}, "pfeiffer", 48, 894_528), ({"preset": "roberta-base"}, "houlsby", 48, 1_789_056),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "method", "size", "wanted"), PUBLISHED)
def test_counts_are_the_published_ones(shape, method, size, wanted):
    asked = {"model": shape, "tune": {"method": method, "bottleneck": size}}
    found = show(from_dict(ShowTunedConfig, asked), json=True)
    tuned, width = found["tuning"], 12288 if shape is GPT3 else 768
    assert tuned["trainable"] == wanted == tuned["modules"] * (2 * size * width + width + size)
    assert tuned["frozen"] == found["parameters"]


@pytest.mark.parametrize("method", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "gemma2", "gptj"])
def test_a_new_one_is_near_the_identity_and_a_folder_brings_the_same_bits_back(name, method, tmp_path):
    config = TuneConfig(method, bottleneck=6, activation="relu")
    save_model(tiny(name), tmp_path / "base")
    model = tune(load_model(tmp_path / "base"), config, 1)
    for _, one in adapters(model):
        assert 0 < one.down.abs().max() <= 0.02 and 0.006 < one.up.std() < 0.012 and not one.up_bias.any()
    if name != "t5":
        plain = logits(load_model(tmp_path / "base"))
        assert 0 < (logits(model) - plain).abs().max() < 0.01 * plain.abs().max()
    model = random_adapters(model)
    save_adapter(model, tmp_path / "adapter", config, tmp_path / "base")
    again = load_adapter(load_model(tmp_path / "base"), tmp_path / "adapter", tmp_path / "base")
    state = again.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    if name != "t5":
        assert torch.equal(logits(again), logits(model))
        assert (logits(model) - plain).abs().max() > 0.01 * plain.abs().max()  # the control


def test_it_stands_behind_what_attention_and_feed_forward_give_and_before_what_is_added():
    """The formula by hand, with hooks on a model without adapters."""
    model = random_adapters(tune(tiny("llama"), TuneConfig("houlsby", bottleneck=6)))
    plain, rows = tiny("llama"), ids(2, 9)
    for place, one in adapters(model):

        def changed(module, given, y, one=one):
            inner = torch.nn.functional.gelu(y @ one.down.t() + one.down_bias)
            return y + inner @ one.up.t() + one.up_bias

        plain.get_submodule(place.path).register_forward_hook(changed)
    assert len(list(adapters(model))) == 4
    wanted = logits(plain, rows)
    assert (logits(model, rows) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (logits(tiny("llama"), rows) - wanted).abs().max() > 0.1  # the control


def test_the_engine_computes_it_beside_the_weights_and_nothing_merges_it(tmp_path):
    config = TuneConfig("houlsby", bottleneck=6)
    model, rows = random_adapters(tune(tiny("llama"), config)), ids(1, 20)[0]
    wanted = logits(model, rows[None])[0]
    runner, found = Runner(served(copied(model)), 1), []
    for start, end in ((0, 12), (12, 19), (19, 20)):
        row = Row((0, 1), start, tuple(rows[start:end].tolist()), True)
        found.append(torch.as_tensor(runner.forward([row])[0]))
    assert (torch.cat(found) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    with pytest.raises(ConfigError, match="expected linear changes of weights, got bottlenecks"):
        merge(model)


def test_peft_has_none_and_says_so(tmp_path):
    save_model(tiny("llama"), tmp_path / "base")
    config = TuneConfig("pfeiffer", bottleneck=6)
    save_adapter(tune(tiny("llama"), config), tmp_path / "adapter", config, tmp_path / "base")
    raw = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert raw["peft_type"] == "BOTTLENECK" and raw["bottleneck_size"] == 6 and raw["target_modules"] == ["down_proj"]
    with pytest.raises(KeyError, match="BOTTLENECK"):
        peft.PeftConfig.from_pretrained(tmp_path / "adapter")


def test_a_run_learns_goes_on_to_the_same_bits_and_answers(tmp_path, capsys):
    place, asked = made_place(tmp_path), {"method": "houlsby", "bottleneck": 8}
    sft(config_for(place, tmp_path / "whole", asked))
    events = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["kind"] == "step"]
    assert losses[-1] < losses[0] - 0.2
    with pytest.raises(Interrupted):
        sft(config_for(place, tmp_path / "stopped", asked, stop_after_steps=7))
    sft(config_for(place, tmp_path / "stopped", asked))
    files = [(tmp_path / run / "model/adapter_model.safetensors").read_bytes() for run in ("whole", "stopped")]
    assert files[0] == files[1]
    assert main(["generate", str(tmp_path / "whole"), "--prompt", "say 2", "--max-tokens", "4"]) == 0
    assert main(["merge", str(place / "base"), str(tmp_path / "whole"), "--out", str(tmp_path / "out")]) == 2
    assert "bottlenecks, which no weight can stand for" in capsys.readouterr().err


def test_places_without_an_output_of_the_layer_are_refused():
    for name, target in (("llama", "embed_tokens"), ("llama", "lm_head"), ("gpt2", "c_attn"), ("gptj", "q_proj")):
        with pytest.raises(ConfigError, match="expected maps that give what a layer adds"):
            tune(tiny(name), TuneConfig("houlsby", targets=(target,)))
    with pytest.raises(ConfigError, match="tune.bottleneck: expected 1 to"):
        TuneConfig("houlsby", bottleneck=0)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder, config = tmp_path_factory.mktemp("hostile"), TuneConfig("pfeiffer", bottleneck=6)
    save_model(tiny("llama"), folder / "base", byte_level())
    save_adapter(tune(load_model(folder / "base"), config), folder / "adapter", config, folder / "base")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bottleneck_size": 0}, "bottleneck_size: expected 1 to"),
        ({"bottleneck_size": 7}, "it is of another base or another config"),
        ({"activation": "swish"}, "activation: expected gelu, relu or silu"),
        ({"activation": ["gelu"]}, "activation: expected gelu"),
        ({"r": 4}, "'r'"),
        ({"peft_type": "LORA", "bottleneck_size": None, "activation": None}, "expected LoRA by .*, got bottleneck"),
    ],
)
def test_folders_of_strangers_that_do_not_fit_are_refused(good, tmp_path, change, message):
    shutil.copytree(good / "adapter", tmp_path / "adapter")
    load_adapter(load_model(good / "base"), tmp_path / "adapter")  # the control
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((ConfigError, CheckpointError), match=message):
        load_adapter(load_model(good / "base"), tmp_path / "adapter")


@pytest.mark.parametrize("how", ["missing", "wider", "not finite", "LoRA"])
def test_tensors_of_strangers_that_do_not_fit_are_refused(good, tmp_path, how):
    shutil.copytree(good / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_model.safetensors"
    with SafetensorsFile(path) as file:
        found = {name: file.read(name) for name in file.entries}
    stem = "base_model.model.model.layers.0.mlp.down_proj"
    if how == "missing":
        del found[f"{stem}.bottleneck_up.bias"]
    elif how == "LoRA":
        found[f"{stem}.lora_A.weight"] = torch.zeros(6, 64)
    else:
        found[f"{stem}.bottleneck_up.bias"] = torch.zeros(65) if how == "wider" else torch.full((64,), torch.inf)
    write_safetensors(path, found)
    with pytest.raises(CheckpointError):
        load_adapter(load_model(good / "base"), tmp_path / "adapter")


def test_memory_and_counts_of_every_method_are_told_before_anything_runs(capsys):
    shape = {"width": 64, "layers": 2, "heads": 4, "context_tokens": 64, "vocab_size": 263}
    words = [f"model.{key}={value}" for key, value in shape.items()]
    counts = {
        "houlsby": 33_280,
        "pfeiffer": 16_640,
        "prompt": 1_280,
        "prefix": 5_120,
    }  # by the formulas in docs/tuning.md
    for method, count in counts.items():
        asked = from_dict(ShowTunedConfig, {"model": shape, "tune": {"method": method}, "rows": 2})
        tuned = show(asked, json=True)["tuning"]
        assert tuned["trainable"] == count and tuned["memory"]["gradients"] == 4 * count
        assert tuned["memory"]["weights"] == 4 * (tuned["frozen"] + count)
        assert main(["show", *words, "--tune", method]) == 0
        assert f"tuning     {method}: {count:,} trained beside" in capsys.readouterr().out
    text = {"method": "prompt", "init": "text", "init_text": "no tokenizer is needed to count"}
    assert show(from_dict(ShowTunedConfig, {"model": shape, "tune": text}), json=True)["tuning"]["trainable"] == 1_280
