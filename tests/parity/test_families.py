"""What every family shares: a place in docs/families.md with tests behind it, folders of several files, and both
spellings of config.json."""

from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from fledge.errors import CheckpointError, ConfigError
from fledge.model.config import ModelConfig
from fledge.model.families import FAMILIES
from fledge.model.families.family import ACTIVATIONS
from fledge.model.folder import INDEX, WEIGHTS, load_model, parse_config, save_model
from fledge.nn.config import LayerConfig, Moe
from tests.conftest import ROOT
from tests.parity import cases, coverage
from tests.parity.decoder_cases import sampled
from tests.parity.reference import limit


@pytest.fixture(scope="module")
def found() -> Counter[tuple[str, str]]:
    return coverage.counted(coverage.collected())


def test_every_family_is_tested_for_all_that_the_page_says(found):
    assert coverage.gaps(found, list(FAMILIES)) == []


def test_a_family_without_a_test_and_a_reason_for_what_is_tested_are_found(found, monkeypatch):
    """The control."""
    fewer = Counter({key: n for key, n in found.items() if key != ("llama", "cache")})
    assert coverage.gaps(fewer, list(FAMILIES)) == ["llama: cache: no test shows it"]
    assert len(coverage.gaps(found, [*FAMILIES, "newborn"])) == len(coverage.COLUMNS)
    monkeypatch.setitem(coverage.NOT_APPLICABLE, "gpt2", {"cache": "none"})
    assert coverage.gaps(found, list(FAMILIES)) == ["gpt2: cache: tested, but said not to apply"]


def test_the_page_of_families_is_current(found):
    assert (ROOT / "docs" / "families.md").read_text(encoding="utf-8") == coverage.page(found), "run: make docs"


@pytest.mark.shows("shards")
@pytest.mark.parametrize("name", cases.first_of_each_family())
def test_several_files_with_an_index_are_read_and_written_like_one(name, tmp_path):
    model = cases.model_of(name)
    for folder, size in (("one", "1GB"), ("several", "40KB")):
        model.save_pretrained(tmp_path / folder, max_shard_size=size)
    assert (tmp_path / "several" / INDEX).is_file() and not (tmp_path / "several" / WEIGHTS).exists()
    one, several = load_model(tmp_path / "one"), load_model(tmp_path / "several")
    assert same(dict(one.named_parameters()), dict(several.named_parameters()))
    save_model(several, tmp_path / "ours", shard_bytes=40_000)
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 1
    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert same(model.state_dict(), again.state_dict())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_file_of_several_that_is_missing_is_named(tmp_path):
    """The control: all of them are read."""
    cases.model_of("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(Exception, match=lost.name):
        load_model(tmp_path)


@pytest.mark.parametrize("name", [name for name in cases.first_of_each_family() if name != "longformer"])
def test_what_config_json_leaves_out_is_as_transformers_has_it(name):
    """Names of token ids aside; a Longformer of its class's two segments is refused."""
    their_class = type(cases.config_of(name))
    whole = json.loads(their_class().to_json_string(use_diff=False))
    full, bare = parse_config(whole)[1], parse_config({"model_type": their_class.model_type})[1]
    assert replace(bare, special_ids={}) == replace(full, special_ids={})
    layers = next(
        key for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers") if key in whole
    )
    assert parse_config({"model_type": their_class.model_type, layers: 1})[1].stacks != full.stacks  # the control


@pytest.mark.shows("spelling")
@pytest.mark.parametrize("name", cases.NAMES)
def test_the_spelling_of_transformers_4_is_the_same_model(name):
    raw = cases.raw_config(name)
    old = cases.in_the_spelling_of_transformers_4(raw)
    assert "rope_parameters" not in old and "dtype" not in old
    base = parse_config(raw)[1]
    assert parse_config(old)[1] == base
    # and transformers takes it for that model too: its own reading of it, written as it does today
    theirs = type(cases.config_of(name)).from_dict(copy.deepcopy(old)).to_json_string(use_diff=False)
    assert parse_config(json.loads(theirs))[1] == base
    for key in ("rope_theta", "rotary_emb_base", "global_rope_theta", "rope_local_base_freq"):  # the control
        if key in old and not raw.get("alibi") and raw["model_type"] != "olmo3":
            assert parse_config({**old, key: 77.0})[1] != base, key


SILENT = {
    "tie_word_embeddings",  # a file's output matrix that differs from the embedding decides, as in transformers
    "max_position_embeddings",  # how long documents may be; with dynamic scaling also more
}


def other_values(value: Any) -> list[Any]:
    """Values that a key of config.json may have instead of `value`."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value // 2]
    if isinstance(value, float):
        return [value * 2 + 0.5]
    if isinstance(value, str):
        return ["relu", "silu", "gelu"] if value in ACTIVATIONS else []
    if isinstance(value, dict):
        return [{**value, key: other} for key, inside in value.items() for other in other_values(inside)]
    if isinstance(value, list):
        return [[*value[:i], other, *value[i + 1 :]] for i, one in enumerate(value) for other in other_values(one)]
    return []


def essence(config: ModelConfig) -> ModelConfig:
    """A config without what says nothing about the states: names, the longest document, the loss of a router."""

    def quiet(layer: LayerConfig) -> LayerConfig:
        return replace(layer, ffn=replace(layer.ffn, balance=0.0)) if isinstance(layer.ffn, Moe) else layer

    stacks = {name: replace(stack, layers=tuple(map(quiet, stack.layers))) for name, stack in config.stacks.items()}
    return replace(config, special_ids={}, heads=(), context_tokens=1, **stacks)


@pytest.mark.shows("control")
@torch.no_grad()
@pytest.mark.parametrize("name", sampled(cases.first_of_each_family(), ("gemma2", "falcon", "t5", "bigbird")))
def test_every_key_that_changes_the_config_changes_what_is_computed(name, tmp_path):
    """A value that is refused, or asks for tensors of other shapes, is not ignored either."""
    cases.model_of(name).save_pretrained(tmp_path)
    raw = {**cases.raw_config(name), **json.loads((tmp_path / "config.json").read_text())}
    before, base = cases.output_of(name, load_model(tmp_path)), parse_config(raw)[1]
    shown, silent = set(), set()
    for key, value in raw.items():
        for other in other_values(value):
            try:
                if essence(parse_config({**raw, key: other})[1]) == essence(base):
                    continue
                (tmp_path / "config.json").write_text(json.dumps({**raw, key: other}))
                after = cases.output_of(name, load_model(tmp_path))
            except (ConfigError, CheckpointError):
                continue
            differs = after.shape != before.shape or bool((after - before).abs().max() > limit(before))
            (shown if differs else silent).add(key)
    assert len(shown) > 1 and silent - shown <= SILENT
