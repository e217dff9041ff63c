"""Equal bits whatever happens around a request, or a refusal."""

from __future__ import annotations

import random

import pytest
import torch

from fledge.compress.quantize import quantize, uniform
from fledge.engine.config import EngineConfig
from fledge.engine.load import load_engine
from fledge.engine.request import Request, Sampling
from fledge.errors import ConfigError
from fledge.model.folder import save_model
from fledge.model.quantization import INT8, int4
from fledge.text.tokenizer import byte_level
from tests.compress.tiny import tiny
from tests.evals.tiny import CONTEXT, save_tiny

MIXTURES = {"mixture": None, "mixture in int8": INT8, "mixture in int4": int4(32)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


def save_mixture(folder, scheme):
    model = tiny("mixtral", kv_heads=2, experts=5, experts_per_token=2, context_tokens=CONTEXT)
    if scheme is not None:
        quantize(model, uniform(model, scheme))
    save_model(model, folder, byte_level())
    return folder


def requests(engine):
    chance = random.Random(1)
    n_tokens = engine.vocab_size
    return [
        Request(
            f"{n}", tuple(chance.randrange(n_tokens) for _ in range(chance.randrange(1, 26))),
            Sampling(20, temperature=n % 3 / 2, seed=n, logprobs=3, ignore_eos=True), prompt_logprobs=n % 4 == 0,
        )
        for n in range(10)
    ]  # fmt: skip


def said(folder, **settings):
    engine = load_engine(str(folder), EngineConfig(deterministic=True, **settings))
    done = engine.complete(requests(engine))
    again = engine.complete(requests(engine))  # after whatever the cache keeps
    assert again == done
    return done


@pytest.mark.parametrize("name", ["llama", *MIXTURES])
def test_tokens_and_log_probabilities_have_the_same_bits(name, folder, tmp_path):
    """Completions hold every log-probability as a float: == is equality of bits."""
    folder = save_mixture(tmp_path, MIXTURES[name]) if name in MIXTURES else folder
    alone = said(folder, n_slots=1, prefix_cache=False)
    assert said(folder, n_slots=10) == alone
    assert said(folder, n_slots=3, prefill_chunk=7) == alone
    assert said(folder, n_slots=10, cache_tokens=96) == alone  # answers are preempted
    assert said(folder, n_slots=4, draft="lookup") == alone
    before = torch.get_num_threads()
    try:
        assert said(folder, n_slots=4, threads=3) == alone
    finally:
        torch.set_num_threads(before)


def test_the_control_an_int8_cache_has_other_bits(folder):
    assert said(folder, n_slots=2, cache_dtype="int8") != said(folder, n_slots=2)
    assert said(folder, n_slots=2, cache_dtype="int8") == said(folder, n_slots=10, cache_dtype="int8")


def test_without_the_kernels_it_is_refused(folder, monkeypatch):
    monkeypatch.setenv("FLEDGE_NATIVE", "0")
    with pytest.raises(ConfigError, match="deterministic.*the kernels aren't built"):
        load_engine(str(folder), EngineConfig(deterministic=True))
    load_engine(str(folder), EngineConfig())
