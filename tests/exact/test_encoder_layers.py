"""Layers that encoders need, each against an independent reference: torch's own layer, sums written out."""

from __future__ import annotations

import math

import pytest
import torch

from fledge.batch import OneDocument, Packed, Tokens, one_document, padded
from fledge.errors import ConfigError
from fledge.model.config import ModelConfig
from fledge.nn.attention import Context
from fledge.nn.block import Block
from fledge.nn.config import (
    BigBird,
    Conv,
    Dense,
    Disentangled,
    Heads,
    LayerConfig,
    Norm,
    StackConfig,
)
from fledge.nn.disentangled import Convolution, DistanceBias, DistanceMaps, rows_of
from fledge.nn.kernels import attend
from fledge.nn.linear import Joined, pack
from fledge.nn.visibility import Sight


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("lengths", [(12, 12), (12, 5)], ids=["whole", "padded"])
def test_the_post_norm_block_equals_torch_s_encoder_layer(activation, lengths):
    """The block of Vaswani et al. 2017: forward, and the gradient of every weight."""
    torch.manual_seed(0)
    theirs = torch.nn.TransformerEncoderLayer(16, 4, 24, 0.0, activation, batch_first=True, norm_first=False)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    layer = LayerConfig(Heads(4, 4, 4, True, True), Dense(24, activation, bias=True))
    ours = Block(StackConfig(16, (layer,), Norm("layer", 1e-5, bias=True), ("residual",), causal=False), layer)
    linear = theirs.linear1, theirs.linear2
    pairs = {
        "attention.out.weight": theirs.self_attn.out_proj.weight, "attention.out.bias": theirs.self_attn.out_proj.bias,
        "ffn.inward.up.weight": linear[0].weight, "ffn.inward.up.bias": linear[0].bias,
        "ffn.down.weight": linear[1].weight, "ffn.down.bias": linear[1].bias,
        "attention_norms.residual.weight": theirs.norm1.weight, "attention_norms.residual.bias": theirs.norm1.bias,
        "ffn_norms.residual.weight": theirs.norm2.weight, "ffn_norms.residual.bias": theirs.norm2.bias,
    }  # fmt: skip
    stacked = {"weight": theirs.self_attn.in_proj_weight, "bias": theirs.self_attn.in_proj_bias}
    with torch.no_grad():
        for name, value in pairs.items():
            ours.get_parameter(name).copy_(value)
        for end, value in stacked.items():
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                ours.get_parameter(f"attention.qkv.{letter}.{end}").copy_(part)
    x = torch.randn(2, 12, 16, requires_grad=True)
    tokens, layout = padded([[0] * n for n in lengths])
    there = tokens.doc >= 0
    got = ours(x, Context(tokens, layout, {}), 0)
    expected = theirs(x, src_key_padding_mask=~there)
    assert (got - expected)[there].abs().max() < 1e-5
    weight = torch.randn_like(got) * there[..., None]
    mine = torch.autograd.grad((got * weight).sum(), [x, *(ours.get_parameter(name) for name in pairs)])
    other = torch.autograd.grad((expected * weight).sum(), [x, *pairs.values()])
    for a, b in zip(mine, other, strict=True):
        assert (a - b).abs().max() < 1e-4
    pre = Block(StackConfig(16, (layer,), Norm("layer", 1e-5, bias=True), ("before",), causal=False), layer)
    with torch.no_grad():
        for name, parameter in pre.named_parameters():
            parameter.copy_(ours.get_parameter(name.replace("before", "residual")))
    assert (pre(x, Context(tokens, layout, {}), 0) - expected)[there].abs().max() > 1e-2  # the control


def filled(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return module


@torch.no_grad()
@pytest.mark.parametrize("terms", [(True, True), (True, False), (False, True)], ids=["both", "c2p", "p2c"])
@pytest.mark.parametrize(("span", "buckets"), [(4, 0), (12, 6)])
def test_disentangled_scores_are_the_sums_of_the_paper(terms, span, buckets):
    """Equation 4, one query and one key at a time."""
    config = Disentangled(span, buckets, *terms)
    heads = Heads(2, 2, 4, True, True)
    maps = filled(DistanceMaps(config, 8, heads))
    table = torch.randn(2 * (buckets or span), 8)
    q, k = torch.randn(1, 9, 2, 4), torch.randn(1, 7, 2, 4)
    got = DistanceBias(config, heads, 0.3, table, maps)(q, k, 3, 1)
    for t in range(9):
        for s in range(7):
            row = rows_of(torch.tensor((3 + t) - (1 + s)), config)
            expected = torch.zeros(2)
            if terms[0]:
                expected += (q[0, t] * maps.k(table[row]).view(2, 4)).sum(-1)
            if terms[1]:
                expected += (k[0, s] * maps.q(table[row]).view(2, 4)).sum(-1)
            assert (got[0, :, t, s] - 0.3 * expected).abs().max() < 1e-5


def test_log_buckets_keep_near_distances_and_signs_and_end_at_the_last_row():
    config = Disentangled(512, 256)
    back = torch.arange(-600, 601)
    rows = rows_of(back, config)
    near = back.abs() <= 128
    assert torch.equal(rows[near], back[near] + 256)
    assert rows.min() == 0 and rows.max() == 511 and bool((rows[1:] >= rows[:-1]).all())
    for distance in (129, 200, 300, 511):
        bucket = math.ceil(math.log(distance / 128) / math.log(511 / 128) * 127) + 128
        assert rows[600 + distance] == min(511, bucket + 256) and rows[600 - distance] == 256 - bucket


@torch.no_grad()
@pytest.mark.parametrize(("kernel", "groups"), [(3, 1), (3, 2), (5, 4), (1, 1)])
def test_the_convolution_is_torch_s_inside_each_document(kernel, groups):
    module = filled(Convolution(Conv(kernel, groups, "gelu"), 8, Norm("layer", 1e-5, bias=True)))
    inputs, x = torch.randn(2, 12, 8), torch.randn(2, 12, 8)
    doc = torch.tensor([[0] * 5 + [1] * 7, [0] * 9 + [-1] * 3])
    got = module(inputs, x, doc)
    for row, cut in ((0, slice(0, 5)), (0, slice(5, 12)), (1, slice(0, 9))):
        one = inputs[row : row + 1, cut].transpose(1, 2)
        out = torch.nn.functional.conv1d(one, module.weight, module.bias, padding=(kernel - 1) // 2, groups=groups)
        expected = module.norm(x[row, cut] + torch.nn.functional.gelu(out[0].t()))
        assert (got[row, cut] - expected).abs().max() < 1e-5


@torch.no_grad()
def test_a_fixed_bigbird_counts_the_first_block_as_often_as_it_has_random_blocks():
    """Against softmax over keys written out with their repetitions."""
    pattern = BigBird(2, 3, fixed=True)
    q, k, v = (torch.randn(1, 13, 1, 4) for _ in range(3))
    tokens = one_document(torch.zeros(1, 13, dtype=torch.int64))
    got = attend(q, k, v, tokens, OneDocument(), Sight(0.5, causal=False, pattern=pattern), None)[0, :, 0]
    for t in range(13):
        block, last = t // 2, 6
        if block in (0, last):
            keys = list(range(13))
        else:
            blocks = sorted({0, block - 1, block, block + 1, last}) + [0] * 3
            keys = [s for one in blocks for s in range(13) if s // 2 == one]
        weights = torch.softmax(0.5 * k[0, keys, 0] @ q[0, t, 0], 0)
        assert (got[t] - weights @ v[0, keys, 0]).abs().max() < 1e-5
    full = BigBird(2, 3, fixed=True, full_tokens=13)
    whole = attend(q, k, v, tokens, OneDocument(), Sight(0.5, causal=False, pattern=full), None)
    plain = attend(q, k, v, tokens, OneDocument(), Sight(0.5, causal=False), None)
    assert (whole - plain).abs().max() < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("fixed", [False, True])
def test_bigbird_gives_a_document_the_same_alone_and_packed(fixed):
    pattern = BigBird(2, 1, fixed=fixed, full_tokens=4)
    sight = Sight(0.5, causal=False, pattern=pattern)
    q, k, v = (torch.randn(1, 40, 2, 4) for _ in range(3))
    lengths = (3, 12, 25)
    pos = torch.cat([torch.arange(n) for n in lengths])[None]
    doc = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    packed = attend(q, k, v, Tokens(torch.zeros_like(pos), pos, doc), Packed((0, 3, 15, 40), 25), sight, None)
    for start, end in ((0, 3), (3, 15), (15, 40)):
        one = [t[:, start:end] for t in (q, k, v)]
        tokens = one_document(torch.zeros(1, end - start, dtype=torch.int64))
        assert (packed[:, start:end] - attend(*one, tokens, OneDocument(), sight, None)).abs().max() < 1e-6


@torch.no_grad()
def test_a_key_without_bias_is_a_key_with_a_bias_of_zero():
    maps = filled(Joined(6, {"q": 4, "k": 4, "v": 4}, True, ("k",)))
    x = torch.randn(3, 6)
    assert maps.get_submodule("k").bias is None
    expected = torch.cat([linear(x) for linear in maps.maps()], -1)
    assert (maps(x) - expected).abs().max() < 1e-6
    assert (pack(maps)(x) - expected).abs().max() < 1e-6


def encoder(layer: LayerConfig, **more) -> ModelConfig:
    stack = StackConfig(8, (layer,), Norm("layer", 1e-5, bias=True), ("residual",), causal=False, **more)
    return ModelConfig("bert", 9, 16, None, stack)


@pytest.mark.parametrize(
    ("layer", "more", "reason"),
    [
        (LayerConfig(Heads(2, 1, 4), Dense(8, "gelu"), Disentangled(8)), {}, "as many key/value heads"),
        (LayerConfig(Heads(2, 2, 4), Dense(8, "gelu"), Disentangled(8, buckets=14)), {}, "buckets"),
        (LayerConfig(Heads(2, 2, 4, clip=1.0), Dense(8, "gelu"), Disentangled(8)), {}, "no clip reaches"),
        (LayerConfig(Heads(2, 2, 4), Dense(8, "gelu")), {"cross": Heads(2, 2, 4, clip=1.0)}, "in cross-attention"),
        (LayerConfig(Heads(2, 2, 4, clip=0.0), Dense(8, "gelu")), {}, "clip: expected a number"),
        (LayerConfig(Heads(2, 2, 4), Dense(8, "gelu"), pattern=BigBird(0, 1)), {}, "block"),
        (LayerConfig(Heads(2, 2, 4), Dense(8, "gelu")), {"conv": Conv(4)}, "odd kernel"),
        (LayerConfig(Heads(2, 2, 4), Dense(8, "gelu")), {"conv": Conv(3, 3)}, "divide the width"),
    ],
)
def test_what_has_no_definition_is_refused_with_the_reason(layer, more, reason):
    with pytest.raises(ConfigError, match=reason):
        encoder(layer, **more)
