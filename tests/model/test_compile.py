"""torch.compile takes whole models in one graph, and what it computes is what the plain model computes."""

from __future__ import annotations

import pytest
import torch

from fledge.batch import OneDocument, one_document
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.init import initialise
from fledge.model.transformer import Transformer, build
from fledge.nn import distance


def tiny(name: str, n_tokens: int = 24) -> Transformer:
    shape = ShapeConfig(name, width=32, layers=1, heads=4, hidden=48, vocab_size=50, context_tokens=n_tokens)
    return initialise(build(family(name).new_config(shape), "cpu"), 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5", "qwen3", "olmo2"])
def test_a_compiled_model_is_one_graph_and_equal(name):
    model = tiny(name)
    ids = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(2))
    tokens, layout = one_document(ids), OneDocument()
    source = (tokens, layout) if len(model.config.stacks) == 2 else None
    weight = torch.rand(2, 24, generator=torch.Generator().manual_seed(3))

    def figures(loss_sum, logits):
        model.zero_grad()
        loss = loss_sum(tokens, layout, ids, weight, source)
        loss.backward()
        with torch.no_grad():
            found = logits(tokens, layout, source=source)
        return [loss.detach(), found, *(p.grad.clone() for p in model.parameters())]

    plain = figures(model.loss_sum, model)
    torch.compiler.reset()
    graphs = [torch.compile(f, backend="aot_eager", fullgraph=True) for f in (model.loss_sum, model)]
    compiled = figures(*graphs)
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(plain, compiled, strict=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    changed = figures(*graphs)
    assert not torch.allclose(changed[1], compiled[1])  # the control: the graph reads the weights of today


@pytest.mark.slow
def test_a_long_document_with_a_bias_stays_one_graph_and_block_by_block(monkeypatch):
    model = tiny("t5", 1100)
    ids = torch.randint(0, 50, (1, 1100), generator=torch.Generator().manual_seed(2))
    tokens, layout = one_document(ids), OneDocument()

    def figures(loss_sum):
        model.zero_grad()
        loss = loss_sum(tokens, layout, ids, torch.ones(1, 1100), (tokens, layout))
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters())]

    plain = figures(model.loss_sum)
    torch.compiler.reset()
    compiled = figures(torch.compile(model.loss_sum, backend="aot_eager", fullgraph=True))
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(plain, compiled, strict=True))
    calls = []
    monkeypatch.setattr(distance, "mixed", lambda *given: calls.append(given) or given)
    with pytest.raises(RuntimeError, match="by_distance"):  # the control: the operator is what runs
        figures(torch.compile(model.loss_sum, backend="aot_eager", fullgraph=True))
    assert len(calls) == 1
