"""Mixtures of experts: no token is dropped, and the load-balancing loss is its formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from fledge.batch import OneDocument, one_document, padded
from fledge.model.folder import load_model
from fledge.nn.config import Dense, Moe
from fledge.nn.feedforward import Experts, load_balance
from tests.parity.decoder_cases import CASES
from tests.parity.reference import mask_of, some_ids


def experts(top_k: int = 2, n: int = 5, renormalise: bool = True) -> Experts:
    layer = Experts(16, Moe(Dense(24, "silu", True), n, top_k, renormalise, balance=0.1))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return layer.train()


@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("renormalise", [True, False])
def test_every_token_gets_all_its_experts_weighted_by_the_router(top_k, renormalise):
    layer, x = (
        experts(top_k, renormalise=renormalise),
        torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(2)),
    )
    x[:] = x[:1, :1]  # all tokens alike choose the same experts: one with a capacity would drop most
    probabilities = torch.softmax(x @ layer.router.weight.T, -1)
    order = probabilities.argsort(-1, descending=True)[..., :top_k]
    share = probabilities.gather(-1, order)
    if renormalise:
        share = share / share.sum(-1, keepdim=True)
    every = torch.stack([expert(x) for expert in layer.experts], -2)
    chosen = every.gather(-2, order[..., None].expand(*order.shape, 16))
    expected = (chosen * share[..., None]).sum(-2)
    assert torch.allclose(layer(x), expected, atol=1e-6)
    assert bool((layer(x).abs().sum(-1) > 0).all())


@torch.no_grad()
def test_the_load_balancing_loss_is_its_formula():
    layer, x = experts(), torch.randn(4, 9, 16, generator=torch.Generator().manual_seed(2))
    layer(x)
    probabilities = torch.softmax(x.flatten(0, 1) @ layer.router.weight.T, -1)
    chosen = probabilities.topk(2, -1).indices
    share = torch.stack([(chosen == e).float().sum() for e in range(5)]) / chosen.numel()
    expected = 5 * sum(share[e] * probabilities[:, e].mean() for e in range(5))
    assert float(load_balance(layer)) == pytest.approx(float(expected), rel=1e-6)
    layer.router.weight.zero_()  # an even router: each share times 1/5
    layer(x)
    assert float(load_balance(layer)) == pytest.approx(1.0, rel=1e-6)


@torch.no_grad()
def test_padding_does_not_count_in_it():
    layer, x = experts(), torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(2))
    there = torch.tensor([[True] * 9, [True] * 4 + [False] * 5])
    layer(x)
    whole, without = load_balance(layer), load_balance(layer, there)
    layer(torch.cat((x[0], x[1, :4]))[None])
    assert float(without) == pytest.approx(float(load_balance(layer)), rel=1e-6)
    assert float(without) != pytest.approx(float(whole), rel=1e-4)


def test_its_gradient_reaches_the_router():
    layer, x = experts(), torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(2))
    layer(x)
    load_balance(layer).backward()
    probabilities = torch.softmax(x.flatten(0, 1) @ layer.router.weight.detach().T, -1)
    share = F.one_hot(probabilities.topk(2, -1).indices, 5).float().sum((0, 1)) / 36
    slope = 5 * probabilities * (share - (probabilities * share).sum(-1, keepdim=True)) / 18
    assert torch.allclose(layer.router.weight.grad, slope.T @ x.flatten(0, 1), atol=1e-6)


def test_summed_over_layers_as_transformers_does_it_is_transformers(tmp_path):
    """Theirs counts each of the top_k choices as one, and takes shares and probabilities over all layers at once."""
    model = CASES["mixtral"].model()
    model.save_pretrained(tmp_path)
    mine, ids, lengths = load_model(tmp_path).train(), some_ids(), (40, 7, 23)
    tokens, layout = padded([ids[b, :n].tolist() for b, n in enumerate(lengths)])
    with torch.no_grad():
        mask = mask_of(lengths, 40)
        theirs = model(tokens.ids, attention_mask=mask, output_router_logits=True).router_logits
        mine.hidden(tokens, layout)
    layers = [module for module in mine.modules() if isinstance(module, Experts)]
    for layer, logits in zip(layers, theirs, strict=True):
        expected = load_balancing_loss_func((logits,), 5, 2, mask)
        assert float(load_balance(layer, tokens.doc >= 0)) == pytest.approx(float(expected) / 2, rel=1e-5)
    mine.eval()
    with torch.no_grad():
        mine(one_document(ids), OneDocument())
    with pytest.raises(TypeError):
        load_balance(layers[0])  # nothing is kept outside training
