"""Long documents: every plan shows what the pattern shows, and attention over it is the dense one in linear memory."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from fledge.batch import OneDocument, Packed, Tokens, one_document, padded
from fledge.nn.bias import make_bias
from fledge.nn.blockwise import Piece, blockwise
from fledge.nn.config import Alibi, BigBird, Buckets, Disentangled, Fixed, Heads, Longformer, Prefix, Strided
from fledge.nn.disentangled import DistanceBias, DistanceMaps
from fledge.nn.kernels import attend, counted, dense
from fledge.nn.live_bytes import LiveBytes
from fledge.nn.pieces import from_globals, plan, plan_with_globals
from fledge.nn.visibility import Sight, by_place, visible

SIGHTS = {
    "causal": Sight(0.3),
    "both ways": Sight(0.3, causal=False),
    "window": Sight(0.3, window=300),
    "window both ways": Sight(0.3, causal=False, window=600),
    "prefix": Sight(0.3, pattern=Prefix()),
    "longformer": Sight(0.3, causal=False, pattern=Longformer(20)),
    "wide longformer": Sight(0.3, causal=False, pattern=Longformer(700)),
    "bigbird": Sight(0.3, causal=False, pattern=BigBird(64, 2)),
    "fixed bigbird": Sight(0.3, causal=False, pattern=BigBird(64, 2, fixed=True)),
    "short bigbird": Sight(0.3, causal=False, pattern=BigBird(64, 2, full_tokens=1400)),
    "strided": Sight(0.3, pattern=Strided(37)),
    "long strided": Sight(0.3, pattern=Strided(400)),
    "fixed": Sight(0.3, pattern=Fixed(40, 3)),
    "long fixed": Sight(0.3, pattern=Fixed(300, 20)),
}
CPU = torch.device("cpu")
LENGTH, HEADS, CHANNELS = 1100, 2, 4


def marked(length: int, chosen: list[int]) -> Tokens:
    kind = torch.zeros(1, length, dtype=torch.int64)
    kind[0, chosen] = 1
    return replace(one_document(torch.zeros(1, length, dtype=torch.int64)), kind=kind)


def shown(pieces: list[Piece], length: int) -> torch.Tensor:
    """How often each query meets each key: int64 [T, S]."""
    often, pos = torch.zeros(length, length, dtype=torch.int64), torch.arange(length)
    for queries, keys, seen in pieces:
        q_pos, k_pos = pos[queries], pos[keys]
        often[q_pos[:, None], k_pos] += 1 if seen is None else seen.long()
    return often


@pytest.mark.parametrize("length", [1, 2, 65, 256, 257, 1300])
@pytest.mark.parametrize("name", SIGHTS)
def test_a_plan_shows_each_pair_that_the_pattern_shows_once_and_no_other(name, length):
    sight = SIGHTS[name]
    tokens = marked(length, [])
    expected = visible(tokens, tokens, sight)[0].long()
    pieces = plan(length, length, sight, CPU)
    assert torch.equal(shown(pieces, length), expected)
    assert len(pieces) < 2 or not torch.equal(shown(pieces[1:], length), expected)  # the control


@pytest.mark.parametrize("chosen", [[], [0], [5, 1099], list(range(0, 1100, 3))], ids=["no", "first", "ends", "third"])
@pytest.mark.parametrize("name", ["longformer", "wide longformer", "prefix"])
def test_a_plan_with_global_tokens_does_too(name, chosen):
    sight, tokens = SIGHTS[name], marked(LENGTH, chosen)
    pieces = plan_with_globals(LENGTH, torch.tensor(chosen, dtype=torch.int64), sight)
    assert torch.equal(shown(pieces, LENGTH), visible(tokens, tokens, sight)[0].long())
    assert all(len(torch.arange(LENGTH)[at]) for piece in pieces for at in piece[:2])  # an empty piece has no scores
    everything = shown(from_globals(LENGTH, torch.tensor(chosen, dtype=torch.int64)), LENGTH)
    assert torch.equal(everything.bool().all(1).nonzero().squeeze(1), torch.tensor(chosen, dtype=torch.int64))
    assert int(everything.sum()) == len(chosen) * LENGTH


def packed(*lengths: int) -> tuple[Tokens, Packed]:
    pos = torch.tensor([[i for n in lengths for i in range(n)]])
    doc = torch.tensor([[d for d, n in enumerate(lengths) for _ in range(n)]])
    bounds = tuple(itertools.accumulate(lengths, initial=0))
    return Tokens(torch.zeros_like(pos), pos, doc), Packed(bounds, max(lengths))


LAYOUTS = {
    "one": (one_document(torch.zeros(1, LENGTH, dtype=torch.int64)), OneDocument()),
    "padded": padded([[0] * LENGTH, [0] * 600, [0] * 9]),
    "packed": packed(3, 1000, 97),
}
BIASES = {"none": None, "alibi": Alibi(), "buckets": Buckets(8, 200), "disentangled": Disentangled(50)}


def learned_bias(name: str, causal: bool, dtype: torch.dtype = torch.float64):
    """A function that makes the bias, and the tensors that have a gradient through it."""
    generator = torch.Generator().manual_seed(4)
    if name != "disentangled":
        module = make_bias(BIASES[name], HEADS, causal)
        if module is None:
            return lambda: None, []
        module = module.to(dtype)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, generator=generator)
        return lambda: module, list(module.parameters())
    heads = Heads(HEADS, HEADS, CHANNELS)
    maps = DistanceMaps(BIASES[name], 6, heads).to(dtype)
    table = torch.randn(100, 6, dtype=dtype, generator=generator, requires_grad=True)
    for parameter in maps.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return lambda: DistanceBias(BIASES[name], heads, 0.3, table, maps), [table, *maps.parameters()]


def heads_of(tokens: Tokens, kv_heads: int = HEADS, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator, shape = torch.Generator().manual_seed(3), tokens.ids.shape
    return [torch.randn(*shape, n, CHANNELS, dtype=dtype, generator=generator, requires_grad=True)
            for n in (HEADS, kv_heads, kv_heads)]  # fmt: skip


def with_kind(tokens: Tokens) -> Tokens:
    kind = torch.zeros_like(tokens.ids)
    kind[:, [1, 8, 250]] = 1
    return replace(tokens, kind=kind)


def compared(tokens, layout, sight, bias, more, q, k, v):
    """Outputs and gradients of the chosen kernel and of the dense one, where tokens are."""
    results = []
    for kernel in (
        lambda: attend(q, k, v, tokens, layout, sight, bias()),
        lambda: dense(q, k, v, visible(tokens, tokens, sight), sight, counted(bias(), tokens, sight)),
    ):
        out = torch.where((tokens.doc >= 0)[:, :, None, None], kernel(), 0.0)
        loss = (out * torch.arange(out.numel()).view(out.shape).cos()).sum()
        results.append([out.detach(), *torch.autograd.grad(loss, (q, k, v, *more))])
    return zip(*results, strict=True)


CASES = [
    *((name, "none", layout, None) for name in SIGHTS for layout in LAYOUTS
      if not (layout == "packed" and "bigbird" in name)),
    *((name, bias, layout, cap) for name, layout in (("causal", "one"), ("both ways", "padded"), ("causal", "packed"))
      for bias in BIASES for cap in (None, 2.0)
      if (bias != "none" or cap) and (bias != "disentangled" or (layout == "one" and cap))),
    *((name, bias, "one", None) for name in ("longformer", "fixed bigbird", "strided", "fixed", "prefix")
      for bias in BIASES if bias != "none"),
    *((name, bias, "one", 2.0) for name in ("window", "window both ways") for bias in BIASES),
    ("window", "disentangled", "one", None), ("window both ways", "disentangled", "padded", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "bias_name", "layout_name", "softcap"), CASES)
def test_a_long_document_gets_the_dense_result_and_gradient(name, bias_name, layout_name, softcap):
    """In float64, where 1e-9 tells an equal formula from a near one."""
    sight = replace(SIGHTS[name], softcap=softcap)
    tokens, layout = LAYOUTS[layout_name]
    tokens = with_kind(tokens)
    bias, more = learned_bias(bias_name, sight.causal)
    q, k, v = heads_of(tokens, HEADS if bias_name == "disentangled" else 1)
    for got, expected in compared(tokens, layout, sight, bias, more, q, k, v):
        assert (got - expected).abs().max() < 1e-9 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_types_of_training_are_as_near_as_their_digits(dtype):
    tokens, layout = LAYOUTS["one"]
    sight = replace(SIGHTS["causal"], softcap=5.0)
    exact = heads_of(tokens)
    rounded = [t.detach().to(dtype).requires_grad_() for t in exact]
    near = 1e-5 if dtype == torch.float32 else 0.06
    expected = compared(tokens, layout, sight, lambda: None, [], *exact)
    for (got, _), (_, right) in zip(compared(tokens, layout, sight, lambda: None, [], *rounded), expected, strict=True):
        assert got.dtype == dtype
        assert (got - right).abs().max() < near * max(1.0, float(right.abs().max()))


def test_a_query_that_meets_nothing_gives_zeros_and_a_finite_gradient():
    tokens, _ = LAYOUTS["one"]
    q, k, v = heads_of(tokens)
    nothing = torch.zeros(10, 20, dtype=torch.bool)
    nothing[0, 0] = True
    pieces = [Piece(slice(0, 10), slice(0, 20), nothing), Piece(slice(5, 6), slice(20, 30))]
    for softcap in (None, 2.0):
        out = blockwise(q, k, v, pieces, Sight(0.3, softcap=softcap), None)
        met = torch.zeros(LENGTH, dtype=torch.bool)
        met[[0, 5]] = True
        assert torch.equal(out[:, ~met], torch.zeros_like(out[:, ~met])) and bool((out[:, met] != 0).all())
        grads = torch.autograd.grad(out.sum(), (q, k, v))
        assert all(bool(torch.isfinite(grad).all()) for grad in grads)
        assert torch.equal(grads[0][:, ~met], torch.zeros_like(grads[0][:, ~met]))


def peak_bytes(name: str, length: int, bias_name: str = "none", softcap: float | None = None) -> int:
    sight = replace(SIGHTS[name], softcap=softcap)
    tokens = one_document(torch.zeros(1, length, dtype=torch.int64))
    if name in ("longformer", "prefix"):
        tokens = with_kind(tokens)
    bias, more = learned_bias(bias_name, sight.causal, torch.float32)
    q, k, v = heads_of(tokens, dtype=torch.float32)
    with LiveBytes() as live:
        out = attend(q, k, v, tokens, OneDocument(), sight, bias())
        torch.autograd.grad(out.sum(), (q, k, v, *more))
    return live.peak


MEMORY = [
    *((name, "none", None) for name in SIGHTS if name not in ("short bigbird", "long strided", "long fixed")),
    *(("causal", bias, None) for bias in BIASES if bias != "none"),
    ("causal", "none", 2.0), ("both ways", "buckets", 2.0), ("window", "none", 2.0), ("strided", "alibi", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "bias", "softcap"), MEMORY)
def test_memory_of_a_forward_and_backward_pass_grows_no_faster_than_the_document(name, bias, softcap):
    short, long = (peak_bytes(name, length, bias, softcap) for length in (1536, 3072))
    assert long < 2.1 * short
    assert long < 8 * 3072 * 3072  # the scores of the two heads alone


def test_the_control_the_dense_kernel_s_memory_is_quadratic():
    peaks = []
    for length in (512, 1024):
        tokens = one_document(torch.zeros(1, length, dtype=torch.int64))
        q, k, v = heads_of(tokens)
        seen = by_place(torch.arange(length)[:, None], torch.arange(length), Sight(0.3))[None]
        with LiveBytes() as live:
            torch.autograd.grad(dense(q, k, v, seen, Sight(0.3)).sum(), (q, k, v))
        peaks.append(live.peak)
    assert peaks[1] > 3.5 * peaks[0]
