"""Rotary frequencies and the factor on cosine and sine equal transformers' to the bit, below and above the length of
pre-training; and what depends on a document's length doesn't depend on its company."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fledge.batch import Cached, OneDocument, Packed, Tokens, one_document, padded
from fledge.model.families.rotary import read_rope, rope_json
from fledge.model.folder import load_model
from fledge.model.transformer import new_cache
from fledge.nn.config import Rope
from fledge.nn.rope import frequencies
from tests.parity.decoder_cases import CASES, LINEAR, LLAMA3, SIZES
from tests.parity.reference import limit, some_ids

CHANNELS = 64
SHORT, LONG = [1.0 + 0.05 * i for i in range(32)], [1.0 + 1.7 * i for i in range(32)]
PARTS = {"short_factor": SHORT, "long_factor": LONG}
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "llama-3.1": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn-own": {
        "rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "beta_fast": 16, "beta_slow": 2,
        "mscale": 0.707, "mscale_all_dim": 0.5, "truncate": False,
    },
    "yarn-attention": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.25},
    "longrope": {"rope_type": "longrope", **PARTS, "original_max_position_embeddings": 4096},
    "longrope-factor": {"rope_type": "longrope", **PARTS, "original_max_position_embeddings": 4096, "factor": 16.0},
    "longrope-attention": {
        "rope_type": "longrope", **PARTS, "original_max_position_embeddings": 4096, "attention_factor": 1.5,
    },
}  # fmt: skip


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("length", [5, 4096, 4097, 60000])
@pytest.mark.parametrize("name", list(SCALINGS))
def test_frequencies_and_factor_equal_those_of_transformers_to_the_bit(name, length, theta):
    context = 32768
    parameters = {**SCALINGS[name], "rope_theta": theta}
    config = transformers.LlamaConfig(
        hidden_size=4 * CHANNELS, num_attention_heads=4, max_position_embeddings=context, rope_parameters=parameters
    )
    expected, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"), seq_len=length)
    rope = read_rope({"rope_parameters": SCALINGS[name] | {"rope_theta": theta}}, CHANNELS, context)
    got, got_factor = frequencies(rope, CHANNELS, length)
    assert torch.equal(got, expected) and got_factor == pytest.approx(factor, abs=0, rel=1e-15)
    assert (
        not torch.equal(got, frequencies(Rope(theta), CHANNELS, length)[0]) or length <= context and name == "dynamic"
    )


@pytest.mark.parametrize("name", list(SCALINGS))
def test_a_scaling_that_was_written_is_read_back_in_either_spelling(name):
    rope = read_rope({"rope_parameters": SCALINGS[name] | {"rope_theta": 1000.0}}, CHANNELS, 32768)
    written = rope_json(rope, CHANNELS)
    assert read_rope({"rope_parameters": written["rope_parameters"]}, CHANNELS, 32768) == rope
    old = {key: value for key, value in written.items() if key != "rope_parameters"}
    assert read_rope(old, CHANNELS, 32768) == rope


def model_of(parameters: dict, context: int, tmp_path, config=transformers.LlamaConfig, **more):
    sizes = {**SIZES, "max_position_embeddings": context, "rope_parameters": parameters, **more}
    model = replace(CASES["llama"], config=config, sizes=sizes).model()
    model.save_pretrained(tmp_path)
    return model, load_model(tmp_path)


@pytest.mark.parametrize("length", [9, 16, 17, 40, 60])
@pytest.mark.parametrize("kind", ["dynamic", "linear", "llama3", "longrope"])
@torch.no_grad()
def test_logits_below_and_above_the_original_length_are_those_of_transformers(kind, length, tmp_path):
    if kind == "longrope":
        parts = {"short_factor": SHORT[:6], "long_factor": LONG[:6]}
        parameters = {"rope_type": kind, "rope_theta": 1e4, **parts, "original_max_position_embeddings": 16}
        model, mine = model_of(parameters, 64, tmp_path, transformers.Phi3Config, original_max_position_embeddings=16)
    else:
        parameters = LLAMA3 if kind == "llama3" else {**LINEAR, "rope_type": kind}
        model, mine = model_of(parameters, 64 if kind == "llama3" else 16, tmp_path)
    assert mine.config.context_tokens == 64
    ids = some_ids(2, length)
    expected, got = model(ids).logits, mine(one_document(ids), OneDocument())
    assert (expected - got).abs().max() <= limit(expected)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@torch.no_grad()
def test_a_short_document_beside_a_long_one_keeps_its_own_frequencies(kind, tmp_path):
    """Padded and packed: each row is what transformers says of it alone."""
    parts = {"short_factor": SHORT[:6], "long_factor": LONG[:6], "original_max_position_embeddings": 16}
    parameters = {**LINEAR, "rope_type": kind} if kind == "dynamic" else {"rope_type": kind, "rope_theta": 1e4, **parts}
    model, mine = model_of(parameters, 16 if kind == "dynamic" else 64, tmp_path)
    ids, lengths = some_ids(3, 40), (40, 9, 21)
    rows = [ids[b, :n] for b, n in enumerate(lengths)]
    tokens, layout = padded([row.tolist() for row in rows])
    beside = [one[:n] for one, n in zip(mine(tokens, layout), lengths, strict=True)]
    bounds = (0, 40, 49, 70)
    pos = torch.cat([torch.arange(n) for n in lengths])[None]
    doc = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    packed = mine(Tokens(torch.cat(rows)[None], pos, doc), Packed(bounds, 40))[0].tensor_split(bounds[1:-1])
    for row, one, other in zip(rows, beside, packed, strict=True):
        expected = model(row[None]).logits[0]
        assert (expected - one).abs().max() <= limit(expected) and (expected - other).abs().max() <= limit(expected)
    long = model(ids[1:2]).logits[0, :9]
    assert (long - beside[1]).abs().max() > limit(long)  # the control: with the long row's frequencies it is another


@pytest.mark.parametrize("capacity", [16, 40])
@torch.no_grad()
def test_a_cached_document_keeps_its_frequencies_whatever_it_and_its_company_grow_to(capacity, tmp_path):
    """They go by the cache's length: keys once turned stay, and a long neighbour changes no short document's bits."""
    model, mine = model_of({**LINEAR, "rope_type": "dynamic"}, 16, tmp_path)
    ids = some_ids(2, capacity)
    whole = mine(one_document(ids), OneDocument())

    def decoded(rows: tuple[int, ...]) -> torch.Tensor:
        cache, steps = new_cache(mine, 2, capacity), []
        tables = tuple(cache.whole_table(row) for row in rows)
        for p in range(capacity):
            pos = torch.full((len(rows), 1), p)
            tokens = Tokens(ids[list(rows), p : p + 1], pos, torch.zeros_like(pos))
            steps.append(mine(tokens, Cached(tables, (p,) * len(rows), (1,) * len(rows), rows), cache))
        return torch.cat(steps, 1)

    both = decoded((0, 1))
    assert (both - whole).abs().max() <= 2 * limit(whole)
    assert torch.allclose(decoded((0,)), both[:1], atol=1e-6)
    short = mine(one_document(ids[:, :9]), OneDocument())
    near = (both[:, :9] - short).abs().max() <= 2 * limit(whole)
    assert bool(near) == (capacity == 16)  # above the original length a short document in a long cache is another


@torch.no_grad()
def test_many_lengths_leave_few_tables(tmp_path):
    _, mine = model_of({**LINEAR, "rope_type": "dynamic"}, 16, tmp_path)
    for length in range(17, 60):
        mine(one_document(some_ids(1, length)), OneDocument())
    assert len(mine._angles) < 20


@torch.no_grad()
def test_longrope_across_its_original_length_is_what_transformers_generates_with_a_cache_for_either_side(tmp_path):
    """transformers computes all keys anew where a document crosses the length. Here a cache has one set of factors: one
    of at most the original length has the short ones, a longer one the long ones, from the first token on."""
    parts = {"short_factor": SHORT[:6], "long_factor": LONG[:6]}
    parameters = {"rope_type": "longrope", "rope_theta": 1e4, **parts, "original_max_position_embeddings": 16}
    model, mine = model_of(parameters, 64, tmp_path, transformers.Phi3Config, original_max_position_embeddings=16)
    prompt, original = some_ids(1, 9), 16
    output = model.generate(
        prompt, max_new_tokens=20, do_sample=False, eos_token_id=None, output_logits=True, return_dict_in_generate=True
    )
    ids, steps = output.sequences, torch.stack(output.logits, 1)[0]
    expected = dict(enumerate(steps, start=prompt.shape[1]))  # tokens of the document -> logits of the next one

    def decoded(capacity: int, until: int) -> dict[int, torch.Tensor]:
        cache, logits = new_cache(mine, 1, capacity), {}
        for p in range(until):
            pos = torch.full((1, 1), p)
            tokens = Tokens(ids[:, p : p + 1], pos, torch.zeros_like(pos))
            logits[p + 1] = mine(tokens, Cached((cache.whole_table(0),), (p,), (1,), (0,)), cache)[0, 0]
        return logits

    short, long = decoded(original, original), decoded(40, ids.shape[1])
    for n, one in expected.items():
        whole = mine(one_document(ids[:, :n]), OneDocument())[0, -1]
        assert (whole - one).abs().max() <= limit(one)
        near = [(cached[n] - one).abs().max() <= limit(one) for cached in (short, long) if n in cached]
        assert [bool(equal) for equal in near] == ([True, False] if n <= original else [True]), n
