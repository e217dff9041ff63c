"""Every case of the parity tests, whatever its kind: its config and its model in transformers, by name."""

from __future__ import annotations

import json
from typing import Any

import torch
import transformers

from fledge.batch import OneDocument, one_document
from fledge.model.families import FAMILIES
from fledge.model.transformer import Transformer
from tests.parity import decoder_cases, encoder_decoder_cases, encoders
from tests.parity.reference import some_ids

DECODERS, BOTH, ENCODERS = decoder_cases.CASES, encoder_decoder_cases.CASES, encoders.CASES
NAMES = (*DECODERS, *BOTH, *ENCODERS)


def config_of(name: str) -> transformers.PretrainedConfig:
    if name in DECODERS:
        case = DECODERS[name]
        return case.config(**{**case.sizes, **case.more})
    return BOTH[name]() if name in BOTH else encoders.config_of(name)


def raw_config(name: str) -> dict[str, Any]:
    """config.json with every key that transformers knows."""
    config = config_of(name)
    return json.loads(json.dumps({**config.to_dict(), **json.loads(config.to_json_string(use_diff=False))}))


def model_of(name: str) -> transformers.PreTrainedModel:
    """The model with an output over the vocabulary, every parameter random."""
    if name in DECODERS:
        return DECODERS[name].model()
    return encoder_decoder_cases.reference(name) if name in BOTH else encoders.reference(name)


def output_of(name: str, ours: Transformer) -> torch.Tensor:
    """Logits of our model of a case for some rows of ids."""
    if name in ENCODERS:
        return ours(*encoders.inputs(name, (40, 40))[1])
    tokens, layout = one_document(some_ids(2)), OneDocument()
    return (
        ours(tokens, layout, source=(one_document(some_ids(2, 33)), layout)) if name in BOTH else ours(tokens, layout)
    )


def families() -> dict[str, str]:
    """Name of a case -> our family that reads it."""
    by_type = {own.model_type: name for name, own in FAMILIES.items()}
    return {name: by_type[config_of(name).model_type] for name in NAMES}


def first_of_each_family() -> list[str]:
    """One case a family."""
    first: dict[str, str] = {}
    for name, own in families().items():
        first.setdefault(own, name)
    return list(first.values())


def in_the_spelling_of_transformers_4(raw: dict[str, Any]) -> dict[str, Any]:
    """config.json as transformers 4 wrote it: torch_dtype, rotary bases beside rope_scaling, rules for layers."""
    raw = dict(raw)
    raw["torch_dtype"] = raw.pop("dtype", None) or "float32"
    parameters = raw.pop("rope_parameters", None)
    if raw["model_type"] == "modernbert":
        raw |= {f"{ours}_rope_theta": parameters[f"{theirs}_attention"]["rope_theta"]
                for ours, theirs in (("global", "full"), ("local", "sliding"))}  # fmt: skip
        raw["global_attn_every_n_layers"] = 3
        del raw["layer_types"]
        return raw
    if raw["model_type"] in ("gemma3_text", "olmo3"):
        if raw["model_type"] == "gemma3_text":
            raw["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
        parameters = parameters["full_attention"]
    if parameters is None:
        return raw
    parameters = dict(parameters)
    neox = raw["model_type"] == "gpt_neox"
    raw["rotary_emb_base" if neox else "rope_theta"] = parameters.pop("rope_theta", 10000.0)
    share = parameters.pop("partial_rotary_factor", None)
    if share is not None:
        raw["rotary_pct" if neox else "partial_rotary_factor"] = share
    if parameters["rope_type"] != "default":
        raw["rope_scaling"] = {**parameters, "type": parameters["rope_type"]}
    return raw
