"""PEFT folders both ways: its adapters on its models and ours on ours have the same logits, whoever wrote them."""

from __future__ import annotations

import json
from dataclasses import replace

import peft
import pytest
import torch

from fledge.errors import CheckpointError, ConfigError
from fledge.model.folder import load_model
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors
from fledge.recipes.sft import Tuned
from fledge.tune.attach import adapters, tune
from fledge.tune.changes import changes_of
from fledge.tune.config import TuneConfig
from fledge.tune.folder import load_adapter, save_adapter
from fledge.tune.merge import merged
from tests.parity.cases import first_of_each_family
from tests.parity.reference import limit
from tests.tune.theirs import base, our_logits, ours, ours_with_adapter, random_adapters, their_logits, with_peft

LORA = {"r": 4, "lora_alpha": 6}
THEIRS = {
    "llama": peft.LoraConfig(
        **LORA, target_modules=["q_proj", "v_proj", "down_proj", "embed_tokens", "lm_head"],
        rank_pattern={"q_proj": 3, "layers.1.mlp.down_proj": 2}, alpha_pattern={"v_proj": 9},
    ),
    "llama-wide": peft.LoraConfig(**LORA, target_modules=["embed_tokens", "o_proj"]),
    "gpt2": peft.LoraConfig(**LORA, target_modules=["c_attn", "c_proj", "wte"], fan_in_fan_out=True),
    "t5": peft.LoraConfig(**LORA, target_modules=["q", "v", "wo"]),
    "bert": peft.LoraConfig(**LORA, target_modules=["query", "value", "dense", "word_embeddings"], use_rslora=True),
    "gpt-neox": peft.LoraConfig(**LORA, target_modules=["query_key_value", "dense_h_to_4h", "lm_head"]),
    "gptj": peft.LoraConfig(**LORA, target_modules=r".*\.(q_proj|k_proj|fc_in)"),
    "phi3": peft.LoraConfig(**LORA, target_modules="all-linear"),
    "falcon": peft.LoraConfig(**LORA, target_modules=["query_key_value"]),
    "mixtral": peft.LoraConfig(**LORA, target_modules=["q_proj", "o_proj"]),
    "deberta": peft.LoraConfig(**LORA, target_modules=["in_proj"]),
    "deberta-v3": peft.LoraConfig(**LORA, target_modules=["query_proj", "key_proj"]),
    "deberta-c2p": peft.LoraConfig(**LORA, target_modules=["lm_head.dense", "in_proj"]),
}  # fmt: skip
DORA = {
    "llama": peft.LoraConfig(**LORA, use_dora=True, target_modules=["q_proj", "up_proj"]),
    "gpt2": peft.LoraConfig(**LORA, use_dora=True, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
    "bert": peft.LoraConfig(**LORA, use_dora=True, target_modules=["key", "dense"]),
}
IA3 = {
    "llama": peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "gpt2": peft.IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"],
                           fan_in_fan_out=True),
    "bert": peft.IA3Config(target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]),
}  # fmt: skip
EVERY = [(kind, name, config) for kind, configs in (("lora", THEIRS), ("dora", DORA), ("ia3", IA3))
         for name, config in configs.items()]  # fmt: skip
TIED = "ignore:Model has `tie_word_embeddings=True`:UserWarning"  # PEFT's advice about its own merging
pytestmark = pytest.mark.filterwarnings(TIED)
NAMES = [f"{kind}-{name}" for kind, name, _ in EVERY]


@pytest.mark.parametrize(("kind", "name", "config"), EVERY, ids=NAMES)
def test_their_adapter_has_their_logits_here_beside_the_base_and_in_its_weights(kind, name, config, tmp_path):
    wanted = their_logits(name, with_peft(base(name, tmp_path / "base"), config, tmp_path / "adapter"))
    model = ours_with_adapter(tmp_path)
    assert (our_logits(name, model) - wanted).abs().max() <= limit(wanted)
    assert not any(p.requires_grad for p in model.parameters())
    assert (our_logits(name, merged(model)) - wanted).abs().max() <= 2 * limit(wanted)
    assert (our_logits(name, ours(tmp_path)) - wanted).abs().max() > 100 * limit(wanted)  # the control: the base alone


@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_patterns_of_a_file_mean_their_names_alone(name, tmp_path):
    """`q` and `layers.0` are ours, and mean nothing in PEFT."""
    targets = {"bert": ["query", "value"], "gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}[name]
    patterns = {"q": 40, "v": 17} | ({} if name == "llama" else {".*layers.0.*": 40})  # LLaMA's have it there too
    config = peft.LoraConfig(**LORA, target_modules=targets, alpha_pattern=patterns, fan_in_fan_out=name == "gpt2")
    wanted = their_logits(name, with_peft(base(name, tmp_path / "base"), config, tmp_path / "adapter"))
    assert (our_logits(name, ours_with_adapter(tmp_path)) - wanted).abs().max() <= limit(wanted)


WHOLE = {
    "llama": (["q_proj"], ["embed_tokens.weight"]),
    "llama-wide": (["q_proj", "lm_head"], ["lm_head.base_layer.weight"]),
    "phi": (["q_proj"], ["embed_tokens.weight", "lm_head.weight", "lm_head.bias"]),
    "gptj": (["lm_head"], ["lm_head.base_layer.weight", "lm_head.base_layer.bias"]),
    "gpt-neox": (["query_key_value"], ["embed_in.weight", "lm_head.weight"]),
    "t5": (["q"], ["shared.weight", "lm_head.weight"]),
    "bert": (["query"], ["word_embeddings.weight", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"]),
}


@pytest.mark.parametrize("name", WHOLE)
def test_embeddings_that_peft_saved_whole_are_the_base_s_or_refused(name, tmp_path):
    targets, copies = WHOLE[name]
    config = peft.LoraConfig(**LORA, target_modules=targets)
    made = random_adapters(peft.get_peft_model(base(name, tmp_path / "base"), config))
    made.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    wanted = their_logits(name, made)
    assert (our_logits(name, ours_with_adapter(tmp_path)) - wanted).abs().max() <= limit(wanted)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    with SafetensorsFile(path) as file:
        tensors = {key: file.read(key) for key in file.entries}
    for copy in copies:
        (key,) = (key for key in tensors if key.endswith(copy))
        other = tensors[key].clone()
        other[0] += 1
        write_safetensors(path, tensors | {key: other})
        with pytest.raises(CheckpointError, match=f"{copy}: expected the base's own .*, got another"):
            ours_with_adapter(tmp_path)


def test_an_adapter_for_one_base_with_many_may_hold_the_bases_embeddings_too(tmp_path):
    made = random_adapters(peft.get_peft_model(base("llama", tmp_path / "base"), peft.LoraConfig(**LORA)))
    for whole in (False, True):
        made.save_pretrained(tmp_path / str(whole), save_embedding_layers=whole)
    plain, same = (changes_of(tmp_path / str(whole), tmp_path / "base").maps for whole in (False, True))
    assert [one.path for one in plain] == [one.path for one in same]
    assert all(torch.equal(a.up, b.up) and torch.equal(a.down, b.down) for a, b in zip(plain, same, strict=True))


@pytest.mark.parametrize("target", ["lm_head", "embed_out", "output"])
def test_gpt_neox_s_output_is_called_by_its_name_of_today_and_of_its_files(target, tmp_path):
    """transformers 5 calls the module lm_head; files keep `embed_out`, as transformers 4 called both."""
    reference, config = base("gpt-neox", tmp_path / "base"), TuneConfig("lora", 4, 6, targets=(target,))
    model = random_adapters(tune(ours(tmp_path), config))
    save_adapter(model, tmp_path / "adapter", config, tmp_path / "base")
    wanted = our_logits("gpt-neox", model)
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter").eval()
    assert (their_logits("gpt-neox", theirs) - wanted).abs().max() <= limit(wanted)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    with SafetensorsFile(path) as file:
        tensors = {key.replace("lm_head", "embed_out"): file.read(key) for key in file.entries}
    for older in (False, True):
        assert (our_logits("gpt-neox", ours_with_adapter(tmp_path)) - wanted).abs().max() <= limit(wanted)
        if not older:
            write_safetensors(path, tensors)


OURS = {
    "llama": TuneConfig("lora", 4, 6, targets=("q_proj", "down", "embed_tokens", "lm_head"), rank_pattern={"down": 2},
                        alpha_pattern={"q_proj": 5.5}),
    "llama-wide": TuneConfig("lora", 4, targets=("embed_tokens", "lm_head"), rslora=True),
    "gpt2": TuneConfig("lora", 4, 6, targets=("q", "v", "c_proj", "wte")),
    "gpt-neox": TuneConfig("lora", 4, 6, targets=("k", "q"), dora=True),
    "bert": TuneConfig("lora", 4, 6, targets=("query", "dense")),
    "gptj": TuneConfig("lora", 3, 5, targets=("q", "k", "out"), rslora=True),
    "t5": TuneConfig("lora", targets=("q", "k", "down")),
    "phi3": TuneConfig("ia3", targets=("k", "gate", "down")),
    "falcon": TuneConfig("ia3"),
    "camembert": TuneConfig("ia3", targets=("all-linear",)),
    "deberta-c2p": TuneConfig("lora", 4, 6, targets=("transform.dense", "in_proj")),
}  # fmt: skip


@pytest.mark.parametrize("name", OURS)
def test_our_adapter_has_our_logits_in_peft_and_comes_back_the_same(name, tmp_path):
    """Maps that are one module in transformers too: GPT-2's q and v are two adapters here, and one in the file."""
    reference = base(name, tmp_path / "base")
    model = random_adapters(tune(ours(tmp_path), OURS[name]))
    save_adapter(model, tmp_path / "adapter", OURS[name], tmp_path / "base")
    wanted = our_logits(name, model)
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter").eval()
    assert (their_logits(name, theirs) - wanted).abs().max() <= limit(wanted)
    assert (our_logits(name, ours_with_adapter(tmp_path)) - wanted).abs().max() <= limit(wanted)
    with theirs.disable_adapter():
        assert (their_logits(name, theirs) - wanted).abs().max() > 100 * limit(wanted)  # the control


MIXTURES = ("mixtral", "qwen3-moe", "olmoe")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in first_of_each_family() if name not in MIXTURES])
def test_every_family_has_the_logits_of_an_adapter_on_all_of_its_linear_maps_both_ways(name, tmp_path):
    reference = base(name, tmp_path / "base")
    in_out = any(type(part).__name__ == "Conv1D" for part in reference.modules())
    asked = peft.LoraConfig(**LORA, target_modules="all-linear", fan_in_fan_out=in_out)
    wanted = their_logits(name, with_peft(reference, asked, tmp_path / "adapter"))
    assert (our_logits(name, ours_with_adapter(tmp_path)) - wanted).abs().max() <= limit(wanted)
    config = TuneConfig("lora", 3, 5, targets=("all-linear",))
    model = random_adapters(tune(ours(tmp_path), config))
    save_adapter(model, tmp_path / "own", config, tmp_path / "base")
    wanted = our_logits(name, model)
    theirs = peft.PeftModel.from_pretrained(base(name, tmp_path / "base"), tmp_path / "own").eval()
    assert (their_logits(name, theirs) - wanted).abs().max() <= limit(wanted)


def test_experts_which_are_no_modules_in_transformers_are_refused_by_name(tmp_path):
    asked = peft.LoraConfig(**LORA, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj"])
    with_peft(base("mixtral", tmp_path / "base"), asked, tmp_path / "adapter")
    with pytest.raises(ConfigError, match="'target_parameters'"):
        ours_with_adapter(tmp_path)
    with pytest.raises(ConfigError, match="means none"):
        tune(ours(tmp_path), TuneConfig("lora", targets=("w1",)))
    tune(ours(tmp_path), TuneConfig("lora", targets=("q_proj", "v")))  # the control


@pytest.mark.filterwarnings("ignore:The following .* keys did not match any targeted module")  # said of weights
@pytest.mark.parametrize(
    "more",
    [{"dropout": 0.1}, {"rank_pattern": {"gate": 2}}, {"rank_pattern": {"q": 2}}, {"alpha_pattern": {"gate": 9.0}}],
)
@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_a_router_s_update_has_its_own_numbers_in_peft(name, more, tmp_path):
    """transformers 5 has no linear module there: PEFT finds rank and alpha by the weight's name, and no dropout."""
    reference, config = base(name, tmp_path / "base"), TuneConfig("lora", 3, 5, targets=("gate", "q"), **more)
    model = random_adapters(tune(ours(tmp_path), config))
    save_adapter(model, tmp_path / "adapter", config, tmp_path / "base")
    wanted = our_logits(name, model)
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter").eval()
    assert (their_logits(name, theirs) - wanted).abs().max() <= limit(wanted)
    assert (our_logits(name, ours_with_adapter(tmp_path)) - wanted).abs().max() <= limit(wanted)


@pytest.mark.parametrize("config", [TuneConfig("lora", dora=True, targets=("all-linear",)),
                                    TuneConfig("ia3", targets=("all-linear",))], ids=["dora", "ia3"])  # fmt: skip
def test_what_peft_has_none_of_for_a_router_is_refused_before_it_is_trained(config, tmp_path):
    base("mixtral", tmp_path / "base")
    with pytest.raises(ConfigError, match=r"layers.0.block_sparse_moe.gate, which chooses experts .*exclude=\[gate\]"):
        tune(ours(tmp_path), config)
    tune(ours(tmp_path), replace(config, exclude=("gate",)))  # the control


def test_all_linear_means_the_modules_that_it_means_in_peft(tmp_path):
    for name in ("llama", "gpt2", "bert"):
        theirs = peft.get_peft_model(
            base(name, tmp_path / name), peft.LoraConfig(target_modules="all-linear", fan_in_fan_out=name == "gpt2")
        )
        wanted = {n.removeprefix("base_model.model.") for n, m in theirs.named_modules() if hasattr(m, "lora_A")}
        model = tune(load_model(tmp_path / name), TuneConfig("lora", targets=("all-linear",)))
        assert {place.site.name for place, _ in adapters(model)} == wanted and len(wanted) > 10


def test_an_output_that_is_no_module_in_the_class_of_the_base_is_refused_before_it_is_trained(tmp_path):
    """DeBERTa with `legacy` false, whose output is the embedding itself."""
    base("deberta-c2p", tmp_path / "base")
    config = TuneConfig("lora", targets=("output",))
    with pytest.raises(ConfigError, match="with legacy false is none in transformers"):
        Tuned(config, tmp_path / "base", 0, ()).begin(tmp_path / "base")
    base("deberta", tmp_path / "other")  # the control
    Tuned(config, tmp_path / "other", 0, ()).begin(tmp_path / "other")


def test_an_embedding_that_peft_saves_beside_its_adapter_must_be_the_bases(tmp_path):
    config = peft.LoraConfig(**LORA, target_modules=["embed_tokens", "lm_head"])
    made = with_peft(base("llama", tmp_path / "base"), config, tmp_path / "adapter")
    made.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    wanted = their_logits("llama", made)
    assert (our_logits("llama", ours_with_adapter(tmp_path)) - wanted).abs().max() <= limit(wanted)
    other = ours(tmp_path)
    with torch.no_grad():
        other.embedding.weight[0, 0] += 1
    with pytest.raises(CheckpointError, match="expected the base's own weight"):
        load_adapter(other, tmp_path / "adapter")


def test_the_config_is_what_peft_itself_writes_for_the_same_adapter(tmp_path):
    reference = base("llama", tmp_path / "base")
    config = TuneConfig("lora", 4, 6, targets=("q_proj", "v_proj"), dropout=0.1)
    save_adapter(tune(ours(tmp_path), config), tmp_path / "ours", config, tmp_path / "base")
    mine = json.loads((tmp_path / "ours/adapter_config.json").read_text())
    asked = peft.LoraConfig(**LORA, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
    with_peft(reference, asked, tmp_path / "theirs")
    theirs = json.loads((tmp_path / "theirs/adapter_config.json").read_text())
    theirs["base_model_name_or_path"] = mine["base_model_name_or_path"]
    theirs["target_modules"] = sorted(theirs["target_modules"])
    assert {key: theirs[key] for key in mine} == mine
