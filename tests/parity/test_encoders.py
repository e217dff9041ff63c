"""Encoder families against transformers on tiny random models with every parameter randomised, fp32."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fledge.batch import GLOBAL, OneDocument, one_document
from fledge.errors import CheckpointError, ConfigError
from fledge.model.folder import load_model, read_config, save_model
from fledge.model.safetensors_file import write_safetensors
from tests.parity.encoders import (
    CASES,
    FAMILIES,
    class_of,
    config_of,
    ids_for,
    inputs,
    reference,
    states,
    their_states,
)
from tests.parity.reference import limit

SAMPLE = set(FAMILIES)
NAMES = [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """Copies, as the file is mapped and some tests write it again."""
    return {key: tensor.clone() for key, tensor in load_file(path).items()}


@pytest.fixture(scope="module", params=NAMES)
def pair(request, tmp_path_factory):
    """Name, their masked LM, its folder, ours."""
    folder = tmp_path_factory.mktemp(request.param)
    model = reference(request.param)
    model.save_pretrained(folder)
    return request.param, model, folder, load_model(folder)


WHOLE = pytest.param((40, 40), id="whole", marks=pytest.mark.shows("load", "logits"))
PADDED = pytest.param((40, 7, 23), id="padded", marks=pytest.mark.shows("padded"))


@torch.no_grad()
@pytest.mark.parametrize("lengths", [WHOLE, PADDED])
def test_logits_equal_those_of_transformers(pair, lengths):
    name, model, folder, ours = pair
    theirs, (tokens, layout) = inputs(name, lengths)
    expected, got = model(**theirs).logits, ours(tokens, layout)
    if "bigbird" in name and len(set(lengths)) > 1:  # transformers counts the blocks of the padded batch
        expected = each_alone(class_of(name, "ForMaskedLM").from_pretrained(folder).eval(), theirs, lengths)
    for b, n in enumerate(lengths):
        assert (expected[b, :n] - got[b, :n]).abs().max() <= limit(expected[b, :n])
    assert bool(torch.isfinite(got).all())


def each_alone(model, theirs: dict[str, torch.Tensor], lengths: tuple[int, ...]) -> torch.Tensor:
    """Their logits of every row computed by itself, the longest first: a short one leaves BigBird dense for ever."""
    logits = torch.zeros(*theirs["input_ids"].shape, model.config.vocab_size)
    for b, n in sorted(enumerate(lengths), key=lambda pair: -pair[1]):
        logits[b, :n] = model(**{key: value[b : b + 1, :n] for key, value in theirs.items()}).logits[0]
    return logits


@torch.no_grad()
def test_a_document_has_the_states_it_has_alone(pair):
    """Padding, and the length of the company, change nothing; for BigBird too."""
    name, _, _, ours = pair
    lengths = (40, 7, 23)
    _, (tokens, layout) = inputs(name, lengths)
    together = ours(tokens, layout)
    for b, n in enumerate(lengths):
        kind = None if tokens.kind is None else tokens.kind[b : b + 1, :n]
        alone = ours(replace(one_document(tokens.ids[b : b + 1, :n]), kind=kind), OneDocument())[0]
        assert (together[b, :n] - alone).abs().max() <= limit(alone)


@pytest.mark.shows("save")
@torch.no_grad()
def test_a_folder_of_ours_opens_in_transformers_with_the_same_logits(pair, tmp_path):
    name, model, _, ours = pair
    save_model(ours, tmp_path)
    again, info = class_of(name, "ForMaskedLM").from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    theirs, _ = inputs(name, (40, 40))
    assert torch.equal(model(**theirs).logits, again.eval()(**theirs).logits)
    second = load_model(tmp_path)
    assert second.config == ours.config
    for (parameter, a), (_, b) in zip(ours.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), parameter


@pytest.mark.shows("gradients")
@pytest.mark.parametrize("lengths", [(40, 40), (40, 7, 23)], ids=["whole", "padded"])
def test_one_step_gradients_equal_those_of_transformers(pair, lengths):
    name, model, folder, _ = pair
    if "bigbird" in name:  # transformers counts the blocks of the padded batch; see the test of documents alone
        lengths = (40,) * len(lengths)
    ours = load_model(folder)
    theirs, (tokens, layout) = inputs(name, lengths)
    weight = torch.rand(tokens.ids.shape, generator=torch.Generator().manual_seed(5))
    weight = weight * (tokens.doc >= 0)
    targets = tokens.ids.roll(1, 1)
    ours.loss_sum(tokens, layout, targets, weight).backward()
    model.zero_grad()
    losses = torch.nn.functional.cross_entropy(
        model(**theirs).logits.flatten(0, 1), targets.flatten(), reduction="none"
    )
    (losses * weight.flatten()).sum().backward()
    expected = model.get_input_embeddings().weight.grad
    embedding = ours.embedding.weight.grad
    pad = model.get_input_embeddings().padding_idx  # transformers gives that row no gradient from the inputs
    rows = [i for i in range(len(embedding)) if i != pad]
    assert (embedding - expected)[rows].norm() <= 1e-5 * expected[rows].norm()
    total = sum(float(p.grad.double().square().sum()) for p in ours.parameters() if p.grad is not None)
    theirs_total = sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None)
    assert total == pytest.approx(theirs_total, rel=2e-4)  # of squares: 1e-4 of the norm
    model.zero_grad()


KNOBS = {
    "bert": {"hidden_act": "relu", "layer_norm_eps": 0.5, "num_attention_heads": 2},
    "roberta": {"pad_token_id": 3, "layer_norm_eps": 0.5},
    "xlm-roberta": {"pad_token_id": 3, "layer_norm_eps": 0.5, "hidden_act": "relu"},
    "camembert": {"pad_token_id": 3, "layer_norm_eps": 0.5, "hidden_act": "relu"},
    "distilbert": {"activation": "relu", "n_heads": 2},
    "albert-groups": {"hidden_act": "relu", "num_hidden_layers": 5},
    "electra-narrow": {"hidden_act": "gelu", "layer_norm_eps": 0.5},
    "mpnet": {"layer_norm_eps": 0.5, "hidden_act": "relu"},
    "deberta": {"layer_norm_eps": 0.5},
    "deberta-v3": {"max_relative_positions": 12, "layer_norm_eps": 0.5},
    "deberta-v2-conv": {"conv_act": "relu"},
    "longformer": {"attention_window": [8, 12, 8], "layer_norm_eps": 0.5},
    "bigbird": {"num_random_blocks": 1, "block_size": 4, "attention_type": "original_full", "rescale_embeddings": True},
    "modernbert": {"local_attention": 5, "layer_types": ["full_attention"] * 3, "norm_eps": 0.5,
                   "classifier_activation": "relu", "hidden_activation": "relu",
                   "rope_parameters": {"full_attention": {"rope_theta": 10.0, "rope_type": "default"}}},
}  # fmt: skip


@pytest.mark.shows("control")
@torch.no_grad()
@pytest.mark.parametrize(("name", "key"), [(name, key) for name, knobs in KNOBS.items() for key in knobs])
def test_a_wrong_knob_in_the_config_changes_the_logits(name, key, tmp_path):
    """The control: parity would fail if a knob were ignored."""
    model = reference(name)
    model.save_pretrained(tmp_path)
    theirs, (tokens, layout) = inputs(name, (40, 40))
    expected = model(**theirs).logits
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, key: KNOBS[name][key]}))
    got = load_model(tmp_path)(tokens, layout)
    assert (expected - got).abs().max() > limit(expected)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_the_bare_model_is_read_with_and_without_its_prefix_and_pooler(name, tmp_path):
    model = reference(name, "Model")
    model.save_pretrained(tmp_path / "bare")
    theirs, (tokens, layout) = inputs(name, (40, 40))
    output = model(**theirs)
    ours = load_model(tmp_path / "bare")
    variants = {"bare": ours}
    state = {
        key: tensor.clone() for key, tensor in load_file(tmp_path / "bare" / "model.safetensors").items()
    }  # the file is mapped
    for variant, tensors in {
        "prefixed": {f"{model.base_model_prefix}.{key}": tensor for key, tensor in state.items()},
        "no pooler": {key: tensor for key, tensor in state.items() if "pooler" not in key},
    }.items():
        (tmp_path / variant).mkdir()
        (tmp_path / variant / "config.json").write_text((tmp_path / "bare" / "config.json").read_text())
        write_safetensors(tmp_path / variant / "model.safetensors", tensors)
        variants[variant] = load_model(tmp_path / variant)
    for variant, loaded in variants.items():
        got = loaded.hidden(tokens, layout)
        assert (output.last_hidden_state - got).abs().max() <= limit(output.last_hidden_state), variant
        assert ("pooler" in loaded.heads) == ("pooler_output" in output and variant != "no pooler")
        if "pooler" in loaded.heads:
            pooled = loaded.head("pooler", tokens, layout)
            assert (output.pooler_output - pooled).abs().max() <= limit(pooled)
        save_model(loaded, tmp_path / f"{variant} again")
        again = type(model).from_pretrained(tmp_path / f"{variant} again").eval()
        assert torch.equal(again(**theirs).last_hidden_state, output.last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("mark", [(0,), (0, 1, 9)], ids=str)
def test_global_tokens_equal_longformer_s(mark, tmp_path):
    model = reference("longformer")
    model.save_pretrained(tmp_path)
    theirs, (tokens, layout) = inputs("longformer", (40, 7, 23))
    kind = torch.zeros_like(tokens.ids)
    kind[:, list(mark)] = GLOBAL
    kind[tokens.doc < 0] = 0
    expected = model(**theirs, global_attention_mask=kind).logits
    got = load_model(tmp_path)(replace(tokens, kind=kind), layout)
    for b, n in enumerate((40, 7, 23)):
        assert (expected[b, :n] - got[b, :n]).abs().max() <= limit(expected[b, :n])
    plain = load_model(tmp_path)(tokens, layout)
    assert (plain - got)[0].abs().max() > limit(expected)  # the control


@torch.no_grad()
@pytest.mark.parametrize("length", [27, 28, 39, 41])
def test_bigbird_equals_transformers_at_lengths_around_its_blocks(length, tmp_path):
    """27 tokens of blocks of 3 are attended to in full, more are sparse; a last block may be partly filled."""
    reference("bigbird").save_pretrained(tmp_path)
    # transformers' model stays dense for ever once a short row came by
    model = class_of("bigbird", "ForMaskedLM").from_pretrained(tmp_path).eval()
    ids = ids_for(2, length)
    got = load_model(tmp_path)(one_document(ids), OneDocument())
    expected = model(ids).logits
    assert (expected - got).abs().max() <= limit(expected)


def test_old_names_and_the_tensors_of_other_classes_are_understood(tmp_path):
    """Published BERTs: LayerNorm.gamma and beta, and the pre-training heads whatever the class in config.json."""
    model = reference("bert", "ForPreTraining")
    model.save_pretrained(tmp_path)
    state = {
        key: tensor.clone() for key, tensor in load_file(tmp_path / "model.safetensors").items()
    }  # the file is mapped
    old = {key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
           for key, tensor in state.items()}  # fmt: skip
    old["bert.embeddings.position_ids"] = torch.arange(64.0)[None]
    old["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"].clone()
    write_safetensors(tmp_path / "model.safetensors", old)
    raw = json.loads((tmp_path / "config.json").read_text())
    theirs, (tokens, layout) = inputs("bert", (40, 40))
    output = model(**theirs)
    for architecture in ("BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction", "BertModel"):
        (tmp_path / "config.json").write_text(json.dumps({**raw, "architectures": [architecture]}))
        ours = load_model(tmp_path)
        with torch.no_grad():
            if ours.config.lm:
                assert (ours(tokens, layout) - output.prediction_logits).abs().max() <= limit(output.prediction_logits)
            if "next_sentence" in ours.heads:
                got = ours.head("next_sentence", tokens, layout)
                assert (got - output.seq_relationship_logits).abs().max() <= limit(got)
    write_safetensors(tmp_path / "model.safetensors", {**old, "bert.encoder.layer.0.surprise": torch.ones(1)})
    with pytest.raises(CheckpointError, match="surprise"):
        load_model(tmp_path)


def test_a_sharded_folder_of_transformers_4_is_read(tmp_path):
    for name in ("bert", "modernbert"):
        model = reference(name)
        folder: Path = tmp_path / name
        model.save_pretrained(folder, max_shard_size="40KB")
        assert (folder / "model.safetensors.index.json").is_file()
        raw = json.loads((folder / "config.json").read_text())
        raw["torch_dtype"] = raw.pop("dtype", "float32")
        if name == "modernbert":
            raw.pop("layer_types"), raw.pop("rope_parameters")
            raw |= {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
        (folder / "config.json").write_text(json.dumps(raw))
        theirs, (tokens, layout) = inputs(name, (40, 40))
        with torch.no_grad():
            expected = their_states(model(**theirs))
            assert (expected - states(load_model(folder), tokens, layout)).abs().max() <= limit(expected)


HOSTILE = (10**9, -1, float("nan"), "twelve", True, [3], None, 1e999, {})
SIZES = ("num_hidden_layers", "n_layers", "hidden_size", "dim", "num_attention_heads", "n_heads", "intermediate_size",
         "vocab_size", "max_position_embeddings", "layer_norm_eps", "norm_eps", "type_vocab_size", "hidden_act",
         "attention_window", "block_size", "num_random_blocks", "position_buckets", "max_relative_positions",
         "pos_att_type", "conv_kernel_size", "embedding_size", "num_hidden_groups", "layer_types", "rope_parameters",
         "local_attention", "pad_token_id", "architectures", "id2label", "problem_type", "num_labels",
         "tie_word_embeddings")  # fmt: skip


@pytest.mark.parametrize("name", ("deberta-v2-conv", *FAMILIES))
def test_hostile_numbers_are_refused_before_anything_is_allocated(name):
    """Either refused as ConfigError, or a value that config.json may have (null is its default)."""
    import time

    from fledge.model.folder import parse_config

    raw = {**config_of(name).to_dict(), "architectures": [class_of(name, "ForSequenceClassification").__name__]}
    refused = 0
    began = time.process_time()
    for key in (key for key in SIZES if key in raw):
        for value in HOSTILE:
            try:
                parse_config({**raw, key: value})
            except ConfigError:
                refused += 1
    assert refused > 50
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("bert", "is_decoder", True),
        ("bert", "position_embedding_type", "relative_key"),
        ("albert", "inner_group_num", 2),
        ("mpnet", "relative_attention_num_buckets", 64),
        ("deberta", "talking_head", True),
        ("deberta-v3", "attention_head_size", 16),
        ("deberta-v3", "pos_att_type", ["p2p"]),
        ("longformer", "type_vocab_size", 2),
        ("longformer", "attention_window", [8, 7, 8]),
        ("modernbert", "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("bert", "architectures", ["BertLMHeadModel"]),
    ],
)
def test_a_knob_that_is_not_implemented_is_refused_by_name(name, key, value, tmp_path):
    config_of(name).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**raw, key: value}))
    with pytest.raises(ConfigError, match=key):
        read_config(tmp_path)
