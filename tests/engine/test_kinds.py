"""The engine continues texts: what is no decoder alone is refused when it is loaded, by name."""

from __future__ import annotations

import pytest

from fledge.engine.runner import Runner
from fledge.errors import ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.init import initialise
from fledge.model.transformer import build

SHAPE = {"width": 16, "layers": 1, "heads": 2, "context_tokens": 16, "vocab_size": 20}


@pytest.mark.parametrize(
    ("name", "says"), [("bert", "bert, an encoder"), ("t5", "t5, which reads a source"), ("gpt2", "")]
)
def test_an_encoder_and_an_encoder_decoder_are_refused(name, says):
    model = initialise(build(family(name).new_config(ShapeConfig(name, **SHAPE)), "cpu"), 1)
    if not says:
        assert Runner(model, 1).vocab_size == 20  # the control
        return
    with pytest.raises(ConfigError, match=says):
        Runner(model, 1)
