"""What a model keeps between calls must serve training after it has served a validation."""

from __future__ import annotations

import torch

from fledge.batch import OneDocument, one_document
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.init import initialise
from fledge.model.transformer import build


def test_rotary_tables_that_grew_in_a_validation_can_be_trained_with():
    shape = ShapeConfig(width=16, layers=1, heads=2, context_tokens=1024, vocab_size=20)
    model = initialise(build(family("llama").build(shape), "cpu"), 1).train()
    ids = torch.arange(600)[None] % 20
    with torch.inference_mode():
        model(one_document(ids), OneDocument())
    model(one_document(ids), OneDocument()).sum().backward()
    assert model.embedding.weight.grad is not None
