"""The engine writes: an encoder alone is refused when it is loaded, by name and with what to use instead."""

from __future__ import annotations

import pytest

from fledge.engine.runner import Runner
from fledge.errors import ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.init import initialise
from fledge.model.transformer import build

SHAPE = {"width": 16, "layers": 1, "heads": 2, "context_tokens": 16, "vocab_size": 20}


@pytest.mark.parametrize(("name", "task"), [("bert", ""), ("t5", "encoder"), ("t5", ""), ("gpt2", "")])
def test_an_encoder_alone_is_refused(name, task):
    model = initialise(build(family(name).new_config(ShapeConfig(name, task=task, **SHAPE)), "cpu"), 1)
    if name == "gpt2" or (name == "t5" and not task):
        assert Runner(model, 1).source_tokens == (16 if name == "t5" else 0)  # the control
        return
    with pytest.raises(ConfigError, match=f"expected a decoder, got {name}, an encoder; fledge fill"):
        Runner(model, 1)
