"""Parameter counts of the decoder presets. Published totals; and every preset's config.json, counted by transformers'
classes on the meta device (tied weights once)."""

from __future__ import annotations

import time

import psutil
import pytest
import torch
import transformers

from fledge.errors import ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.families import DECODERS, FAMILIES, family, over_preset
from fledge.model.folder import config_json, save_model
from fledge.model.show import show
from fledge.model.show_config import ShowConfig
from fledge.model.transformer import build

PUBLISHED = {
    "gpt-1": 116_534_784,
    "gpt-3-125m": 125_226_240,
    "gpt-3-350m": 355_871_744,
    "gpt-3-760m": 760_300_032,
    "gpt-3-1.3b": 1_315_723_264,
    "gpt-3-2.7b": 2_651_553_280,
    "gpt-3-6.7b": 6_658_404_352,
    "gpt-3-13b": 12_853_386_240,
    "gpt-3-175b": 174_604_259_328,
    "palm-8b": 8_632_012_800,
    "palm-62b": 62_495_662_080,
    "palm-540b": 540_356_474_880,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "smollm-135m": 134_515_008,
    "smollm-360m": 361_821_120,
    "smollm-1.7b": 1_711_376_384,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_630_071_296,
    "qwen2-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "phi-3-mini-4k": 3_821_079_552,
    "phi-3-medium-4k": 13_960_238_080,
    "phi-4": 14_659_507_200,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "gpt-neox-20b": 20_554_567_680,
    "bloom-560m": 559_214_592,
    "bloom-1b1": 1_065_314_304,
    "bloom-1b7": 1_722_408_960,
    "bloom-3b": 3_002_557_440,
    "bloom-7b1": 7_069_016_064,
    "bloom-176b": 176_247_271_424,
    "olmo-1b": 1_176_764_416,
    "olmo-7b": 6_888_095_744,
    "stablelm-3b": 2_795_443_200,
    "phi-1.5": 1_418_270_720,
    "phi-2": 2_779_683_840,
    "gpt-j-6b": 6_050_882_784,
    "starcoder2-3b": 3_030_371_328,
    "starcoder2-7b": 7_173_923_840,
    "starcoder2-15b": 15_957_889_024,
    "falcon-7b": 6_921_720_704,
    "falcon-40b": 41_303_293_952,
    "falcon-180b": 178_557_088_768,
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,
    "opt-66b": 65_719_701_504,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "opt-350m": 331_196_416,
    "smollm3-3b": 3_075_098_624,
    "starcoder": 15_517_456_384,
    "command-r-v01": 34_980_831_232,
    "aya-23-8b": 8_028_033_024,
    "glm-4-9b-0414": 9_400_279_040,
    "olmo-3-7b": 7_298_011_136,
    "olmoe-1b-7b": 6_919_161_856,
    "olmo-2-1b": 1_484_916_736,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
}
ALWAYS = (
    "gpt-1", "gpt-3-13b", "gpt-3-175b", "palm-540b", "llama-3.1-405b", "llama-3.2-1b", "smollm-135m", "mistral-7b-v0.1",
    "mixtral-8x7b", "qwen2.5-7b", "qwen3-0.6b", "gemma-2b", "gemma-2-2b", "gemma-3-1b", "phi-4", "pythia-1b",
    "bloom-176b", "olmo-2-7b",
)  # fmt: skip
SAMPLE = [
    pytest.param(name, count, marks=() if name in ALWAYS else pytest.mark.slow) for name, count in PUBLISHED.items()
]
PRESETS = [(module.FAMILY, name) for module in DECODERS for name in module.FAMILY.presets]


@pytest.mark.parametrize(("preset", "expected"), SAMPLE)
def test_a_preset_has_the_published_number_of_parameters(preset, expected):
    began = time.process_time()
    result = show(ShowConfig(preset), json=True)
    assert result["parameters"] == expected
    assert sum(result["by_component"].values()) == expected
    assert time.process_time() - began < 2


def test_every_preset_is_shown_within_two_seconds_and_without_its_weights():
    before = psutil.Process().memory_info().rss
    names = [name for own in FAMILIES.values() for name in own.presets]
    for name in names:
        began = time.process_time()
        assert show(ShowConfig(name), json=True)["parameters"] > 1e6
        assert time.process_time() - began < 2, name
    assert len(names) == len(set(names))
    assert psutil.Process().memory_info().rss - before < 500e6  # PaLM 540B alone has 2 TB


SIZES = {  # every published size of a family, by what its names begin with
    "llama-": ("7b", "13b", "33b", "65b", "2-7b", "2-13b", "2-70b", "3-8b", "3-70b", "3.1-8b", "3.1-70b", "3.1-405b",
               "3.2-1b", "3.2-3b", "3.3-70b"),
    "smollm": ("-135m", "-360m", "-1.7b", "2-135m", "2-360m", "2-1.7b"),
    "flan-t5-": ("small", "base", "large", "xl", "xxl"),
    "t5-v1.1-": ("small", "base", "large", "xl", "xxl"),
    "pythia-": ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b"),
    "gpt-3-": ("125m", "350m", "760m", "1.3b", "2.7b", "6.7b", "13b", "175b"),
    "palm-": ("8b", "62b", "540b"),
    "qwen2.5-": ("0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b"),
    "qwen3-": ("0.6b", "1.7b", "4b", "8b", "14b", "32b", "30b-a3b", "235b-a22b"),
    "gemma-3-": ("270m", "1b", "4b", "12b", "27b"),
    "bloom-": ("560m", "1b1", "1b7", "3b", "7b1", "176b"),
    "olmo-2-": ("1b", "7b", "13b", "32b"),
}  # fmt: skip


@pytest.mark.parametrize("stem", list(SIZES))
def test_every_published_size_is_a_preset(stem):
    presets = {name for own in FAMILIES.values() for name in own.presets}
    assert [size for size in SIZES[stem] if stem + size not in presets] == []


@pytest.mark.slow
@pytest.mark.parametrize(("own", "preset"), [pair for pair in PRESETS if pair[0].name != "palm"])
def test_a_presets_config_json_is_a_model_of_that_size_in_transformers(own, preset):
    config = own.build(own.presets[preset])
    raw = config_json(config, torch.bfloat16)
    theirs = transformers.AutoConfig.for_model(**raw)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(theirs)
    model.tie_weights()
    count = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    assert count == show(ShowConfig(preset), json=True)["parameters"]
    assert own.read(raw).stack.layers == config.stack.layers


def test_palm_is_counted_and_not_saved(tmp_path):
    config = family("palm").build(
        ShapeConfig("palm", width=64, layers=1, heads=2, head_channels=16, context_tokens=32, vocab_size=50)
    )
    assert config.stack.parallel == "one_norm" and config.stack.layers[0].mixer.n_kv_heads == 1
    with pytest.raises(ConfigError, match="no folder format"):
        save_model(build(config, "cpu"), tmp_path)


def test_a_field_that_a_family_cannot_heed_is_refused():
    for preset, field, value in (
        ("llama-7b", "window", 64), ("gpt2", "rope_theta", 1e4), ("bloom-560m", "activation", "silu"),
        ("mistral-7b-v0.1", "bias", True), ("qwen2-0.5b", "bias", False), ("gpt-1", "hidden", 100),
        ("pythia-70m", "kv_heads", 2), ("mixtral-8x7b", "score_channels", 3), ("phi-3-mini-4k", "experts", 3),
    ):  # fmt: skip
        shape = over_preset(ShapeConfig(preset=preset))
        own = family(shape.family)
        own.build(shape)
        with pytest.raises(ConfigError):
            own.build(over_preset(ShapeConfig(preset=preset, **{field: value})))
