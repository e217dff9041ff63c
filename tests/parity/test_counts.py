"""Parameter counts of published sizes, from config alone. Source: transformers' classes on the meta device."""

from __future__ import annotations

import time

import pytest

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


def test_grouped_query_heads_shrink_the_cache_and_not_the_rest():
    whole, grouped = show(ShowConfig("llama-2-13b"), json=True), show(ShowConfig("llama-2-70b"), json=True)
    # 2 (key and value) · layers · key/value heads · channels · 2 bytes
    assert whole["cache_bytes_per_token"] == 2 * 40 * 40 * 128 * 2
    assert grouped["cache_bytes_per_token"] == 2 * 80 * 8 * 128 * 2


def test_flops_per_token_follow_the_published_formula():
    result = show(ShowConfig("gpt2"), json=True)
    weights = 124_439_808 - 1024 * 768  # the position table multiplies nothing
    assert result["training_flops_per_token"] == 6 * weights + 12 * 12 * 768 * 1024
