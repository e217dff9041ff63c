"""The engine says what one full pass says in every kind of decoder: windows, experts, ALiBi, parallel blocks, caps."""

from __future__ import annotations

import pytest
import torch

from fledge.batch import OneDocument, one_document
from fledge.engine.config import EngineConfig
from fledge.engine.core import Engine
from fledge.engine.request import Request, Sampling
from fledge.engine.runner import Runner, copied
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.init import initialise
from fledge.model.transformer import build
from fledge.nn.config import RopeScaling
from fledge.text.tokenizer import byte_level

TOKENIZER = byte_level()
PROMPT = tuple(TOKENIZER.encode("The engine and one full pass agree."))
LONG = RopeScaling("longrope", 8.0, 16, short_factors=(1.0,) * 4, long_factors=(1.0, 2.0, 4.0, 8.0))
SHAPES = {
    "mistral": {"window": 7},
    "gemma2": {"window": 7, "head_channels": 8},
    "gemma3": {"window": 7, "window_every": 2, "head_channels": 8},
    "qwen3": {"window": 7},
    "mixtral": {"experts": 4, "experts_per_token": 2},
    "bloom": {},
    "gpt_neox": {},
    "openai_gpt": {},
    "phi3": {"rope_scaling": LONG},
    "olmo2": {},
    "gptj": {},
}


@pytest.mark.parametrize("prefill_chunk", [5, 512])
@pytest.mark.parametrize("name", list(SHAPES))
def test_log_probabilities_are_those_of_one_full_pass(name, prefill_chunk):
    shape = ShapeConfig(
        name, width=32, layers=2, heads=4, context_tokens=128, vocab_size=TOKENIZER.vocab_size, **SHAPES[name]
    )
    model = initialise(build(family(name).build(shape), "cpu"), 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    engine = Engine(Runner(copied(model.eval()), 3), TOKENIZER, EngineConfig(3, prefill_chunk))
    sampling = Sampling(max_tokens=20, ignore_eos=True, logprobs=1, seed=5, temperature=0.8)
    requests = [Request(f"r{n}", PROMPT[: 10 + 12 * n], sampling) for n in range(3)]
    for request, completion in zip(requests, engine.complete(requests), strict=True):
        ids = request.prompt_ids + completion.token_ids
        with torch.no_grad():
            expected = model(one_document(torch.tensor([ids])), OneDocument())[0].log_softmax(-1)
        for place, one in enumerate(completion.logprobs, len(request.prompt_ids) - 1):
            assert one.token_id == ids[place + 1]
            assert one.logprob == pytest.approx(float(expected[place, one.token_id]), abs=2e-4)
