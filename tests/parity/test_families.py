"""Our families against transformers on tiny random models with every parameter randomised, fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from fledge.batch import OneDocument, one_document, padded
from fledge.model.folder import load_model, save_model

VOCAB = 101

LLAMA = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT2 = {
    "n_embd": 48, "n_head": 4, "n_layer": 3, "n_positions": 64, "vocab_size": VOCAB,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
CASES = {
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "gpt2-untied": lambda: transformers.GPT2Config(**GPT2, tie_word_embeddings=False),
    "gpt2-relu": lambda: transformers.GPT2Config(**{**GPT2, "activation_function": "relu", "n_inner": 80}),
    "llama-grouped": lambda: transformers.LlamaConfig(**LLAMA),
    "llama-tied": lambda: transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "llama-wide-heads": lambda: transformers.LlamaConfig(**LLAMA, head_dim=20, attention_bias=True, mlp_bias=True),
    "llama-relu": lambda: transformers.LlamaConfig(**LLAMA, hidden_act="relu"),
    "llama-gelu": lambda: transformers.LlamaConfig(**LLAMA, hidden_act="gelu"),
    "llama-theta": lambda: transformers.LlamaConfig(
        **LLAMA, rope_parameters={"rope_theta": 500.0, "rope_type": "default"}, rms_norm_eps=1e-3
    ),
}


def reference(name: str) -> transformers.PreTrainedModel:
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(CASES[name]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model


def some_ids(rows: int = 3, length: int = 40) -> torch.Tensor:
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(3))


def limit(expected: torch.Tensor) -> float:
    return 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.fixture(params=list(CASES))
def pair(request, tmp_path: Path):
    model = reference(request.param)
    model.save_pretrained(tmp_path / "theirs")
    return model, tmp_path / "theirs", tmp_path / "ours"


def test_a_folder_of_transformers_gives_its_logits(pair):
    model, theirs, _ = pair
    ids = some_ids()
    with torch.no_grad():
        expected, got = model(ids).logits, load_model(theirs)(one_document(ids), OneDocument())
    assert (expected - got).abs().max() <= limit(expected)


def test_padded_rows_give_the_logits_of_transformers_with_its_mask(pair):
    model, theirs, _ = pair
    ids = some_ids()
    lengths = (40, 7, 23)
    tokens, layout = padded([ids[b, :n].tolist() for b, n in enumerate(lengths)])
    mask = torch.tensor([[1] * n + [0] * (40 - n) for n in lengths])
    with torch.no_grad():
        expected = model(tokens.ids, attention_mask=mask).logits
        got = load_model(theirs)(tokens, layout)
    for b, n in enumerate(lengths):
        assert (expected[b, :n] - got[b, :n]).abs().max() <= limit(expected[b, :n])
    assert bool(torch.isfinite(got).all())


def test_a_folder_of_ours_opens_in_transformers_with_the_same_logits(pair):
    model, theirs, ours = pair
    save_model(load_model(theirs), ours)
    again = transformers.AutoModelForCausalLM.from_pretrained(ours).eval()
    ids = some_ids()
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)


def test_a_round_trip_through_both_folders_keeps_every_bit(pair, tmp_path):
    _, theirs, ours = pair
    first = load_model(theirs)
    save_model(first, ours)
    second = load_model(ours)
    assert first.config == second.config
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_one_step_gradients_equal_those_of_transformers(pair):
    model, theirs, _ = pair
    ids = some_ids()
    mine = load_model(theirs).train()
    targets, weight = torch.roll(ids, -1, 1), torch.ones(ids.shape)
    weight[:, -1] = 0
    mine.loss_sum(one_document(ids), OneDocument(), targets, weight).backward()
    logits = model(ids).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    expected = model.get_input_embeddings().weight.grad
    assert torch.linalg.vector_norm(mine.embedding.weight.grad - expected) <= 1e-5 * torch.linalg.vector_norm(expected)
    total = sum(float(p.grad.double().square().sum()) for p in mine.parameters())
    theirs_total = sum(float(p.grad.double().square().sum()) for p in model.parameters())
    assert total == pytest.approx(theirs_total, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama-theta", "rope_parameters", {"rope_theta": 10000.0, "rope_type": "default"}),
        ("llama-theta", "rms_norm_eps", 1e-6),
        ("llama-grouped", "hidden_act", "gelu_pytorch_tanh"),
        ("gpt2", "activation_function", "gelu"),
        ("gpt2", "layer_norm_epsilon", 1e-1),
    ],
)
def test_a_wrong_knob_in_the_config_changes_the_logits(name, key, value, tmp_path):
    """The control: parity would fail if a knob were ignored."""
    import json

    model = reference(name)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("rope_theta", None)
    config[key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    ids = some_ids()
    with torch.no_grad():
        expected, got = model(ids).logits, load_model(tmp_path)(one_document(ids), OneDocument())
    assert (expected - got).abs().max() > limit(expected)


def test_a_sharded_folder_loads_like_a_single_file(tmp_path):
    model = reference("llama-grouped")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    ids = some_ids()
    with torch.no_grad():
        expected, got = model(ids).logits, load_model(tmp_path)(one_document(ids), OneDocument())
    assert (expected - got).abs().max() <= limit(expected)


def test_the_spelling_of_transformers_4_is_read(tmp_path):
    import json

    model = reference("llama-theta")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["torch_dtype"] = config.pop("dtype", "float32")
    (tmp_path / "config.json").write_text(json.dumps(config))
    ids = some_ids()
    with torch.no_grad():
        expected, got = model(ids).logits, load_model(tmp_path)(one_document(ids), OneDocument())
    assert (expected - got).abs().max() <= limit(expected)
