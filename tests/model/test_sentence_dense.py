"""Dense layers behind a sentence model's pooling: by torch's own formula, in and out of folders."""

from __future__ import annotations

import json
import pickle

import pytest
import torch

from fledge.errors import CheckpointError, ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.init import initialise
from fledge.model.sentence import SentenceConfig, SentenceModel, load_sentence_model, save_sentence_model
from fledge.model.sentence_dense import ACTIVATIONS, DenseLayer
from fledge.model.transformer import build
from fledge.text.learners import train_wordpiece

TEXTS = ["a cat", "the dog and the cat", "no"]


def sentences(*dense: DenseLayer, normalise: bool = True) -> SentenceModel:
    tokenizer = train_wordpiece(["a cat and the dog, no more than that"], 60, lowercase=True)
    shape = ShapeConfig(
        "bert", width=16, layers=2, heads=2, context_tokens=32, vocab_size=tokenizer.vocab_size, task="base"
    )
    model = initialise(build(family("bert").new_config(shape), "cpu"), 1)
    return SentenceModel(model, tokenizer, SentenceConfig(("mean",), normalise, 32), dense)


def layer(n_in: int, n_out: int, activation: str = "Tanh", bias: bool = True) -> DenseLayer:
    generator = torch.Generator().manual_seed(n_in + n_out)
    weight = torch.randn(n_out, n_in, generator=generator)
    return DenseLayer(weight, torch.randn(n_out, generator=generator) if bias else None, activation)


@torch.no_grad()
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_layers_are_torch_s_and_come_back_from_a_folder(activation, tmp_path):
    one, two = layer(16, 12, activation), layer(12, 5, "Identity", bias=False)
    model = sentences(one, two)
    pooled = sentences(normalise=False).encode(TEXTS)
    first = torch.nn.Linear(16, 12)
    first.weight.copy_(one.weight), first.bias.copy_(one.bias)
    kind = getattr(torch.nn, activation)()
    expected = torch.nn.functional.normalize(kind(first(pooled)) @ two.weight.t(), dim=-1)
    found = model.encode(TEXTS)
    assert found.shape == (3, 5) and (found - expected).abs().max() < 1e-6
    assert (found - sentences(two.__class__(one.weight, one.bias, "Identity"), two).encode(TEXTS)).abs().max() > (
        1e-3 if activation != "Identity" else -1
    )  # the control: the activation counts
    save_sentence_model(model, tmp_path)
    kinds = [entry["type"].rpartition(".")[2] for entry in json.loads((tmp_path / "modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    assert torch.equal(load_sentence_model(tmp_path).encode(TEXTS), found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "evil.Module"}, "activation_function: expected one of Identity, Tanh"),
        ({"activation_function": ["x"]}, "activation_function: expected one of"),
        ({"in_features": 17}, "expected in_features 16"),
        ({"out_features": 10**12}, "out_features"),
        ({"out_features": -1}, "out_features: expected a whole number"),
        ({"out_features": 7}, "expected .* by config.json"),
        ({"bias": False}, "expected .* by config.json"),
        ({"bias": "yes"}, "bias: expected true or false"),
    ],
)
def test_a_dense_folder_that_lies_is_refused(change, message, tmp_path):
    save_sentence_model(sentences(layer(16, 5)), tmp_path)
    path = tmp_path / "2_Dense" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises((ConfigError, CheckpointError), match=message):
        load_sentence_model(tmp_path)


def test_a_pickled_dense_layer_is_refused(tmp_path):
    save_sentence_model(sentences(layer(16, 5)), tmp_path)
    (tmp_path / "2_Dense" / "model.safetensors").unlink()
    (tmp_path / "2_Dense" / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(CheckpointError, match="pickled weights"):
        load_sentence_model(tmp_path)
