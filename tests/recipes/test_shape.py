"""From the words of a YAML file to a model: what can't be built or saved is refused before anything is written."""

from __future__ import annotations

import pytest

from fledge.errors import ConfigError
from fledge.model.config import ShapeConfig
from fledge.recipes.pretrain import resolve_shape
from fledge.text.tokenizer import characters

SIZES = {"width": 16, "layers": 2, "heads": 4, "context_tokens": 32}


def test_a_preset_takes_the_vocabulary_of_the_tokenizer_or_the_one_that_was_set():
    tokenizer = characters("abc")
    assert resolve_shape(ShapeConfig(preset="gpt2"), tokenizer).vocab_size == tokenizer.vocab_size
    padded = resolve_shape(ShapeConfig(preset="gpt2", vocab_size=50304), tokenizer)
    assert padded.vocab_size == 50304 and padded.stack.width == 768


def test_a_vocabulary_below_the_tokenizers_is_refused():
    with pytest.raises(ConfigError, match=r"model.vocab_size: expected at least the tokenizer's \d+, got 2"):
        resolve_shape(ShapeConfig(**SIZES, vocab_size=2), characters("abc"))


@pytest.mark.parametrize("fields", [{"kv_heads": 2}, {"head_channels": 8}])
def test_a_shape_that_its_folder_format_cannot_hold_is_refused_before_training(fields):
    with pytest.raises(ConfigError, match="GPT-2's folder format"):
        resolve_shape(ShapeConfig("gpt2", **SIZES, **fields), characters("abc"))
    assert resolve_shape(ShapeConfig("llama", **SIZES, **fields), characters("abc")).family == "llama"  # the control
