"""A vocabulary that grows or is filled up: new rows start as the mean, ties hold, the filling never shows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from fledge.batch import OneDocument, one_document
from fledge.errors import ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import load_model, read_config, save_model
from fledge.model.init import initialise
from fledge.model.resize import resize
from fledge.model.retask import retask
from fledge.model.transformer import Transformer, build

SIZE = {"width": 16, "layers": 2, "heads": 2, "context_tokens": 32, "vocab_size": 50}
VARIANTS = {"tied": ("gpt2", {}), "untied": ("llama", {"tie": False}), "with a bias": ("bert", {})}
IDS = torch.arange(5, 45).view(2, 20)  # no padding id among them: RoBERTa would not count it


def tiny(name: str, **more) -> Transformer:
    config = family(name).new_config(ShapeConfig(name, **{**SIZE, **more}))
    model = initialise(build(replace(config, special_ids={**config.special_ids, "eos": 49}), "cpu"), 3)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.3)
    return model.eval()


def logits_of(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model(one_document(IDS), OneDocument())


@pytest.mark.parametrize(("name", "more"), VARIANTS.values(), ids=VARIANTS)
def test_new_tokens_start_as_the_mean_and_old_ones_keep_their_logits(name, more, tmp_path):
    model = tiny(name, **more)
    before, rows = logits_of(model), model.embedding.weight.detach().clone()
    resize(model, 53)
    after = logits_of(model)
    assert after.shape[-1] == 53 and (after[..., :50] - before).abs().max() < 1e-6
    assert torch.equal(model.embedding.weight[:50], rows)
    assert (model.embedding.weight[50:] - rows.mean(0)).abs().max() < 1e-6
    assert (after[..., 50:] - before.mean(-1, keepdim=True)).abs().max() < 1e-5  # the product of a mean is the mean
    assert model.config.tie == (model.output is None)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.config == model.config and torch.equal(logits_of(again), after)
    kind = transformers.AutoModelForMaskedLM if name == "bert" else transformers.AutoModelForCausalLM
    theirs = kind.from_pretrained(tmp_path).eval()
    tied = theirs.get_output_embeddings().weight is theirs.get_input_embeddings().weight
    assert tied == model.config.tie and theirs.config.vocab_size == 53
    with torch.no_grad():
        assert (theirs(IDS).logits - after).abs().max() < 1e-5


@pytest.mark.parametrize(("name", "more"), VARIANTS.values(), ids=VARIANTS)
def test_rows_that_fill_up_are_never_predicted_or_trained_and_are_cut_when_saved(name, more, tmp_path):
    model = tiny(name, **more)
    before = logits_of(model)
    resize(model, 50, multiple=64)
    assert model.config.vocab_size == 64 and model.embedding.weight.shape[0] == 64
    assert torch.equal(logits_of(model), before)
    ones = torch.ones(IDS.shape)
    model.loss_sum(one_document(IDS), OneDocument(), IDS.roll(-1, 1), ones).backward()
    for parameter in (model.embedding.weight, model.output.weight if model.output is not None else None):
        assert parameter is None or not bool(parameter.grad[50:].any())
    save_model(model, tmp_path)
    assert read_config(tmp_path)[1].vocab_size == 50
    again = load_model(tmp_path)
    assert torch.equal(logits_of(again), before)
    resize(again, 52, multiple=8)  # once more, with two new tokens
    assert (again.config.vocab_size, again.config.tokens) == (56, 52)
    assert (logits_of(again)[..., :50] - before).abs().max() < 1e-6


def test_a_new_token_learns_in_both_places_of_a_tied_matrix():
    model = resize(tiny("gpt2"), 51).train()
    ids = torch.full((1, 6), 50)
    model.loss_sum(one_document(ids), OneDocument(), ids.roll(-1, 1), torch.ones(1, 6)).backward()
    assert bool(model.embedding.weight.grad[50].any())
    with torch.no_grad():
        model.embedding.weight[50] += 1.0
    assert model.output_matrix.data_ptr() == model.embedding.weight.data_ptr()


def test_a_smaller_vocabulary_forgets_special_ids_beyond_it():
    model = resize(tiny("gpt2"), 45)
    assert "eos" not in model.config.special_ids and logits_of(model).shape[-1] == 45


@pytest.mark.parametrize(("size", "multiple"), [(0, 1), (-3, 1), (1 << 30, 1), (10, 0), (True, 1)])
def test_sizes_that_make_no_sense_are_refused(size, multiple):
    with pytest.raises(ConfigError, match="vocab_size|multiple"):
        resize(tiny("gpt2"), size, multiple)


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "gpt2", "llama"])
def test_another_task_shares_the_body_and_opens_in_transformers(name, tmp_path):
    model = tiny(name)
    other = retask(model, "sequence", ("no", "maybe", "yes"), seed=4)
    assert other.embedding.weight.data_ptr() == model.embedding.weight.data_ptr()
    with torch.no_grad():
        body = model.hidden(one_document(IDS), OneDocument())
        assert torch.equal(other.hidden(one_document(IDS), OneDocument()), body)
        got = other.head("sequence", one_document(IDS), OneDocument())
    save_model(other, tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    theirs.config.pad_token_id = theirs.config.pad_token_id or 0
    assert theirs.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    with torch.no_grad():
        assert (theirs(IDS).logits - got).abs().max() < 1e-5
    again = retask(model, "sequence", ("no", "maybe", "yes"), seed=4)
    for (parameter, a), (_, b) in zip(other.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), parameter


def test_a_reward_head_is_one_label_and_a_pooler_is_kept():
    assert retask(tiny("llama"), "sequence", 1).config.heads[0].labels == 1
    bare = tiny("bert", task="base")
    other = retask(bare, "sequence")
    assert torch.equal(other.heads["sequence"].dense.weight, bare.heads["pooler"].dense.weight)
    back = retask(other, "base")
    assert torch.equal(back.heads["pooler"].dense.weight, bare.heads["pooler"].dense.weight)
    with pytest.raises(ConfigError, match="model.task"):
        retask(bare, "telepathy")
