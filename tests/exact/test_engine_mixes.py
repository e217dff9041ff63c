"""Random mixes of requests say what each says alone: in a batch, on scattered blocks, after a prefix hit, after giving
blocks back, in chunks, row by row after an error, with an int8 cache, computed by torch and by the compiled kernels; of
encoder–decoders too, some of whose requests read the same source and some begin alike after another.

Log-probabilities within 1e-4 of the lone run (int8: within a rounding); tokens equal up to a tie: a place where
the scores of the two tokens, noise included, are closer than 2e-4. Ties are counted and printed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from fledge.engine.choice import Choice
from fledge.engine.config import EngineConfig
from fledge.engine.core import Engine
from fledge.engine.noise import gumbel, position_key
from fledge.engine.prefix import PrefixIndex, chain_key, root_key
from fledge.engine.request import Completion, Request, Sampling
from fledge.engine.row import Row, Source
from fledge.engine.runner import Runner, copied
from fledge.engine.sampling import Sampler
from fledge.engine.scheduler import Scheduler
from fledge.engine.source import named
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.init import initialise
from fledge.model.transformer import Transformer, build
from fledge.nn.config import Kernelised
from fledge.nn.native import library
from tests.engine.stub_engine import TOKENIZER

NEAR, TIE = 1e-4, 2e-4
ROUNDED = 5e-3  # what an int8 value on the edge between two may do that torch rounds the other way in other company
FAMILIES = {
    "llama": {},
    "bloom": {},
    "mistral": {"window": 20},
    "gemma2": {"window": 7, "head_channels": 8},
    "hybrid": {},  # LLaMA with linear attention in its second layer
    "t5": {},
    "bart": {},
    "mixtral": {"experts": 4, "experts_per_token": 2},
}
BOTH = ("t5", "bart")
MODELS: dict[str, Transformer] = {}
Seen = tuple[int, float, int]  # ties, largest difference of log-probabilities, tokens compared


def model_of(name: str) -> Transformer:
    if name not in MODELS:
        kind = "llama" if name == "hybrid" else name
        shape = ShapeConfig(
            kind, width=32, layers=2, heads=4, context_tokens=128, vocab_size=TOKENIZER.vocab_size, **FAMILIES[name]
        )
        config = family(kind).build(shape)
        if name == "hybrid":
            first, second = config.stack.layers
            mixer = Kernelised(second.mixer.n_heads, second.mixer.n_kv_heads, second.mixer.head_channels)
            config = replace(config, decoder=replace(config.stack, layers=(first, replace(second, mixer=mixer))))
        model = initialise(build(config, "cpu"), 5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
        MODELS[name] = model.eval()
    return MODELS[name]


def engine_of(name: str, config: EngineConfig) -> Engine:
    runner = Runner(copied(model_of(name)), config.n_slots, 0, config.cache_tokens, config.cache_dtype)
    return Engine(runner, TOKENIZER, config)


def mix(name: str, seed: int) -> list[Request]:
    """A handful of requests of all kinds; about half of them begin alike. Encoder–decoders read one of three
    sources."""
    chance = random.Random(seed)
    common = [chance.randrange(256) for _ in range(70)]
    requests = []
    for number in range(chance.randint(3, 5)):
        n_common, n_own = chance.choice([0, 5, 33, 50]), chance.randint(1, 25)
        prompt = common[:n_common] + [chance.randrange(256) for _ in range(n_own)]
        sampling = Sampling(
            max_tokens=chance.randint(3, 24),
            temperature=chance.choice([0.0, 0.7, 1.0, 1.3]),
            top_k=chance.choice([0, 0, 40]),
            repetition_penalty=chance.choice([1.0, 1.2]),
            frequency_penalty=chance.choice([0.0, 0.3]),
            seed=chance.randrange(1000),
            n=chance.choice([1, 1, 2]),
            ignore_eos=True,
            logprobs=0,
        )
        measured = chance.random() < 0.2
        requests.append(Request(f"r{number}", tuple(prompt), sampling, "", measured, chance.choice([0, 0, 1])))
    if name not in BOTH:
        return requests
    sources = [tuple(chance.choices(range(256), k=n)) for n in (chance.randint(1, 5), 30, chance.randint(40, 128))]
    read = [chance.choice(sources) for _ in requests]
    return [replace(request, source_ids=source) for request, source in zip(requests, read, strict=True)]


def alone(name: str, requests: list[Request], config: EngineConfig) -> list[Completion]:
    engine = engine_of(name, replace(config, n_slots=1, prefix_cache=False))
    return [completion for request in requests for completion in engine.complete([request])]


def together(name: str, requests: list[Request], config: EngineConfig) -> list[Completion]:
    return engine_of(name, config).complete(requests)


def scattered(name: str, requests: list[Request], config: EngineConfig) -> list[Completion]:
    """On blocks anywhere: no table is a run."""
    chance = random.Random(len(requests))
    engine = engine_of(name, config)

    pool = engine.scheduler.pool
    take = pool.take
    pool.place = lambda wanted: chance.choice(np.flatnonzero(pool.free).tolist())  # type: ignore[method-assign]
    pool.take = lambda after, wanted: take(None, wanted)  # type: ignore[method-assign]
    return engine.complete(requests)


def again(name: str, requests: list[Request], config: EngineConfig) -> list[Completion]:
    """A second time on one engine: whatever was full before is found."""
    engine = engine_of(name, config)
    engine.complete(requests)
    before = engine.counters()["prefix_hits_total"]
    done = engine.complete(requests)
    longest = max(len(request.prompt_ids) for request in requests if not request.prompt_logprobs)
    assert longest <= 16 or (engine.counters()["prefix_hits_total"] > before) == engine.runner.shares
    return done


def cramped(name: str, requests: list[Request], config: EngineConfig) -> list[Completion]:
    """Blocks for the largest answer and little more."""
    most = max(len(request.prompt_ids) + request.sampling.max_tokens for request in requests)
    engine = engine_of(name, replace(config, cache_tokens=most + 31))
    done = engine.complete(requests)
    CRAMPED[0] += engine.counters()["preemptions_total"]
    return done


def chunked(name: str, requests: list[Request], config: EngineConfig) -> list[Completion]:
    return engine_of(name, replace(config, prefill_chunk=7)).complete(requests)


def retried(name: str, requests: list[Request], config: EngineConfig) -> list[Completion]:
    """Every pass over more than one row raises when it is done, and its rows are tried alone."""
    engine = engine_of(name, config)
    forward = engine.runner.forward

    def failing(rows: list[Row]) -> Sequence[torch.Tensor | np.ndarray]:
        result = forward(rows)
        if len(rows) > 1:
            raise MemoryError
        return result

    engine.runner.forward = failing  # type: ignore[method-assign]
    return engine.complete(requests)


CRAMPED = [0.0]  # preemptions so far
WAYS: dict[str, Callable[[str, list[Request], EngineConfig], list[Completion]]] = {
    "batch": together, "scattered": scattered, "prefix hit": again, "preempted": cramped, "chunked": chunked,
    "retried": retried,
}  # fmt: skip


def scores(name: str, request: Request, one: Completion, n: int, config: EngineConfig) -> np.ndarray:
    """What the sampler compares for the answer's token n: penalised logits, over the temperature, with noise."""
    runner = Runner(copied(model_of(name)), 1, cache_dtype=config.cache_dtype)
    ids = request.prompt_ids + one.token_ids[:n]
    row = Row(runner.cache.whole_table(0), 0, ids, source=named(request.source_ids))
    logits = np.asarray(runner.forward([row])[0][-1])
    sampler = Sampler(request.sampling, one.index, request.prompt_ids, (), len(logits))
    for token in one.token_ids[:n]:
        sampler.accept(token)
    values = sampler.penalise(logits).astype(np.float64)
    if request.sampling.temperature == 0.0:
        return values
    noise = gumbel(position_key(sampler.key, len(ids)), np.arange(len(values)))
    return values / request.sampling.temperature + noise


def compared(
    name: str, requests: list[Request], expected: list[Completion], got: list[Completion], config: EngineConfig
) -> Seen:
    """Raises AssertionError where an answer differs by more than a tie and a rounding."""
    ties, largest, n_tokens = 0, 0.0, 0
    by_id = {request.id: request for request in requests}
    for one, other in zip(expected, got, strict=True):
        request = by_id[one.request_id]
        assert (one.request_id, one.index) == (other.request_id, other.index)
        pairs = list(zip(one.token_ids, other.token_ids, strict=True))
        until = next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))
        told = [*zip((one.prompt_logprobs or ())[1:], (other.prompt_logprobs or ())[1:], strict=True)]
        told += list(zip(one.logprobs, other.logprobs, strict=True))[:until]
        for a, b in told:
            largest = max(largest, abs(a.logprob - b.logprob))
        assert largest <= near(config), f"{name} {request.id}: log-probabilities {largest} apart"
        n_tokens += len(told)
        if until < len(pairs):
            both = scores(name, request, one, until, config)[list(pairs[until])]
            apart = abs(float(both[0] - both[1]))
            assert apart < max(TIE, 2 * near(config)), f"{name} {request.id}: token {until} is another, {apart} apart"
            ties += 1
    return ties, largest, n_tokens


def near(config: EngineConfig) -> float:
    return NEAR if config.cache_dtype == "float32" else ROUNDED


def check(name: str, seed: int, config: EngineConfig, ways: tuple[str, ...] = tuple(WAYS)) -> dict[str, Seen]:
    requests = mix(name, seed)
    expected = alone(name, requests, config)
    return {way: compared(name, requests, expected, WAYS[way](name, requests, config), config) for way in ways}


SAMPLE = [
    *((name, "torch", "float32") for name in FAMILIES),
    *(
        (name, "compiled", "float32") for name in FAMILIES if name not in ("hybrid", *BOTH)
    ),  # torch computes what kernels don't know
    ("llama", "torch", "int8"),
    ("gemma2", "compiled", "int8"),
]


def computed_by(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels == "torch":
        monkeypatch.setenv("FLEDGE_NATIVE", "0")
    else:
        assert library.build() is not None, "a C++ compiler is needed here"


@pytest.mark.parametrize(("name", "kernels", "cache_dtype"), SAMPLE)
def test_a_mix_says_what_each_of_its_requests_says_alone(name, kernels, cache_dtype, monkeypatch):
    computed_by(kernels, monkeypatch)
    config = EngineConfig(n_slots=4, cache_dtype=cache_dtype)
    assert (engine_of(name, config).runner.compiled is not None) == (kernels == "compiled")
    before = CRAMPED[0]
    seen = check(name, 100 + list(FAMILIES).index(name), config)
    assert name != "llama" or CRAMPED[0] > before
    print({way: f"{ties} ties, {largest:.1e}, {n} tokens" for way, (ties, largest, n) in seen.items()})


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.parametrize("kernels", ["torch", "compiled"])
def test_two_hundred_mixes_say_what_their_requests_say_alone(name, kernels, part, monkeypatch):
    computed_by(kernels, monkeypatch)
    totals, before = {}, CRAMPED[0]
    for seed in range(110 + 4 * part, 114 + 4 * part):
        cache_dtype = "int8" if seed % 2 else "float32"
        for way, (ties, largest, n) in check(name, seed, EngineConfig(n_slots=4, cache_dtype=cache_dtype)).items():
            old = totals.get((cache_dtype, way), (0, 0.0, 0))
            totals[cache_dtype, way] = (old[0] + ties, max(old[1], largest), old[2] + n)
    for (cache_dtype, way), (ties, largest, n) in totals.items():
        print(f"{name} {kernels} {cache_dtype} {way}: {n} tokens, {ties} ties, log p at most {largest:.1e} apart")
    assert name != "llama" or CRAMPED[0] > before


def test_a_block_table_that_is_off_by_one_would_be_noticed(monkeypatch):
    right = Choice.next_row

    def wrong(self: Choice, chunk_tokens: int, block_tokens: int) -> Row:
        row = right(self, chunk_tokens, block_tokens)
        return replace(row, blocks=tuple((block + 1) % 32 for block in row.blocks)) if row.start > 40 else row

    monkeypatch.setattr(Choice, "next_row", wrong)
    with pytest.raises(AssertionError, match="apart|ended"):
        for seed in range(4):
            check("llama", seed, EngineConfig(n_slots=4), ("batch", "chunked"))


def test_a_hash_that_ignores_tokens_would_be_noticed(monkeypatch):
    monkeypatch.setattr("fledge.engine.choice.chain_key", lambda parent, tokens: chain_key(parent, ()))
    monkeypatch.setattr(PrefixIndex, "find", lambda self, content: self.block_of.get(content.key))
    with pytest.raises(AssertionError, match="apart"):
        check("llama", 1, EngineConfig(n_slots=4), ("prefix hit",))


ALIKE = tuple(range(60, 100))  # two blocks and a half


def read_by(name: str, sources: list[tuple[int, ...]]) -> dict[str, Seen]:
    """Requests that differ in their source alone, in a batch and one after another, against each alone."""
    sampling = Sampling(12, temperature=0.0, ignore_eos=True, logprobs=0)
    requests = [Request(f"r{n}", ALIKE, sampling, source_ids=source) for n, source in enumerate(sources)]
    config = EngineConfig(n_slots=2)
    expected = alone(name, requests, config)
    assert len({one.logprobs for one in expected}) == len(set(sources))
    return {way: compared(name, requests, expected, WAYS[way](name, requests, config), config)
            for way in ("batch", "prefix hit")}  # fmt: skip


@pytest.mark.parametrize("name", BOTH)
def test_requests_that_differ_in_their_source_alone_share_no_block(name, monkeypatch):
    sources = [(1, 2, 3, 4), (9, 8, 7), tuple(range(30))]
    read_by(name, sources)
    engine = engine_of(name, EngineConfig(n_slots=1))
    sampling = Sampling(4, ignore_eos=True)
    for n, (source, hits) in enumerate([(sources[0], 0), (sources[1], 0), (sources[0], 1)]):
        engine.complete([Request(f"r{n}", ALIKE, sampling, source_ids=source)])
        assert engine.counters()["prefix_hits_total"] == hits
    # the control: blocks found by their tokens alone are another source's
    monkeypatch.setattr(Scheduler, "root", lambda self, choice: root_key(choice.request.tenant, self.version))
    with pytest.raises(AssertionError, match="apart"):
        read_by(name, sources)


@pytest.mark.parametrize("name", BOTH)
def test_sources_that_go_by_one_name_would_be_noticed(name, monkeypatch):
    monkeypatch.setattr("fledge.engine.scheduler.named", lambda ids, *facts: Source(b"one", ids))
    with pytest.raises(AssertionError, match="apart"):
        read_by(name, [(1, 2, 3, 4), (9, 8, 7)])


@pytest.mark.parametrize("kernels", ["torch", "compiled"])
def test_a_windowed_model_answers_from_fewer_blocks_than_its_document_has(kernels, monkeypatch):
    computed_by(kernels, monkeypatch)
    sampling = Sampling(max_tokens=100, temperature=0.0, ignore_eos=True, logprobs=0)
    requests = [Request(f"r{i}", tuple(range(20 + i)), sampling) for i in range(2)]
    config = EngineConfig(n_slots=2, prefill_chunk=8, cache_tokens=96)
    engine = engine_of("mistral", config)
    assert engine.context_tokens == 128  # the control: of other models 96 tokens of cache hold no such answer
    assert engine_of("llama", config).context_tokens == 96
    got = engine.complete(requests)
    compared("mistral", requests, alone("mistral", requests, EngineConfig()), got, config)
    assert engine.counters()["blocks_used"] == 0


def test_an_int8_cache_moves_log_probabilities_a_little_and_says_what_it_takes():
    prompt = tuple(random.Random(3).choices(range(256), k=100))
    request = Request("r", prompt, Sampling(max_tokens=1, logprobs=0), prompt_logprobs=True)
    told, sizes = {}, {}
    for dtype in ("float32", "int8"):
        engine = engine_of("llama", EngineConfig(n_slots=1, cache_dtype=dtype))
        (done,) = engine.complete([request])
        told[dtype] = np.array([one.logprob for one in done.prompt_logprobs[1:]])
        cache = engine.runner.cache
        kept = [*cache.keys, *cache.values, *cache.key_scales, *cache.value_scales]
        sizes[dtype] = sum(one.numel() * one.itemsize for one in kept if one is not None)
    apart = np.abs(told["float32"] - told["int8"])
    print(f"int8: {apart.mean():.1e} nats a token on average, {apart.max():.1e} at most")
    assert 1e-5 < apart.mean() < 2e-2 and apart.max() < 0.2
    assert sizes["int8"] == sizes["float32"] * (8 + 4) / (8 * 4)  # 8 channels a head, and a scale for them
