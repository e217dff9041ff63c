"""Trial 27, every number of every family's config.json, one after another, made hostile: refused before anything is
allocated; what may stay is read by nothing, or is a number that the model can be computed with."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fledge.batch import OneDocument, one_document
from fledge.errors import CheckpointError, ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.families import FAMILIES, family
from fledge.model.folder import load_model, read_config, save_model
from fledge.model.generation import stop_ids
from fledge.model.init import initialise
from fledge.model.transformer import Transformer, build
from fledge.nn.config import RopeScaling
from fledge.text.tokenizer import characters
from tests.trials.peak import forget_peak, peak_bytes

TINY = ShapeConfig(width=16, layers=2, heads=2, context_tokens=32, vocab_size=20)
SHAPES = {name: replace(TINY, family=name) for name in FAMILIES if name not in ("palm", "fledge")}
SHAPES |= {
    "gpt_bigcode": replace(TINY, family="gpt_bigcode"),
    "llama-llama3": replace(TINY, rope_scaling=RopeScaling("llama3", 8.0, 16)),
    "llama-yarn": replace(TINY, rope_scaling=RopeScaling("yarn", 2.0, 16)),
    "bert-sequence": replace(TINY, family="bert", task="sequence", labels=3),
    "fledge": replace(TINY, position="alibi", norm_at="sandwich"),
}
HOSTILE = ("1000000000", "1000000000000", str(2**63), "-1", "0", "-2.5", "0.3", "1e-300", "3e29", '"7"', '""', "true",
           "null", "[1]", "[]", "{}", '{"a": 1}', "[[1]]", "7", "17")  # fmt: skip
UNREADABLE = ("NaN", "-Infinity", "1e999", "9" * 5000, "[" * 100_000, "[" * 100_000 + "]" * 100_000)
UNREAD = {
    "initializer_range", "attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout", "dropout",
    "dropout_rate", "embedding_dropout", "residual_dropout", "std", "layerdrop",
}  # fmt: skip
"""Numbers that training alone reads."""
UNREAD_IN = {
    "qwen2": {"sliding_window", "max_window_layers"},  # with use_sliding_window false
    "qwen3": {"sliding_window", "max_window_layers"},
    "qwen3_moe": {"intermediate_size", "sliding_window", "max_window_layers"},  # all layers have experts
    "phi3": {"original_max_position_embeddings"},  # of longrope alone
    "gpt_neox": {"partial_rotary_factor", "rotary_pct"},  # 0.3 turns as many of 8 channels as 0.25
    "llama-yarn": {"max_position_embeddings"},  # below the original length times the factor
    "deberta": {"max_relative_positions"},  # below 1: max_position_embeddings
    "deberta-v2": {"max_relative_positions"},
    "bert-sequence": {"LABEL_0", "LABEL_1", "LABEL_2"},  # said already by id2label
}

QUICK = ("llama", "gpt2", "llama-yarn", "t5", "bert", "modernbert", "fledge")

Keys = tuple[str | int, ...]


class Recording(dict[str, Any]):
    """A config.json that remembers which keys were asked for."""

    def __init__(self, raw: dict[str, Any]):
        super().__init__(raw)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)


def numbers(value: Any, at: Keys = ()) -> Iterator[Keys]:
    """Where a number stands in config.json, however deep."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(item, (*at, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield at


def text_with(raw: dict[str, Any], at: Keys, value: str) -> str:
    """config.json with `value`, as it is spelled, at a place."""
    changed = json.loads(json.dumps(raw))
    owner = changed
    for key in at[:-1]:
        owner = owner[key]
    owner[at[-1]] = "@@"
    return json.dumps(changed).replace('"@@"', value)


def tiny_folder(folder: Path, name: str) -> dict[str, Any]:
    """A tiny model's folder; gives its config.json."""
    shape = SHAPES[name]
    save_model(initialise(build(family(shape.family).new_config(shape), "cpu"), 1), folder)
    return json.loads((folder / "config.json").read_text())


@torch.no_grad()
def computes(model: Transformer) -> bool:
    tokens = one_document(torch.arange(1, 13)[None])
    both = model.config.encoder is not None and model.config.decoder is not None
    hidden = model.hidden(tokens, OneDocument(), source=(tokens, OneDocument()) if both else None)
    answers = [model.logits(hidden)] if model.config.lm else [model.head("sequence", tokens, OneDocument())]
    return all(bool(answer.isfinite().all()) for answer in (hidden, *answers))


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in SHAPES])
def test_trial_27_every_number_of_a_config_may_be_hostile(name, tmp_path):
    raw = tiny_folder(tmp_path, name)
    path = tmp_path / "config.json"
    own_family, base = read_config(tmp_path)
    recording = Recording(raw)
    own_family.config_of(recording)
    own = list(numbers(raw))
    asked = [(key,) for key in sorted(recording.asked) if (key,) not in own]
    assert computes(load_model(tmp_path))
    forget_peak()
    began, slowest, refused, unnoticed = peak_bytes(), 0.0, 0, set()
    for at in (*own, *asked):
        for value in (*HOSTILE, *(UNREADABLE if at == own[0] else ())):
            path.write_text(text_with(raw, at, value))
            start = time.process_time()
            try:
                _, config = read_config(tmp_path)
                if config == base:
                    if at in own and json.loads(value) not in (value_at(raw, at), None):
                        unnoticed.add(str(at[-1]))
                else:
                    assert computes(load_model(tmp_path)), (at, value)
            except (ConfigError, CheckpointError) as error:
                refused += 1
                assert len(str(error)) < 2000, (at, value)
            slowest = max(slowest, time.process_time() - start)
    assert slowest < 1 and peak_bytes() - began < 50 << 20
    assert refused > 5 * len(own)
    assert {key for key in unnoticed if not key.endswith("_token_id")} <= UNREAD | UNREAD_IN.get(name, set())


def value_at(raw: Any, at: Keys) -> Any:
    for key in at:
        raw = raw[key]
    return raw


def test_trial_27_the_controls_a_strange_but_computable_number_loads_and_an_overflow_is_noticed(tmp_path):
    raw = tiny_folder(tmp_path, "llama")
    (tmp_path / "config.json").write_text(text_with(raw, ("rms_norm_eps",), "0.3"))
    model = load_model(tmp_path)
    assert model.config.stack.norm.eps == 0.3 and computes(model)
    with torch.no_grad():
        model.embedding.weight.fill_(float("inf"))
    assert not computes(model)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_trial_27_a_huge_list_of_end_tokens_is_refused(name, tmp_path):
    tiny_folder(tmp_path, "llama")
    content = json.loads((tmp_path / name).read_text())
    for count, good in ((1024, True), (1025, False), (1_000_000, False)):
        (tmp_path / name).write_text(json.dumps({**content, "eos_token_id": list(range(count))}))
        if good:
            assert len(stop_ids(tmp_path, characters("abc"))) >= 1024
        else:
            with pytest.raises(ConfigError, match="eos_token_id: expected a token id or a list of at most 1024"):
                stop_ids(tmp_path, characters("abc"))


@pytest.mark.parametrize(
    ("added", "match"),
    [
        ('"vocab_size": 21', "'vocab_size' stands twice, with two values"),
        ('"model_type": "gpt2"', "'model_type' stands twice"),
        ('"more": {"a": 1, "a": 2}', "'a' stands twice"),
        ('"more": [' + "[]," * 5_000_000 + "[]]", "expected at most .* bytes of JSON"),
        (
            '"id2label": {' + ",".join(f'"{i}": "a"' for i in range(1_000_000)) + "}",
            "expected at most .* bytes of JSON",
        ),
    ],
    ids=["a number twice", "the kind twice", "a key within twice", "brackets", "a million labels"],
)
def test_trial_27_a_config_with_two_meanings_or_of_many_megabytes_is_refused_at_once(added, match, tmp_path):
    text = json.dumps(tiny_folder(tmp_path, "llama"))
    (tmp_path / "config.json").write_text(text[:-1] + ", " + added + "}")
    began = time.process_time()
    with pytest.raises(ConfigError, match=match):
        load_model(tmp_path)
    assert time.process_time() - began < 1
    (tmp_path / "config.json").write_text(text[:-1] + ', "vocab_size": 20}')  # the control: twice the same
    load_model(tmp_path)
