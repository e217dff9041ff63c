"""Parameter counts of published sizes, from config alone. Source: transformers' classes on the meta device."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
import transformers

from fledge.model.config import ShapeConfig
from fledge.model.count import count
from fledge.model.families import FAMILIES, preset_family
from fledge.model.folder import config_json
from fledge.model.show import show
from fledge.model.show_config import ShowConfig

PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "tinyllama-1.1b": 1_100_048_384,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
}


@pytest.mark.parametrize(("preset", "expected"), PUBLISHED.items())
def test_a_preset_has_the_published_number_of_parameters(preset, expected):
    began = time.process_time()
    result = show(ShowConfig(preset), json=True)
    assert result["parameters"] == expected
    assert sum(result["by_component"].values()) == expected
    assert time.process_time() - began < 2


ENCODERS = {
    ("bert-base-uncased", "base"): 109_482_240,
    ("bert-base-uncased", "lm"): 109_514_298,
    ("bert-base-uncased", "pretraining"): 110_106_428,
    ("bert-base-cased", "base"): 108_310_272,
    ("bert-base-cased", "lm"): 108_340_804,
    ("bert-base-cased", "pretraining"): 108_932_934,
    ("bert-large-uncased", "base"): 335_141_888,
    ("bert-large-uncased", "lm"): 335_174_458,
    ("bert-large-uncased", "pretraining"): 336_226_108,
    ("roberta-base", "base"): 124_645_632,
    ("roberta-base", "lm"): 124_697_433,
    ("roberta-large", "base"): 355_359_744,
    ("roberta-large", "lm"): 355_412_057,
    ("xlm-roberta-base", "lm"): 278_295_186,
    ("distilbert-base-uncased", "base"): 66_362_880,
    ("distilbert-base-uncased", "lm"): 66_985_530,
    ("distilbert-base-uncased", "sequence"): 66_955_010,
    ("albert-base-v2", "base"): 11_683_584,
    ("albert-xxlarge-v2", "base"): 222_595_584,
    ("deberta-base", "base"): 138_601_728,
    ("deberta-large", "base"): 405_163_008,
    ("deberta-v3-base", "base"): 183_831_552,
    ("deberta-v3-large", "base"): 434_012_160,
    ("longformer-base-4096", "base"): 148_659_456,
    ("bigbird-roberta-base", "base"): 127_468_800,
}


@pytest.mark.parametrize(("preset", "task"), ENCODERS)
def test_an_encoder_has_the_published_number_with_its_class(preset, task):
    """base is BertModel and kin, lm BertForMaskedLM, pretraining BertForPreTraining, sequence two labels."""
    began = time.process_time()
    result = show(ShowConfig(preset, model=ShapeConfig(task=task)), json=True)
    assert result["parameters"] == sum(result["by_component"].values()) == ENCODERS[preset, task]
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "preset",
    [name for family in FAMILIES.values() if family.all_tasks and family.tasks for name in family.presets
     if family.presets[name].init.name == "normal"],
)  # fmt: skip
def test_every_class_of_an_encoder_preset_has_as_many_parameters_in_transformers(preset):
    own = preset_family(preset)
    for task in own.all_tasks:
        config = own.new_config(replace(own.presets[preset], layers=2, task=task.name))
        raw = config_json(config, torch.float32)
        theirs = transformers.AutoConfig.for_model(**raw)
        with torch.device("meta"):
            model = getattr(transformers, task.architecture)(theirs)
        model.tie_weights()
        doubled = 0 if not config.output_bias or not config.lm else bias_twice(model)
        assert count(config).parameters == sum(p.numel() for p in model.parameters()) - doubled, task.architecture


def bias_twice(model) -> int:
    """transformers 5 counts an output's bias twice on the meta device, where nothing is tied."""
    names = [name for name, _ in model.named_parameters() if name.endswith(("decoder.bias", "predictions.bias"))]
    return model.config.vocab_size * (len(names) - 1) if len(names) > 1 else 0


def test_grouped_query_heads_shrink_the_cache_and_not_the_rest():
    whole, grouped = show(ShowConfig("llama-2-13b"), json=True), show(ShowConfig("llama-2-70b"), json=True)
    # 2 (key and value) · layers · key/value heads · channels · 2 bytes
    assert whole["cache_bytes_per_token"] == 2 * 40 * 40 * 128 * 2
    assert grouped["cache_bytes_per_token"] == 2 * 80 * 8 * 128 * 2


def test_flops_per_token_follow_the_published_formula():
    result = show(ShowConfig("gpt2"), json=True)
    weights = 124_439_808 - 1024 * 768  # the position table multiplies nothing
    assert result["training_flops_per_token"] == 6 * weights + 12 * 12 * 768 * 1024
