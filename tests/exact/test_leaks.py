"""No leak: what a token must not see changes no bit of it, for every kernel at every length and for every family."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fledge.batch import OneDocument, one_document, padded
from fledge.model.folder import load_model
from fledge.model.transformer import Transformer
from fledge.nn.bias import make_bias
from fledge.nn.config import Alibi, BigBird, Buckets, Fixed, Longformer, Moe, Prefix, Strided
from fledge.nn.kernels import attend
from fledge.nn.linear_attention import kernelised
from fledge.nn.low_rank import low_rank
from fledge.nn.visibility import Sight, visible
from tests.exact.test_blockwise import packed
from tests.parity.cases import DECODERS, first_of_each_family, model_of

SIGHTS = {
    "causal": Sight(0.3),
    "both ways": Sight(0.3, causal=False),
    "window": Sight(0.3, window=300),
    "narrow window": Sight(0.3, window=20),
    "window both ways": Sight(0.3, causal=False, window=30),
    "softcap": Sight(0.3, softcap=2.0),
    "softcap window": Sight(0.3, window=300, softcap=2.0),
    "softcap both ways": Sight(0.3, causal=False, softcap=2.0),
    "prefix": Sight(0.3, pattern=Prefix()),
    "longformer": Sight(0.3, causal=False, pattern=Longformer(20)),
    "bigbird": Sight(0.3, causal=False, pattern=BigBird(32, 2)),
    "fixed bigbird": Sight(0.3, causal=False, pattern=BigBird(32, 2, fixed=True)),
    "strided": Sight(0.3, pattern=Strided(37)),
    "fixed": Sight(0.3, pattern=Fixed(40, 3)),
}
LAYOUTS = {
    "one": lambda n: (one_document(torch.zeros(1, n, dtype=torch.int64)), OneDocument()),
    "padded": lambda n: padded([[0] * n, [0] * (n - n // 3)]),
    "packed": lambda n: packed(n // 4, n - n // 4 - 3, 3),
}
KERNELS = [(name, None) for name in SIGHTS] + [("causal", Alibi()), ("both ways", Buckets(8, 200))]


@pytest.mark.parametrize("length", [60, 1200])
@pytest.mark.parametrize("layout_name", LAYOUTS)
@pytest.mark.parametrize(("name", "position"), KERNELS, ids=str)
@torch.no_grad()
def test_keys_and_values_that_a_query_must_not_see_change_no_bit_of_it(name, position, layout_name, length):
    sight, (tokens, layout) = SIGHTS[name], LAYOUTS[layout_name](length)
    kind = torch.zeros_like(tokens.ids)
    kind[:, [0, 5]] = 1
    tokens = replace(tokens, kind=kind)
    bias = make_bias(position, 2, sight.causal)
    for parameter in bias.parameters() if bias is not None else ():
        torch.nn.init.normal_(parameter)
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(*tokens.ids.shape, 2, 4, generator=generator) for _ in range(3))
    before = attend(q, k, v, tokens, layout, sight, bias)
    if bias is None and "bigbird" not in name or layout_name != "packed":  # (visible counts BigBird's blocks by row)
        seen = visible(tokens, tokens, sight)
    else:
        seen = (tokens.doc[:, :, None] == tokens.doc[:, None, :]) & (tokens.doc >= 0)[:, :, None]
    there, changed = tokens.doc >= 0, 0
    for place in (0, 7, length // 3, length // 2 + 1, length - 1):
        k_other, v_other = k.clone(), v.clone()
        k_other[:, place] = -3.0 * k_other[:, place] + 1.0
        v_other[:, place] += 100.0
        after = attend(q, k_other, v_other, tokens, layout, sight, bias)
        blind = there & ~seen[:, :, place]
        assert torch.equal(before[blind], after[blind]), place
        changed += int((before != after).flatten(2).any(-1)[there & seen[:, :, place]].sum())
    assert changed >= 3  # the control: what is seen matters
    assert bool(torch.isfinite(before).all())
    if layout_name == "padded":
        assert torch.equal(before[~there], torch.zeros_like(before[~there]))


@pytest.mark.parametrize("layout_name", ["padded", "packed"])
@pytest.mark.parametrize("name", ["linear", "causal linear", "low rank"])
@torch.no_grad()
def test_linear_and_low_rank_attention_see_their_own_document_alone(name, layout_name):
    generator = torch.Generator().manual_seed(3)
    (tokens, layout), causal = LAYOUTS[layout_name](200), name == "causal linear"
    q, k, v = (torch.randn(*tokens.ids.shape, 2, 4, generator=generator) for _ in range(3))
    projection = torch.randn(5, 200, generator=generator)

    def kernel(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if name == "low rank":
            return low_rank(q, k, v, layout, projection, Sight(0.3, causal=False))
        return kernelised(q, k, v, tokens, layout, causal, None, 0)

    seen = visible(tokens, tokens, Sight(0.3, causal))
    before, changed = kernel(k, v), 0
    for place in (0, 60, 150, 199):
        k_other, v_other = k.clone(), v.clone()
        k_other[:, place] += 1.0
        v_other[:, place] += 100.0
        after = kernel(k_other, v_other)
        blind = (tokens.doc >= 0) & ~seen[:, :, place]
        assert torch.equal(before[blind], after[blind]), place
        changed += int((before != after).flatten(2).any(-1)[seen[:, :, place]].sum())
    assert changed > 50  # the control


def unchanged(before: torch.Tensor, after: torch.Tensor, mixture: bool) -> bool:
    """Bit by bit; with a mixture of experts to 1e-12 of float64, as other tokens decide how many rows an expert
    multiplies at once, and a product of more rows may round otherwise."""
    return bool((before - after).abs().max() < 1e-12) if mixture else torch.equal(before, after)


def states(model: Transformer, tokens, layout) -> torch.Tensor:
    return model.encode(tokens, layout) if model.encoder is not None else model.hidden(tokens, layout)


@pytest.mark.parametrize("name", first_of_each_family())
@torch.no_grad()
def test_padding_other_documents_and_the_future_change_no_bit_of_a_family_s_states(name, tmp_path):
    model_of(name).save_pretrained(tmp_path)
    model = load_model(tmp_path).eval()
    mixture = any(isinstance(layer.ffn, Moe) for layer in model.config.stack.layers)
    model = model.double() if mixture else model
    ids = torch.randint(3, 90, (2, 40), generator=torch.Generator().manual_seed(3))
    rows, layout = padded([ids[0, :13].tolist(), ids[1].tolist()])
    other_ids = torch.where(rows.doc < 0, 50, rows.ids)
    before, after = (states(model, tokens, layout) for tokens in (rows, replace(rows, ids=other_ids)))
    assert unchanged(before[rows.doc >= 0], after[rows.doc >= 0], mixture)
    tokens, layout = packed(13, 27)
    tokens = replace(tokens, ids=ids[:1])
    changed = tokens.ids.clone()
    changed[0, :13] = (changed[0, :13] + 5) % 90 + 3
    before, after = (states(model, one, layout) for one in (tokens, replace(tokens, ids=changed)))
    assert unchanged(before[:, 13:], after[:, 13:], mixture)
    assert bool((before != after)[:, :13].any(-1).all())  # the control
    if name in DECODERS:
        future = ids.clone()
        future[:, 30:] = (future[:, 30:] + 5) % 90 + 3
        before, after = (model.hidden(one_document(one), OneDocument()) for one in (ids, future))
        assert unchanged(before[:, :30], after[:, :30], mixture) and bool((before != after)[:, 30:].any(-1).all())
