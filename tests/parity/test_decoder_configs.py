"""config.json of decoder families: both spellings, every key of transformers' classes, hostile values, shards."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fledge.batch import OneDocument, one_document
from fledge.errors import CheckpointError, ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families import family
from fledge.model.folder import load_model, parse_config, save_model
from fledge.nn.config import Rope, RopeScaling
from tests.parity.decoder_cases import CASES, FULL, LAYERS, changed, sampled
from tests.parity.reference import limit, randomised, some_ids

INERT = {
    "training alone": ("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout",
                       "residual_dropout", "embedding_dropout", "classifier_dropout",
                       "initializer_range", "init_std", "dropout", "layerdrop", "output_router_logits"),
    "heads of other classes": ("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels",
                               "summary_first_dropout", "label2id", "id2label", "problem_type", "num_labels"),
    "how transformers computes, not what": ("dtype", "use_cache", "return_dict", "output_attentions",
                                            "output_hidden_states", "chunk_size_feed_forward", "slow_but_exact",
                                            "reorder_and_upcast_attn", "attention_softmax_in_fp32",
                                            "scale_attention_softmax_in_fp32", "pretraining_tp", "is_decoder"),
    "names": ("_name_or_path", "transformers_version", "architectures"),
    "said again by another key": ("_sliding_window_pattern", "max_window_layers", "use_sliding_window"),
}  # fmt: skip
UNREAD = {key for keys in INERT.values() for key in keys}
UNREAD_IN = {
    "llama-yarn": {"max_position_embeddings"},  # below the original length times the factor
    "phi3": {"original_max_position_embeddings"},  # of LongRoPE alone
    "phi3-part": {"original_max_position_embeddings"},
    "falcon": {"num_kv_heads"},  # with multi_query
    "falcon-grouped": {"multi_query"},  # with new_decoder_architecture
    "falcon-one-norm": {"multi_query"},
    "falcon-alibi": {"rope_parameters"},
    "opt-after": {"_remove_final_layer_norm"},  # which it has not
    "opt-narrow": {"_remove_final_layer_norm"},
    "qwen3-moe": {"intermediate_size", "sliding_window"},  # of layers without experts; as in qwen2
    "qwen3-moe-dense-first": {"sliding_window"},
    "qwen3-moe-step": {"sliding_window"},
    "qwen3-moe-window": {"intermediate_size"},
    "smollm3": {"no_rope_layer_interval", "sliding_window"},  # beside no_rope_layers; as in qwen2
    "smollm3-biased": {"no_rope_layer_interval", "sliding_window"},
    "olmo3": {"max_position_embeddings"},  # as in llama-yarn
    "qwen2": {"sliding_window"},  # with use_sliding_window false
    "qwen3": {"sliding_window"},
}
LARGE = ("query_pre_attn_scalar", "logit_scale", "final_logit_softcapping", "attn_logit_softcapping", "rms_norm_eps",
         "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "router_aux_loss_coef",
         "clip_qkv")  # fmt: skip
ZERO = ("rms_norm_eps", "router_jitter_noise", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon",
        "router_aux_loss_coef")  # fmt: skip
HOSTILE = (10**9, -1, 0, float("nan"), 1e999, "48", True, [48], {}, 10**400)


def raw_of(name: str, folder: Path) -> dict:
    case = CASES[name]
    config = case.config(**{**case.sizes, **case.more})
    config.save_pretrained(folder)
    return {**config.to_dict(), **json.loads((folder / "config.json").read_text())}


def other_values(value) -> list:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    return [value * 2 + 0.5] if isinstance(value, float) else [7, True, "x", 0.3] if value is None else ["x", 5]


def outcome(raw: dict) -> ModelConfig | None:
    try:
        return parse_config(raw)[1]
    except ConfigError:
        return None


@pytest.mark.parametrize("name", sampled(CASES))
def test_no_key_of_transformers_is_skipped_over_in_silence(name, tmp_path):
    raw = raw_of(name, tmp_path)
    base = parse_config(raw)[1]
    for key, value in raw.items():
        if key not in UNREAD and key not in UNREAD_IN.get(name, ()):
            for other in other_values(value):
                assert outcome({**raw, key: other}) != base, f"{key}: {other!r} changes nothing"


@pytest.mark.parametrize("name", sampled(CASES))
def test_hostile_values_are_refused_at_once(name, tmp_path):
    raw = raw_of(name, tmp_path)
    base = parse_config(raw)[1]
    began = time.process_time()
    keys = [key for key, value in raw.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    keys = [key for key in keys if key not in UNREAD and not key.endswith("_token_id")]
    for key in keys:
        for value in HOSTILE:
            found = outcome({**raw, key: value})  # anything but ConfigError fails here
            allowed = value == 10**9 and key in LARGE or value == 0 and key in ZERO and not isinstance(value, bool)
            assert found is None or found == base and key in UNREAD_IN.get(name, ()) or allowed, (key, value)
    for layers in ("num_hidden_layers", "n_layer"):
        if layers in raw:
            assert outcome({**raw, layers: 10**9}) is None
    assert time.process_time() - began < 0.05 * len(keys) * len(HOSTILE) + 1


@pytest.mark.parametrize("group", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(
    "value",
    [
        "yarn", ["yarn"], 4, {"rope_type": "yarn"}, {"rope_type": "mrope"}, {"rope_type": ["linear"]},
        {"rope_type": "linear"}, {"rope_type": "linear", "factor": 0}, {"rope_type": "linear", "factor": float("nan")},
        {"rope_type": "linear", "factor": "8"}, {"rope_type": "linear", "factor": 1e999},
        {"rope_type": "linear", "factor": 2.0, "alpha": 3}, {"rope_type": "default", "factor": 2.0},
        {"rope_type": "default", "mrope_section": [2, 2, 2]},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0},
        {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
        {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [float("nan")] * 6},
        {"rope_type": "longrope", "short_factor": [0] * 6, "long_factor": [1.0] * 6},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": -1},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10**12},
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1.0}, {"rope_type": "default", "partial_rotary_factor": 0.5},
    ],
)  # fmt: skip
def test_a_rotary_scaling_without_a_meaning_is_refused(group, value, tmp_path):
    raw = raw_of("llama", tmp_path)
    raw.pop("rope_parameters")
    assert outcome(raw) is not None
    if not (isinstance(value, dict) and value == {"rope_type": "yarn"}):
        assert outcome({**raw, group: value}) is None


def same_logits(model, folder: Path) -> None:
    ids = some_ids()
    with torch.no_grad():
        expected, got = model(ids).logits, load_model(folder)(one_document(ids), OneDocument())
    assert (expected - got).abs().max() <= limit(expected)


def test_experts_are_read_in_both_spellings(tmp_path):
    """transformers writes each expert by itself; in its memory, and in files of others, all stand in one tensor."""
    model = CASES["mixtral"].model()
    model.save_pretrained(tmp_path)
    first = load_model(tmp_path)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert "model.layers.0.mlp.experts.gate_up_proj" in state
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    for (name, a), (_, b) in zip(first.named_parameters(), load_model(tmp_path).named_parameters(), strict=True):
        assert torch.equal(a, b), name


def gemma3_with_images() -> transformers.PreTrainedModel:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 4}  # fmt: skip
    case = CASES["gemma3"]
    text = case.config(**{**case.sizes, **case.more})
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=99
    )
    config._attn_implementation = "eager"
    return randomised(transformers.Gemma3ForConditionalGeneration(config))


@pytest.mark.parametrize("spelling", ["published", "in memory"])
@torch.no_grad()
def test_gemma_3_with_images_gives_its_text_model_and_is_saved_as_such(spelling, tmp_path):
    model = gemma3_with_images()
    model.save_pretrained(tmp_path / "theirs")
    if spelling == "in memory":
        state = {name: value.clone() for name, value in model.state_dict().items() if name != "lm_head.weight"}
        assert "model.language_model.norm.weight" in state
        save_file(state, tmp_path / "theirs" / "model.safetensors", {"format": "pt"})
    mine, ids = load_model(tmp_path / "theirs"), some_ids(high=99)  # 99 stands for an image
    expected, got = model(ids).logits, mine(one_document(ids), OneDocument())
    assert (expected - got).abs().max() <= limit(expected)
    save_model(mine, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    assert type(again) is transformers.Gemma3ForCausalLM
    assert (expected - again(ids).logits).abs().max() <= limit(expected)


def test_a_classifier_beside_the_tower_is_no_language_model(tmp_path):
    """Its head would be left out without a word."""
    model = gemma3_with_images()
    classifier = transformers.Gemma3ForSequenceClassification(model.config)
    classifier.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="architectures: expected Gemma3ForConditionalGeneration, got 'Gemma3ForSeq"):
        load_model(tmp_path)


def test_a_stranger_beside_the_tower_for_images_is_refused(tmp_path):
    """The control: what is left out is named."""
    gemma3_with_images().save_pretrained(tmp_path)
    state = {name: value.clone() for name, value in load_file(tmp_path / "model.safetensors").items()}
    load_model(tmp_path)
    save_file({**state, "audio_tower.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="audio_tower"):
        load_model(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    for text in (None, [], {"num_hidden_layers": 0}):
        assert outcome({**raw, "text_config": text}) is None


@pytest.mark.parametrize("name", ["gpt-neox-serial", "qwen2-window", "gpt1"])
def test_a_tied_output_may_stand_in_the_file_and_prefixes_may_be_missing(name, tmp_path):
    model = CASES[name].model()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    output = "embed_out.weight" if name.startswith("gpt-neox") else "lm_head.weight"
    state[output] = model.get_input_embeddings().weight.detach().clone()
    prefix = model.base_model_prefix + "."
    save_file({key.removeprefix(prefix): value for key, value in state.items()}, tmp_path / "model.safetensors")
    same_logits(model, tmp_path)


def test_olmo_3_s_rotary_base_that_transformers_4_and_5_read_differently_is_refused(tmp_path):
    raw = {key: value for key, value in raw_of("olmo3", tmp_path).items() if key != "rope_parameters"}
    assert outcome({**raw, "rope_theta": 500000.0}) is not None
    with pytest.raises(ConfigError, match="rope_theta"):
        parse_config({**raw, "rope_theta": 10000.0})


def test_gemma_2_without_layer_types_has_a_window_in_every_other_layer(tmp_path):
    model = CASES["gemma2"].model()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    assert raw.pop("layer_types") != FULL
    path.write_text(json.dumps(raw))
    same_logits(model, tmp_path)
    changed(tmp_path, {"layer_types": FULL})
    with pytest.raises(AssertionError):  # the control
        same_logits(model, tmp_path)


@torch.no_grad()
def saved_and_opened(name: str, more: dict[str, Any], tmp_path: Path) -> None:
    """A folder of transformers, read and saved here, opens there with the same logits."""
    case = CASES[name]
    model = replace(case, more={**case.more, **more}).model()
    model.save_pretrained(tmp_path / "theirs")
    same_logits(model, tmp_path / "theirs")
    save_model(load_model(tmp_path / "theirs"), tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    same_logits(again, tmp_path / "theirs")


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo3"])
def test_a_model_whose_layers_all_see_everything_is_saved_with_the_window_that_transformers_wants(name, tmp_path):
    saved_and_opened(name, {"layer_types": FULL}, tmp_path)


def bases(whole: float, local: float) -> dict[str, Any]:
    """OLMo 3's rotary bases of the two kinds of layers."""
    kinds = {"full_attention": whole, "sliding_attention": local}
    return {"rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in kinds.items()}}


@pytest.mark.parametrize("kinds", [LAYERS, FULL, ["sliding_attention"] * 3])
@pytest.mark.parametrize(("whole", "local"), [(100.0, 100.0), (100.0, 10000.0)])
def test_olmo_3_is_saved_with_the_rotary_bases_of_its_layers(kinds, whole, local, tmp_path):
    saved_and_opened("olmo3", {**bases(whole, local), "layer_types": kinds}, tmp_path)


def test_a_new_olmo_3_has_the_rotary_base_it_was_told():
    shape = ShapeConfig("olmo3", width=48, layers=4, heads=4, context_tokens=64, vocab_size=64, rope_theta=1000.0)
    scaled = replace(shape, rope_scaling=RopeScaling("yarn", 4.0))
    own, layers = family("olmo3").new_config(shape), family("olmo3").new_config(scaled).stack.layers
    assert {layer.position for layer in own.stack.layers} == {Rope(1000.0)}
    assert [layer.position.scaling is None for layer in layers] == [layer.window is not None for layer in layers]


@pytest.mark.parametrize(
    ("name", "more"),
    [("gptj", {"rotary_dim": 2, "n_head": 1}), ("glm4", {"head_dim": 4, "num_key_value_heads": 1})],
)
def test_one_head_that_turns_one_pair_of_channels_is_read_and_saved(name, more, tmp_path):
    saved_and_opened(name, more, tmp_path)


@pytest.mark.parametrize("flags", [[0, 0, 0], [0, 1, 0]])
def test_a_smollm3_of_few_or_no_layers_with_positions_is_saved(flags, tmp_path):
    saved_and_opened("smollm3", {"no_rope_layers": flags}, tmp_path)
