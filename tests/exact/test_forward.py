"""Equalities of the forward pass: packed = separate, cached = uncached, kernels = the dense reference; leaks."""

from __future__ import annotations

import itertools

import pytest
import torch

from fledge.batch import Cached, OneDocument, Packed, Tokens, one_document, padded
from fledge.engine.row import Row
from fledge.engine.runner import Runner, copied
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families import family
from fledge.model.init import initialise
from fledge.model.transformer import Transformer, build, new_cache
from fledge.nn.kernels import by_document, dense, fast
from fledge.nn.visibility import Sight, visible

SHAPE = {"width": 32, "layers": 2, "heads": 4, "context_tokens": 64, "vocab_size": 50}


def tiny(name: str, **more) -> Transformer:
    config: ModelConfig = family(name).build(ShapeConfig(name, **{**SHAPE, **more}))
    model = initialise(build(config, "cpu"), 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return model.eval()


@pytest.fixture(params=["gpt2", "llama", "llama-grouped"])
def model(request) -> Transformer:
    return tiny("llama", kv_heads=2) if request.param == "llama-grouped" else tiny(request.param)


def ids_of(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(rows * 100 + length))


def packed(lengths: list[list[int]], ids: torch.Tensor) -> tuple[Tokens, Packed]:
    pos = torch.tensor([[i for n in row for i in range(n)] for row in lengths])
    doc = torch.tensor([[d for d, n in enumerate(row) for _ in range(n)] for row in lengths])
    bounds = tuple(itertools.accumulate((n for row in lengths for n in row), initial=0))
    return Tokens(ids, pos, doc), Packed(bounds, max(n for row in lengths for n in row))


@torch.no_grad()
def test_packed_documents_give_the_logits_of_separate_rows(model):
    lengths = [[10, 30], [40], [1, 19, 20]]
    ids = ids_of(3, 40)
    got = model(*packed(lengths, ids))
    for b, row in enumerate(lengths):
        for start, n in zip(itertools.accumulate(row, initial=0), row, strict=False):
            alone = model(one_document(ids[b : b + 1, start : start + n]), OneDocument())
            assert (got[b, start : start + n] - alone[0]).abs().max() < 1e-6


@torch.no_grad()
def test_forgetting_the_document_boundary_changes_the_logits(model):
    """The control of packing."""
    ids = ids_of(1, 40)
    apart, together = model(*packed([[10, 30]], ids)), model(one_document(ids), OneDocument())
    assert (apart - together).abs().max() > 1e-3


@torch.no_grad()
def test_a_packed_document_never_sees_its_neighbour(model):
    ids = ids_of(1, 40)
    changed = ids.clone()
    changed[0, :10] = (changed[0, :10] + 1) % 50
    tokens, layout = packed([[10, 30]], ids)
    other, _ = packed([[10, 30]], changed)
    assert torch.equal(model(tokens, layout)[:, 10:], model(other, layout)[:, 10:])


@torch.no_grad()
def test_a_later_token_changes_no_earlier_logit(model):
    ids = ids_of(2, 24)
    changed = ids.clone()
    changed[:, 15:] = (changed[:, 15:] + 1) % 50
    before, after = (model(one_document(i), OneDocument()) for i in (ids, changed))
    assert torch.equal(before[:, :15], after[:, :15])
    assert not torch.equal(before[:, 15:], after[:, 15:])


@torch.no_grad()
def test_padding_changes_nothing_and_an_all_padding_row_is_finite(model):
    ids = ids_of(2, 20)
    tokens, layout = padded([ids[0, :7].tolist(), ids[1].tolist(), []])
    got = model(tokens, layout)
    assert (got[0, :7] - model(one_document(ids[:1, :7]), OneDocument())[0]).abs().max() < 1e-6
    assert bool(torch.isfinite(got).all())


def test_a_query_that_sees_nothing_gives_zeros():
    q, k, v = torch.randn(3, 1, 4, 2, 8).unbind(0)
    seen = torch.zeros(1, 4, 4, dtype=torch.bool)
    seen[0, 1:] = True
    out = dense(q, k, v, seen, Sight(8**-0.5))
    assert torch.equal(out[0, 0], torch.zeros(2, 8))
    assert bool((out[0, 1:] != 0).any())


@torch.no_grad()
@pytest.mark.parametrize("chunks", [(40,), (17, 23), (17, *[1] * 23), (1,) * 40, (5, 1, 30, 4)])
def test_decoding_through_the_cache_gives_the_logits_of_one_pass(model, chunks):
    ids = ids_of(1, 40)
    whole = model(one_document(ids), OneDocument())
    cache, start, got = new_cache(model, 3), 0, []
    for n in chunks:
        pos = torch.arange(start, start + n)[None]
        tokens = Tokens(ids[:, start : start + n], pos, torch.zeros_like(pos))
        got.append(model(tokens, Cached((cache.whole_table(2),), (start,), (n,), (2,)), cache))
        start += n
    assert (torch.cat(got, 1) - whole).abs().max() < 1e-5


def logits_of(runner, rows):
    """Arrays of the compiled kernels, tensors of torch."""
    return [torch.as_tensor(logits) for logits in runner.forward(rows)]


@torch.no_grad()
def test_the_packed_runner_gives_the_logits_of_the_model(model):
    ids = ids_of(2, 30)
    whole = model(one_document(ids), OneDocument())
    runner = Runner(copied(model), n_slots=4)
    there, here = runner.cache.whole_table(3), runner.cache.whole_table(0)
    first = logits_of(
        runner, [Row(there, 0, tuple(ids[0, :12].tolist()), True), Row(here, 0, tuple(ids[1, :5].tolist()))]
    )
    assert (first[0] - whole[0, :12]).abs().max() < 1e-5
    assert (first[1] - whole[1, 4:5]).abs().max() < 1e-5
    for step in range(8):  # two documents of different lengths decode side by side
        rows = [Row(there, 12 + step, (int(ids[0, 12 + step]),)), Row(here, 5 + step, (int(ids[1, 5 + step]),))]
        a, b = logits_of(runner, rows)
        assert (a - whole[0, 12 + step]).abs().max() < 1e-5
        assert (b - whole[1, 5 + step]).abs().max() < 1e-5


@torch.no_grad()
def test_a_wrong_start_in_the_cache_changes_the_logits(model):
    """The control of decoding."""
    ids = ids_of(1, 12)
    whole = model(one_document(ids), OneDocument())
    runner = Runner(copied(model), n_slots=1)
    table = runner.cache.whole_table(0)
    runner.forward([Row(table, 0, tuple(ids[0, :11].tolist()))])
    wrong = logits_of(runner, [Row(table, 10, (int(ids[0, 11]),))])[0]
    assert (wrong - whole[0, 11]).abs().max() > 1e-4


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_every_kernel_equals_the_dense_one_forward_and_gradient(kv_heads):
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(2, 24, 4, 8, generator=generator, requires_grad=True)
    k, v = (torch.randn(2, 24, kv_heads, 8, generator=generator, requires_grad=True) for _ in range(2))
    tokens, layout = packed([[10, 14], [3, 3, 18]], torch.zeros(2, 24, dtype=torch.int64))
    whole = one_document(tokens.ids)
    sight = Sight(8**-0.5)
    pairs = [
        (lambda: fast(q, k, v, sight), lambda: dense(q, k, v, visible(whole, whole, sight), sight)),
        (
            lambda: by_document(q, k, v, layout, layout, sight, None),
            lambda: dense(q, k, v, visible(tokens, tokens, sight), sight),
        ),
    ]
    for kernel, reference in pairs:
        results = []
        for attend in (kernel, reference):
            for t in (q, k, v):
                t.grad = None
            out = attend()
            (out * torch.arange(out.numel()).view(out.shape).cos()).sum().backward()
            results.append([out, *(t.grad.clone() for t in (q, k, v))])
        for got, expected in zip(*results, strict=True):
            assert (got - expected).abs().max() < 2e-5
