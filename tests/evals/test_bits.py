"""Bits per byte equal what a slow reading token by token gives."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fledge.batch import OneDocument, one_document
from fledge.data.document import Document
from fledge.engine.loaded import load
from fledge.errors import NonFiniteError
from fledge.evals import spans as spans_module
from fledge.evals.bits import DocumentBits, document_bits, document_ids
from fledge.evals.spans import Span, document_spans, score_spans
from fledge.evals.summary import summary
from fledge.text.tokenizer import byte_level, characters
from tests.evals.tiny import CONTEXT, save_tiny


@given(st.integers(0, 60), st.integers(1, 12), st.integers(1, 12))
def test_every_token_but_the_first_is_scored_once_with_enough_before_it(n, context, stride):
    stride = min(stride, context)
    scored = []
    for span in document_spans(list(range(n)), context, stride):
        assert list(span.ids) == list(range(span.ids[0], span.ids[-1] + 1))
        assert len(span.ids) <= context + 1
        for place in range(span.first, len(span.ids)):
            assert place == span.ids[place] or place > context - stride
            scored.append(span.ids[place])
    assert scored == list(range(1, n))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(save_tiny(tmp_path_factory.mktemp("model")))


def slow_nats(model, ids) -> float:
    """Nats of the last of ids, given the others."""
    logits = model.transformer(one_document(torch.tensor([list(ids[:-1])])), OneDocument())[0, -1].double()
    return float(torch.logsumexp(logits, 0) - logits[ids[-1]])


def some_text(n: int) -> str:
    return "".join(chr(32 + (n * i * i + i) % 90) for i in range(n))


def test_spans_of_many_lengths_at_once_equal_each_alone(model, monkeypatch):
    monkeypatch.setattr(spans_module, "BATCH_TOKENS", 100)
    monkeypatch.setattr(spans_module, "LOGITS_AT_ONCE", 2000)
    spans = [Span(tuple((7 * n + i * i) % 256 for i in range(n)), 1 + n % 3) for n in (4, 9, 9, 30, 49, 5, 49, 12)]
    each = [[slow_nats(model, span.ids[: n + 1]) for n in range(1, len(span.ids))] for span in spans]
    expected = [sum(nats[span.first - 1 :]) for nats, span in zip(each, spans, strict=True)]
    assert score_spans(model.transformer, spans) == pytest.approx(expected, abs=1e-3)
    one_off = [sum(nats[span.first :]) for nats, span in zip(each, spans, strict=True)]
    assert score_spans(model.transformer, spans) != pytest.approx(one_off, abs=1e-3)


@pytest.mark.parametrize("stride", [1, 10, 24, 48])
def test_a_long_document_is_charged_for_each_token_once(model, stride):
    text = some_text(130)
    ids = document_ids(model.tokenizer, text)
    assert ids[0] == model.tokenizer.bos_id
    expected = 0.0
    for place in range(1, len(ids)):
        window = max(0, -(-(place - CONTEXT) // stride)) * stride  # the first window that reaches this token
        expected += slow_nats(model, ids[window : place + 1]) / math.log(2)
    found = document_bits(model, [Document("a", text)], stride)
    assert found.bits == pytest.approx([expected], abs=1e-3)
    assert (found.n_bytes, found.n_tokens) == ([130], [130])


def test_documents_give_no_context_to_one_another(model):
    texts = [Document(str(n), some_text(n)) for n in (40, 100, 7)]
    together = document_bits(model, texts, 24).bits
    alone = [document_bits(model, [text], 24).bits[0] for text in texts]
    assert together == pytest.approx(alone, abs=1e-3)
    joined = document_bits(model, [Document("all", "".join(text.text for text in texts))], 24).bits[0]
    assert abs(joined - sum(together)) > 1


@pytest.mark.parametrize("make", [byte_level, lambda: characters(some_text(90))], ids=["bytes", "characters"])
def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary_a_token(tmp_path, make):
    """Also without <bos>, where the first token is charged that much by rule."""
    model = load(save_tiny(tmp_path / "zero", noise=0, tokenizer=make()))
    found = document_bits(model, [Document("a", some_text(80)), Document("b", some_text(1))], 24)
    vocabulary = model.transformer.config.vocab_size
    assert found.bits == pytest.approx([80 * math.log2(vocabulary), math.log2(vocabulary)], rel=1e-6)
    assert found.perplexity == pytest.approx(vocabulary, rel=1e-5)


def test_bytes_count_as_utf8(model):
    assert document_bits(model, [Document("a", "äöü😀")], 24).n_bytes == [10]


def test_a_model_with_damaged_weights_is_an_error_and_not_a_figure(tmp_path):
    damaged = load(save_tiny(tmp_path / "nan"))
    with torch.no_grad():
        damaged.transformer.embedding.weight[5] = math.nan
    with pytest.raises(NonFiniteError, match="the weights are damaged"):
        document_bits(damaged, [Document("a", "\x05" * 9)], 24)


def test_a_perplexity_beyond_a_float_is_infinite_and_shown_as_that():
    assert DocumentBits([1023.0], [1], [1]).perplexity == 2.0**1023
    assert DocumentBits([1e6], [1], [10]).perplexity == math.inf
    method = {"normaliser": "", "context_tokens": 1, "stride": 1, "first_token": ""}
    result = {"text": "", "split": "", "documents": 1, "bytes": 1, "tokens": 1, "bits_per_byte": 1.0, "scores": {}}
    for perplexity in (math.inf, "inf"):  # as computed, and as read back from strict JSON
        shown = summary({**result, "method": method, "perplexity_per_token": perplexity})
        assert "perplexity     inf per token" in shown
