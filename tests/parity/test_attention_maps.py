"""Attention maps against transformers' eager attentions, on tiny random models with every parameter randomised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fledge.batch import OneDocument, one_document, padded
from fledge.errors import ConfigError
from fledge.model.attention_maps import AttentionMaps, attention_maps, batch_maps
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families import family
from fledge.model.folder import load_model
from fledge.model.init import initialise
from fledge.model.positions_page import attempt, pair
from fledge.model.transformer import Transformer, build
from fledge.model.variants import ATTENTIONS
from fledge.text.tokenizer import byte_level
from tests.parity.reference import VOCAB, mask_of, randomised, some_ids

SMALL = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": (transformers.GPT2Config, {"n_embd": 48, "n_head": 4, "n_layer": 2, "n_positions": 64, **SMALL}),
    "llama": (transformers.LlamaConfig, {
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, **SMALL}),
    "bert": (transformers.BertConfig, {
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, **SMALL}),
    "t5": (transformers.T5Config, {
        "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
        "decoder_start_token_id": 0, "vocab_size": VOCAB}),
    "bart": (transformers.BartConfig, {
        "d_model": 48, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "encoder_attention_heads": 4, "decoder_attention_heads": 6, "vocab_size": VOCAB,
        "max_position_embeddings": 64}),
}  # fmt: skip
CLASSES = {"bert": transformers.AutoModelForMaskedLM, "t5": transformers.AutoModelForSeq2SeqLM,
           "bart": transformers.AutoModelForSeq2SeqLM}  # fmt: skip
LENGTHS = (21, 6, 13)


def reference(name: str) -> transformers.PreTrainedModel:
    config_class, numbers = CASES[name]
    make = CLASSES.get(name, transformers.AutoModelForCausalLM)
    return randomised(make.from_config(config_class(**numbers), attn_implementation="eager"), std=0.2)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_maps_equal_the_eager_attentions_of_transformers(name, tmp_path):
    model = reference(name)
    model.save_pretrained(tmp_path)
    mine, ids = load_model(tmp_path), some_ids(3, 21)
    rows = padded([ids[b, :n].tolist() for b, n in enumerate(LENGTHS)])
    mask = mask_of(LENGTHS, 21)
    if name in ("t5", "bart"):
        target = some_ids(3, 9, low=5)
        found = model(input_ids=rows[0].ids, attention_mask=mask, decoder_input_ids=target, output_attentions=True)
        expected = {"encoder": found.encoder_attentions, "decoder": found.decoder_attentions,
                    "cross": found.cross_attentions}  # fmt: skip
        got = batch_maps(mine, one_document(target), OneDocument(), rows)
        real = {"encoder": LENGTHS, "decoder": (9, 9, 9), "cross": (9, 9, 9)}
    else:
        found = model(rows[0].ids, attention_mask=mask, output_attentions=True)
        part = "encoder" if name == "bert" else "decoder"
        expected, real, got = {part: found.attentions}, {part: LENGTHS}, batch_maps(mine, *rows)
    assert set(got) == set(expected)
    for part, layers in expected.items():
        assert len(got[part]) == len(layers)
        for one, other in zip(got[part], layers, strict=True):
            for b, n in enumerate(real[part]):
                assert np.abs(one[b, :, :n] - other[b, :, :n].numpy()).max() <= 1e-6
                assert np.abs(one[b, :, :n].sum(-1) - 1).max() <= 1e-6
    first = next(iter(got.values()))
    assert np.abs(first[0] - first[1]).max() > 1e-2  # the control: layers differ


@torch.no_grad()
@pytest.mark.parametrize(
    ("attention", "causal"), [(a, c) for a in ATTENTIONS for c in (True, False) if not attempt("rope", a, c)]
)
def test_rows_of_every_attention_sum_to_one_and_hold_nothing_unseen(attention, causal):
    config = pair("rope", attention, causal)
    model = initialise(build(config, "cpu"), 3).eval()
    tokens = one_document(some_ids(1, 30, high=50))
    if attention == "linformer":
        with pytest.raises(ConfigError, match="no weights between tokens"):
            batch_maps(model, tokens, OneDocument())
        return
    for weights in next(iter(batch_maps(model, tokens, OneDocument()).values())):
        assert weights.shape == (1, 4, 30, 30)
        assert np.abs(weights.sum(-1) - 1).max() <= 2e-6
        assert not causal or not np.triu(weights, 1).any()


def tiny(name: str, **more: Any) -> tuple[Transformer, Any]:
    tokenizer = byte_level()
    shape = ShapeConfig(
        name, width=32, layers=2, heads=4, context_tokens=64, vocab_size=tokenizer.vocab_size, **more
    )  # fmt: skip
    config: ModelConfig = family(name).new_config(shape)
    return initialise(build(config, "cpu"), 3).eval(), tokenizer


def test_maps_of_a_text_come_with_its_tokens_and_leave_the_model_as_it_was():
    model, tokenizer = tiny("llama")
    tokens = one_document(torch.tensor([[1, 2, 3]]))
    before = model(tokens, OneDocument())
    maps = attention_maps(model, "héllo <|bos|>", tokenizer=tokenizer)
    assert isinstance(maps, AttentionMaps) and maps.encoder is None and maps.cross is None
    assert maps.tokens[:2] == [tokenizer.token_of(tokenizer.bos_id), "h"] and maps.source_tokens == []
    assert maps.decoder is not None and maps.decoder.shape == (2, 4, len(maps.tokens), len(maps.tokens))
    assert maps.decoder.dtype == np.float32
    assert torch.equal(before, model(tokens, OneDocument()))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_encoder_decoder_gives_three_maps_and_entropy_is_that_of_its_rows():
    model, tokenizer = tiny("t5")
    maps = attention_maps(model, "hello", "yes", tokenizer=tokenizer)
    assert maps.encoder is not None and maps.decoder is not None and maps.cross is not None
    assert (maps.encoder.shape[-1], maps.decoder.shape[-1]) == (6, 4)  # hello and eos, as in training
    assert maps.cross.shape[-2:] == (4, 6) and maps.texts("cross") == (maps.tokens, maps.source_tokens)
    row = maps.cross[1, 2].astype(float)
    expected = -(row * np.log2(row)).sum(-1).mean()
    assert maps.entropy("cross")[1, 2] == pytest.approx(expected)
    assert 0 < expected <= np.log2(6)


def test_what_cannot_be_looked_at_is_refused():
    model, tokenizer = tiny("llama")
    for fields, reason in (
        ({"text": "a", "target": "b"}, "expected an encoder-decoder"),
        ({"text": "a" * 100}, "at most 64 tokens"),
        ({"text": "a" * 30, "max_tokens": 20}, "at most 20 tokens"),
    ):
        with pytest.raises(ConfigError, match=reason):
            attention_maps(model, **fields, tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="expected a tokenizer"):
        attention_maps(model, "a")
