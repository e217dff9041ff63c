"""Every way of attending equals the dense reference: forward, gradient, packed, padded, cached; nothing leaks."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from fledge.batch import Cached, OneDocument, Packed, Tokens, one_document, padded
from fledge.errors import ConfigError
from fledge.model.config import ModelConfig
from fledge.model.init import initialise
from fledge.model.transformer import Transformer, build, new_cache
from fledge.nn.bias import make_bias
from fledge.nn.config import (
    Alibi,
    BigBird,
    Buckets,
    Dense,
    Fixed,
    Heads,
    Inputs,
    Kernelised,
    LayerConfig,
    Longformer,
    LowRank,
    Moe,
    Norm,
    Prefix,
    Rope,
    StackConfig,
    Strided,
)
from fledge.nn.kernels import attend, dense
from fledge.nn.visibility import Sight, visible

HEADS, CHANNELS, LENGTHS = 4, 8, (70, 1, 37)
SIGHTS = {
    "causal": Sight(0.3),
    "both ways": Sight(0.3, causal=False),
    "causal window": Sight(0.3, window=5),
    "window both ways": Sight(0.3, causal=False, window=9),
    "window of one": Sight(0.3, causal=False, window=1),
    "softcap": Sight(0.3, softcap=2.0),
    "softcap both ways": Sight(0.3, causal=False, softcap=2.0),
    "softcap window": Sight(0.3, softcap=2.0, window=5),
    "strided": Sight(0.3, pattern=Strided(4)),
    "fixed": Sight(0.3, pattern=Fixed(6, 2)),
    "prefix": Sight(0.3, pattern=Prefix()),
    "longformer": Sight(0.3, causal=False, pattern=Longformer(8)),
    "bigbird": Sight(0.3, causal=False, pattern=BigBird(4, 1)),
}
BIASES = {"none": None, "alibi": Alibi(), "buckets": Buckets(8, 20)}


def some_heads(kv_heads: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = (HEADS, kv_heads, kv_heads)
    return [torch.randn(3, 70, n, CHANNELS, generator=generator, requires_grad=True) for n in sizes]


def bias_module(name: str, causal: bool) -> torch.nn.Module | None:
    module = make_bias(BIASES[name], HEADS, causal)
    for parameter in module.parameters() if module is not None else ():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(4))
    return module


def layouts() -> dict[str, tuple[Tokens, object]]:
    kind = torch.zeros(3, 70, dtype=torch.int64)
    kind[:, :4] = 1
    whole = one_document(torch.zeros(3, 70, dtype=torch.int64))
    rows, layout = padded([[0] * n for n in LENGTHS])
    packed, packed_layout = pack([[30, 40], [70], [1, 60, 9]])
    with_kind = [replace(tokens, kind=kind) for tokens in (whole, rows, packed)]
    pairs = zip(with_kind, (OneDocument(), layout, packed_layout), strict=True)
    return dict(zip(("one", "padded", "packed"), pairs, strict=True))


def pack(lengths: list[list[int]]) -> tuple[Tokens, Packed]:
    pos = torch.tensor([[i for n in row for i in range(n)] for row in lengths])
    doc = torch.tensor([[d for d, n in enumerate(row) for _ in range(n)] for row in lengths])
    bounds = tuple(itertools.accumulate((n for row in lengths for n in row), initial=0))
    return Tokens(torch.zeros_like(pos), pos, doc), Packed(bounds, max(n for row in lengths for n in row))


def reference(q, k, v, tokens, sight, bias):
    """Row by row and document by document through the dense kernel and Tokens alone."""
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for doc in tokens.doc[b].unique():
            if doc < 0:
                continue
            at = (tokens.doc[b] == doc).nonzero().squeeze(1)
            part = Tokens(*(t[b : b + 1, at] for t in (tokens.ids, tokens.pos, tokens.doc, tokens.kind)))
            one = [t[b : b + 1, at] for t in (q, k, v)]
            out[b, at] = dense(*one, visible(part, part, sight), sight, bias)[0]
    return out


@pytest.mark.parametrize("layout_name", ["one", "padded", "packed"])
@pytest.mark.parametrize("bias_name", list(BIASES))
@pytest.mark.parametrize("name", list(SIGHTS))
def test_the_chosen_kernel_equals_the_dense_one_forward_and_gradient(name, bias_name, layout_name):
    sight = SIGHTS[name]
    tokens, layout = layouts()[layout_name]
    bias = bias_module(bias_name, sight.causal)
    q, k, v = some_heads()
    results = []
    for kernel in (
        lambda: attend(q, k, v, tokens, layout, sight, bias),
        lambda: reference(q, k, v, tokens, sight, bias),
    ):
        out = torch.where((tokens.doc >= 0)[:, :, None, None], kernel(), 0.0)
        loss = (out * torch.arange(out.numel()).view(out.shape).cos()).sum()
        results.append([out.detach(), *torch.autograd.grad(loss, (q, k, v, *(bias.parameters() if bias else ())))])
    for got, expected in zip(*results, strict=True):
        assert (got - expected).abs().max() < 3e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("name", [name for name in SIGHTS if name not in ("causal", "both ways")])
def test_each_sight_differs_from_plain_attention(name):
    """The control: a kernel that ignored its sight would fail the equality above."""
    tokens, layout = layouts()["one"]
    q, k, v = some_heads()
    sight = SIGHTS[name]
    plain = Sight(sight.scale, sight.causal)
    assert (
        attend(q, k, v, tokens, layout, sight, None) - attend(q, k, v, tokens, layout, plain, None)
    ).abs().max() > 1e-3


def test_padding_gives_zeros_and_an_empty_row_too():
    tokens, layout = padded([[0] * 5, [], [0] * 3])
    q, k, v = (torch.randn(3, 5, 2, 4) for _ in range(3))
    for sight in (Sight(0.5), Sight(0.5, causal=False), Sight(0.5, causal=False, window=2), Sight(0.5, softcap=3.0)):
        out = attend(q, k, v, tokens, layout, sight, None)
        assert torch.equal(out[tokens.doc < 0], torch.zeros_like(out[tokens.doc < 0]))
        assert bool(torch.isfinite(out).all()) and bool((out[0] != 0).any())


NORM, FFN = Norm("rms", 1e-6), Dense(24, "silu", gated=True)
MIXER = Heads(HEADS, 2, CHANNELS)
DECODERS = {
    "rope": LayerConfig(MIXER, FFN, Rope()),
    "partial rope": LayerConfig(MIXER, FFN, Rope(channels=4)),
    "alibi": LayerConfig(MIXER, FFN, Alibi()),
    "buckets": LayerConfig(MIXER, FFN, Buckets(8, 20)),
    "window": LayerConfig(MIXER, FFN, Rope(), window=6),
    "softcap": LayerConfig(replace(MIXER, softcap=3.0, scale=0.5), FFN, Rope(), window=6),
    "per-head norm": LayerConfig(replace(MIXER, qk_norm="head"), FFN, Rope()),
    "whole norm": LayerConfig(replace(MIXER, qk_norm="whole"), FFN, Rope()),
    "own norms": LayerConfig(replace(MIXER, qk_norm="own"), FFN, Rope()),
    "clipped": LayerConfig(replace(MIXER, qk_norm="head", clip=0.7), FFN, Rope()),
    "strided": LayerConfig(MIXER, FFN, Rope(), pattern=Strided(3)),
    "fixed": LayerConfig(MIXER, FFN, Rope(), pattern=Fixed(4)),
    "kernelised": LayerConfig(Kernelised(HEADS, 2, CHANNELS), FFN, Rope()),
    "experts": LayerConfig(MIXER, Moe(FFN, 4, 2), Rope()),
}


BLOCKS: list[dict] = [
    {},
    {"parallel": "one_norm"},
    {"parallel": "two_norms"},
    {"norm_at": ("residual",)},
    {"norm_at": ("before", "after")},
    {"inputs": Inputs("sinusoidal", kinds=2, scale=2.0, norm=True)},
]


def decoder(name: str, **more) -> Transformer:
    stack = StackConfig(32, (DECODERS[name],) * 2, NORM, **more)
    model = initialise(build(ModelConfig("llama", 50, 96, stack), "cpu"), 5)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.2)
    return model.eval()


def ids_of(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(rows * 100 + length))


@torch.no_grad()
@pytest.mark.parametrize("more", BLOCKS, ids=str)
@pytest.mark.parametrize("name", list(DECODERS))
def test_decoding_and_packing_give_the_logits_of_one_pass(name, more):
    model, ids = decoder(name, **more), ids_of(1, 40)
    whole = model(one_document(ids), OneDocument())
    for chunks in ((40,), (17, 23), (15, *[1] * 25)):
        cache, start, got = new_cache(model, 2), 0, []
        for n in chunks:
            pos = torch.arange(start, start + n)[None]
            tokens = Tokens(ids[:, start : start + n], pos, torch.zeros_like(pos))
            got.append(model(tokens, Cached((cache.whole_table(1),), (start,), (n,), (1,)), cache))
            start += n
        assert (torch.cat(got, 1) - whole).abs().max() < 3e-5
    tokens, layout = pack([[10, 30]])
    apart = model(replace(tokens, ids=ids), layout)
    for part in (slice(0, 10), slice(10, 40)):
        alone = model(one_document(ids[:, part]), OneDocument())
        assert (apart[:, part] - alone).abs().max() < 3e-5
    assert (apart - whole)[:, 10:].abs().max() > 1e-3  # the control


@torch.no_grad()
@pytest.mark.parametrize("name", list(DECODERS))
def test_a_decoder_never_sees_what_comes_later(name):
    model, ids = decoder(name), ids_of(2, 40)
    changed = ids.clone()
    changed[:, 30:] = (changed[:, 30:] + 1) % 50
    before, after = (model(one_document(i), OneDocument()) for i in (ids, changed))
    assert torch.equal(before[:, :30], after[:, :30])
    assert not torch.equal(before[:, 30:], after[:, 30:])


@pytest.mark.parametrize(
    ("layer", "causal", "reason"),
    [
        (LayerConfig(LowRank(4, 4, 8), FFN), True, "no causal form"),
        (LayerConfig(Kernelised(4, 4, 8), FFN, Alibi()), True, "a bias has no meaning"),
        (LayerConfig(MIXER, FFN, pattern=Longformer(4)), True, "see both ways"),
        (LayerConfig(MIXER, FFN, pattern=Strided(4)), False, "defined for decoders"),
        (LayerConfig(MIXER, FFN, window=4, pattern=Strided(4)), True, "has its own window"),
    ],
)
def test_what_has_no_definition_is_refused_with_the_reason(layer, causal, reason):
    with pytest.raises(ConfigError, match=reason):
        ModelConfig("llama", 50, 96, StackConfig(32, (layer,), NORM, causal=causal))


@torch.no_grad()
@pytest.mark.parametrize("shape", ["both ways", "low rank", "kernelised", "alibi", "buckets", "window", "longformer"])
def test_an_encoder_gives_a_document_the_same_states_alone_padded_and_packed(shape):
    layer = {
        "both ways": LayerConfig(MIXER, FFN, Rope()),
        "low rank": LayerConfig(LowRank(4, 4, 8, rank=5, tokens=64), FFN, Rope()),
        "kernelised": LayerConfig(Kernelised(4, 2, 8), FFN),
        "alibi": LayerConfig(MIXER, FFN, Alibi()),
        "buckets": LayerConfig(MIXER, FFN, Buckets(8, 20)),
        "window": LayerConfig(MIXER, FFN, Rope(), window=6),
        "longformer": LayerConfig(MIXER, FFN, None, pattern=Longformer(6)),
    }[shape]
    stack = StackConfig(32, (layer,) * 2, NORM, causal=False)
    model = initialise(
        build(ModelConfig("llama", 50, 96, None, stack, init=replace(ModelConfig.init, std=0.3)), "cpu"), 1
    )
    ids = ids_of(2, 40)
    tokens, layout = padded([ids[0, :13].tolist(), ids[1].tolist()])
    packed_tokens, packed_layout = pack([[13, 27]])
    both = model.eval().hidden(tokens, layout)
    together = model.hidden(replace(packed_tokens, ids=ids[:1]), packed_layout)
    for got, row, part in (
        (both[0, :13], 0, slice(0, 13)),
        (both[1], 1, slice(0, 40)),
        (together[0, 13:], 0, slice(13, 40)),
    ):
        alone = model.hidden(one_document(ids[row : row + 1, part]), OneDocument())[0]
        assert (got - alone).abs().max() < 2e-5


@torch.no_grad()
def test_a_decoder_reads_its_own_source_document_alone_padded_and_packed():
    encoder = StackConfig(32, (LayerConfig(MIXER, FFN, Buckets(8, 20)),), NORM, causal=False)
    stack = replace(encoder, causal=True, cross=Heads(4, 4, 8))
    model = initialise(build(ModelConfig("t5", 50, 96, stack, encoder), "cpu"), 2).eval()
    ids, source_ids = ids_of(2, 20), ids_of(2, 30)
    tokens, layout = padded([ids[0, :6].tolist(), ids[1].tolist()])
    source = padded([source_ids[0, :11].tolist(), source_ids[1].tolist()])
    both = model(tokens, layout, source=source)
    packed_tokens, packed_layout = pack([[6, 14]])
    packed_source, source_layout = pack([[11, 19]])
    packed_rows = (replace(packed_tokens, ids=ids[:1]), packed_layout)
    together = model(*packed_rows, source=(replace(packed_source, ids=source_ids[:1]), source_layout))
    alone = model(one_document(ids[:1, :6]), OneDocument(), source=(one_document(source_ids[:1, :11]), OneDocument()))
    assert (both[0, :6] - alone[0]).abs().max() < 2e-5
    assert (together[0, :6] - alone[0]).abs().max() < 2e-5
    other = model(one_document(ids[:1, :6]), OneDocument(), source=(one_document(source_ids[:1, :12]), OneDocument()))
    assert (other - alone).abs().max() > 1e-5  # the control
