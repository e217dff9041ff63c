"""Answers side by side in packed rows: each one's log-probability is that of it alone, in pieces and with gradients."""

from __future__ import annotations

import pytest
import torch

from fledge.align import answers
from fledge.align.answers import answer_log_probabilities, answer_tokens
from fledge.batch import OneDocument, one_document
from fledge.data.keyed_batches import EveryRow
from fledge.data.preference_batches import PreferenceBatches, fitted
from fledge.text.chat import Rendered
from tests.compress.tiny import tiny

LENGTHS = [((4, 7), (4, 3)), ((2, 1), (2, 12)), ((9, 5), (9, 5))]  # tokens of prompt and of each answer


def rows() -> list[list[Rendered]]:
    numbers = torch.Generator().manual_seed(3)
    return [
        [
            Rendered(torch.randint(200, (prompt + own,), generator=numbers).tolist(), [False] * prompt + [True] * own)
            for prompt, own in pair
        ]
        for pair in LENGTHS
    ]


def batch():
    return EveryRow(PreferenceBatches(fitted(rows(), 64, True).items, 3, 0))[0]


def alone(model, one: Rendered, gradient: bool = False) -> torch.Tensor:
    ids = torch.tensor([one.ids])
    with torch.set_grad_enabled(gradient):
        log_p = model(one_document(ids[:, :-1]), OneDocument())[0].log_softmax(-1)
    found = log_p.gather(1, ids[0, 1:, None])[:, 0]
    return found[torch.tensor(one.trained[1:])].sum()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_an_answer_has_the_log_probability_that_it_has_alone(name):
    model = tiny(name)
    with torch.no_grad():
        got = answer_log_probabilities(model, batch(), 2)
    wanted = torch.stack([torch.stack([alone(model, one) for one in pair]) for pair in rows()])
    assert (got - wanted).abs().max() < 2e-5 * wanted.abs().max()
    assert (got - wanted.flip(1)).abs().max() > 0.1  # the control: which is which
    assert answer_tokens(batch(), 2).tolist() == [[7, 3], [1, 12], [5, 5]]


def test_pieces_of_the_vocabulary_product_change_neither_values_nor_gradients(monkeypatch):
    model, weights = tiny("llama"), torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.25]])
    found = []
    for size in (answers.CHUNK_TARGETS, 5):
        monkeypatch.setattr(answers, "CHUNK_TARGETS", size)
        model.zero_grad()
        log_p = answer_log_probabilities(model, batch(), 2)
        (weights * log_p).sum().backward()
        found.append((log_p.detach(), model.embedding.weight.grad.clone()))
    model.zero_grad()
    own = sum(w * alone(model, one, True) for pair, ws in zip(rows(), weights, strict=True)
              for one, w in zip(pair, ws, strict=True))  # fmt: skip
    own.backward()
    for log_p, gradient in found:
        assert torch.allclose(log_p, found[0][0], atol=1e-5)
        assert torch.allclose(gradient, model.embedding.weight.grad, atol=1e-4)
    assert float(model.embedding.weight.grad.abs().max()) > 0.1
