"""A sentence-transformers folder that is quantized, pruned or merged still gives vectors in its own way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fledge.compress.config import QuantizeConfig
from fledge.compress.prune_config import PruneConfig
from fledge.engine.encoder import load_vectors
from fledge.engine.purpose import gives_share
from fledge.lineage import verify
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import load_model, save_model
from fledge.model.init import initialise
from fledge.model.sentence import SentenceConfig, SentenceModel, save_sentence_model
from fledge.model.transformer import build
from fledge.recipes.merge import merge_adapter
from fledge.recipes.prune import prune_model
from fledge.recipes.quantize import quantize_model
from fledge.text.tokenizer import byte_level
from fledge.tune.attach import tune
from fledge.tune.config import MergeConfig, TuneConfig
from fledge.tune.folder import save_adapter

OWN = SentenceConfig(
    ("cls",), False, 24, lower=True, prompts={"query": "Find: "}, default_prompt="query", similarity="dot"
)
TEXTS = ["a Cat sits.", "stocks fell sharply", "x" * 100]


@pytest.fixture
def base(tmp_path) -> Path:
    tokenizer = byte_level()
    shape = ShapeConfig(
        "bert", width=64, layers=2, heads=2, context_tokens=64, vocab_size=tokenizer.vocab_size, task="base"
    )
    model = initialise(build(family("bert").new_config(shape), "cpu"), 1)
    save_sentence_model(SentenceModel(model, tokenizer, OWN), tmp_path / "base")
    return tmp_path / "base"


def quantized(base: Path, out: Path) -> None:
    quantize_model(QuantizeConfig(base, out, "rtn", 8), json=True)


def pruned(base: Path, out: Path) -> None:
    prune_model(PruneConfig(base, out, "magnitude", share=0.01), json=True)


def merged(base: Path, out: Path) -> None:
    config = TuneConfig("lora", 2, targets=("query",))
    save_adapter(tune(load_model(base), config), out.parent / "adapter", config, base)
    merge_adapter(MergeConfig(base, out.parent / "adapter", out), json=True)


@pytest.mark.parametrize("change", [quantized, pruned, merged])
def test_what_follows_the_model_is_kept(change, base, tmp_path):
    change(base, tmp_path / "out")
    before, after = load_vectors(base), load_vectors(tmp_path / "out")
    assert after.config == before.config == OWN
    verify(tmp_path / "out")
    alike = torch.cosine_similarity(before.encode(TEXTS), after.encode(TEXTS))
    assert float(alike.min()) > 0.999
    (tmp_path / "out" / "modules.json").unlink()  # the control
    assert (
        float(torch.cosine_similarity(before.encode(TEXTS), load_vectors(tmp_path / "out").encode(TEXTS)).min()) < 0.99
    )


@pytest.mark.parametrize("change", [quantized, pruned, merged])
@pytest.mark.parametrize("key", ["sentence_transformers", "sbert_ce_default_activation_function"])
def test_what_a_head_s_number_goes_through_is_kept(change, key, tmp_path):
    """A cross-encoder whose file names the identity tells its logits, not shares."""
    tokenizer = byte_level()
    shape = ShapeConfig(
        "bert", width=64, layers=1, heads=2, context_tokens=64, vocab_size=tokenizer.vocab_size, task="sequence",
        labels=1,
    )  # fmt: skip
    base, out = tmp_path / "base", tmp_path / "out"
    save_model(initialise(build(family("bert").new_config(shape), "cpu"), 1), base, tokenizer)
    raw = json.loads((base / "config.json").read_text())
    assert gives_share(base)  # the control
    named = "torch.nn.modules.linear.Identity"
    raw[key] = named if key.startswith("sbert") else {"activation_fn": named}
    (base / "config.json").write_text(json.dumps(raw))
    change(base, out)
    assert not gives_share(out)
    if change is merged:
        assert not gives_share(tmp_path / "adapter")
    else:
        verify(out)
    load_model(out)
