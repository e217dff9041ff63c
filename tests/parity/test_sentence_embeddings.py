"""Sentence embeddings: sentence-transformers' folders in and out, and the real all-MiniLM-L6-v2 to 1e-5.

The oracle is transformers with mean pooling and normalising; sentence-transformers itself where it is installed.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fledge.errors import CheckpointError, ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import load_model, parse_config
from fledge.model.init import initialise
from fledge.model.sentence import (
    POOLINGS,
    SentenceConfig,
    SentenceModel,
    load_sentence_model,
    pooled,
    save_sentence_model,
)
from fledge.model.transformer import build
from tests.sentences import expected_vectors, minilm_folder

TEXTS = [
    "The cat sits on the mat.",
    "A feline rests upon a rug.",
    "Stock prices fell sharply on Tuesday.",
    "",
    "Żółw, naïve café — 日本語 and emoji 🐢!",
    "word " * 400,
    "UPPER lower MiXeD 12345 hyphen-ated don't",
]


@pytest.fixture(scope="module")
def minilm() -> Path:
    return minilm_folder()


@pytest.fixture(scope="module")
def ours(minilm) -> SentenceModel:
    return load_sentence_model(minilm)


@pytest.fixture(scope="module")
def vectors(ours) -> torch.Tensor:
    return ours.encode(TEXTS, batch=3)


def test_all_minilm_l6_v2_gives_the_vectors_of_transformers(minilm, ours, vectors):
    assert ours.config == replace(SentenceConfig(), max_tokens=256)
    want, got = expected_vectors(minilm, TEXTS), vectors
    assert got.shape == (len(TEXTS), 384) and got.dtype == torch.float32
    assert (want - got).abs().max() < 1e-5
    assert (got.norm(dim=-1) - 1).abs().max() < 1e-6
    likeness = got @ got.t()
    assert likeness[0, 1] > 0.5 > 0.2 > likeness[0, 2]  # a cat is a feline, and no stock
    for place, text in enumerate(TEXTS):
        assert (ours.encode([text])[0] - got[place]).abs().max() < 1e-5  # its company changes nothing


def test_all_minilm_l6_v2_gives_the_vectors_of_sentence_transformers(minilm, vectors):
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(minilm), device="cpu").encode(TEXTS)
    assert (torch.tensor(theirs) - vectors).abs().max() < 1e-5


def test_a_sentence_folder_of_ours_is_read_back_and_opens_in_transformers(minilm, ours, vectors, tmp_path):
    save_sentence_model(ours, tmp_path)
    again = load_sentence_model(tmp_path)
    assert again.config == ours.config
    assert torch.equal(again.encode(TEXTS[:4]), ours.encode(TEXTS[:4]))
    assert (expected_vectors(tmp_path, TEXTS[:5]) - vectors[:5]).abs().max() < 1e-5
    pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    published = json.loads((minilm / "1_Pooling" / "config.json").read_text())
    assert {key: pooling[key] for key in published} == published
    library = importlib.util.find_spec("sentence_transformers")
    if library is not None:
        import sentence_transformers

        theirs = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
        assert (torch.tensor(theirs) - vectors).abs().max() < 1e-5


def test_cut_texts_other_poolings_and_no_normalising_change_the_vectors(ours, vectors):
    """The controls: parity would fail if one of them were ignored."""
    whole = vectors
    assert (whole[5] - ours.encode(["word " * 200])[0]).abs().max() > 1e-5
    for change in ({"pooling": ("cls",)}, {"pooling": ("max",)}, {"normalise": False}, {"max_tokens": 4}):
        other = SentenceModel(ours.model, ours.tokenizer, replace(ours.config, **change))
        assert (other.encode(TEXTS[:2]) - whole[:2]).abs().max() > 1e-3, change


def test_prompts_stand_before_the_text(ours):
    config = replace(ours.config, prompts={"query": "query: ", "none": ""}, default_prompt="query")
    asking = SentenceModel(ours.model, ours.tokenizer, config)
    assert torch.equal(asking.encode(TEXTS[:1]), ours.encode(["query: " + TEXTS[0]]))
    assert torch.equal(asking.encode(TEXTS[:1], prompt="none"), ours.encode(TEXTS[:1]))
    with pytest.raises(ConfigError, match="prompt"):
        asking.encode(TEXTS[:1], prompt="passage")


def test_each_pooling_is_what_its_name_says():
    from fledge.batch import padded

    states = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1))
    _, layout = padded([[0] * 5, [0] * 2, []])
    by_hand = {
        "cls": lambda x: x[0],
        "lasttoken": lambda x: x[-1],
        "max": lambda x: x.max(0).values,
        "mean": lambda x: x.mean(0),
        "mean_sqrt_len_tokens": lambda x: x.sum(0) / len(x) ** 0.5,
        "weightedmean": lambda x: (x * torch.arange(1, len(x) + 1)[:, None]).sum(0) / sum(range(1, len(x) + 1)),
    }
    assert set(by_hand) == set(POOLINGS)
    for name, function in by_hand.items():
        got = pooled(states, layout, name)
        for row, length in ((0, 5), (1, 2)):
            assert (got[row] - function(states[row, :length])).abs().max() < 1e-6, name
        assert not bool(got[2].any()), name


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("modules.json", [{"path": "", "type": "sentence_transformers.models.CLIPModel"}], "CLIPModel"),
        ("modules.json", [{"path": "../..", "type": "x.Transformer"}, {"path": "", "type": "x.Pooling"}], "inside"),
        ("modules.json", {"a": 1}, "type"),
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "pooling_mode"),
        ("1_Pooling/config.json", {"pooling_mode": []}, "pooling_mode"),
        ("1_Pooling/config.json", {"pooling_mode": "mean", "include_prompt": False}, "include_prompt"),
        ("sentence_bert_config.json", {"max_seq_length": -4}, "max_seq_length"),
        ("sentence_bert_config.json", {"max_seq_length": "many"}, "max_seq_length"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "default_prompt"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": ["a"], "prompts": {"a": "b"}},
            "default_prompt_name: expected a name or null",
        ),
    ],
)
def test_modules_that_are_not_understood_are_refused_by_name(tiny, tmp_path, file, content, said):
    shutil.copytree(tiny, tmp_path / "folder")
    (tmp_path / "folder" / file).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=said):
        load_sentence_model(tmp_path / "folder")


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "xlm-roberta"])
def test_length_and_case_are_read_under_the_names_that_older_versions_wrote(tiny, tmp_path, kind):
    shutil.copytree(tiny, tmp_path / "folder")
    (tmp_path / "folder" / "sentence_bert_config.json").unlink()
    assert load_sentence_model(tmp_path / "folder").config.max_tokens != 8  # the control
    stated = {"max_seq_length": 8, "do_lower_case": True}
    (tmp_path / "folder" / f"sentence_{kind}_config.json").write_text(json.dumps(stated))
    found = load_sentence_model(tmp_path / "folder").config
    assert (found.max_tokens, found.lower) == (8, True)


@pytest.fixture(scope="module")
def tiny(ours, tmp_path_factory) -> Path:
    """A sentence folder of a small random BERT that is read."""
    folder = tmp_path_factory.mktemp("tiny")
    shape = ShapeConfig("bert", width=4, layers=1, heads=1, context_tokens=64, vocab_size=30522, task="base")
    model = initialise(build(family("bert").new_config(shape), "cpu"), 1)
    save_sentence_model(SentenceModel(model, ours.tokenizer, replace(ours.config, max_tokens=64)), folder)
    assert load_sentence_model(folder).encode(["a", "b c"]).shape == (2, 4)
    return folder


def test_a_checkpoint_without_a_known_architecture_is_refused_with_the_reason(data_file, tmp_path):
    """RETSim: gated attention units over characters, published without config.json."""
    folder = data_file("ckpt_retsim")
    with pytest.raises(CheckpointError, match=r"config\.json beside model\.safetensors.*architectures are known"):
        load_model(folder)
    with pytest.raises(ConfigError, match="model_type"):
        parse_config({"model_type": "retsim"})
