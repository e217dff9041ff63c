"""Reading llama.cpp's GGUF files: metadata as a config.json, tensors by the names of `gguf_architectures`.

The file is read within the bounds of its own size (see `fledge.text.gguf_file`); one tensor at a time becomes float32.
Source: gguf-py's constants (keys and names), llama.cpp's convert_hf_to_gguf.py (what is turned and permuted).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fledge.errors import CheckpointError, ConfigError, TokenizerError
from fledge.model.config import ModelConfig
from fledge.model.families import family
from fledge.model.families.family import Weight, integer, number
from fledge.model.families.rotary import STRETCHED
from fledge.model.folder import put_parameter
from fledge.model.gguf_architectures import CHECKED, Architecture, architecture_of, gguf_name
from fledge.model.gguf_blocks import values
from fledge.model.gguf_quantized import quantized_maps_of
from fledge.model.names import their_shape, to_ours
from fledge.model.quantized_files import install
from fledge.model.transformer import Transformer, build
from fledge.nn.config import Rope, RopeScaling
from fledge.nn.rope import llama3, powers
from fledge.text.gguf_file import GgufFile

FREQUENCIES = "rope_freqs.weight"
LLAMA_3 = tuple(RopeScaling("llama3", factor, 8192) for factor in (8.0, 32.0))  # 3.1 and 3.3; 3.2


def load_gguf(path: str | Path, keep_quantized: bool = False) -> Transformer:
    """The model of a GGUF file, in float32, or with `keep_quantized` its Q4_0 and Q8_0 maps in 4 and 8 bits.

    Raises CheckpointError for a damaged file, one of another kind, or missing and strange tensors, and ConfigError for
    metadata that describe no model; before anything is allocated.
    """
    try:
        file = GgufFile(path)
    except TokenizerError as error:
        raise CheckpointError(str(error)) from None
    with file:
        architecture, config = read_config(file)
        table = {weight.theirs: weight for weight in table_of(architecture, config)}
        check_names(file, set(table), {FREQUENCIES} if architecture.factors else set())
        model = build(config)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        for name, weight in table.items():
            expected, got = their_shape(weight, shapes), file.tensors[name].shape
            if got != expected:
                raise CheckpointError(f"{name}: expected shape {list(expected)} by the metadata, got {list(got)}")
        for name, weight in table.items():
            maps = quantized_maps_of(file, name, weight, model, shapes) if keep_quantized else {}
            if maps:
                install(model, maps, torch.device("cpu"))
                continue
            tensor = torch.from_numpy(values(file, name))
            if architecture.whole_norms and is_norm(name):
                tensor = tensor - 1.0
            for ours, value in to_ours(weight, tensor, shapes).items():
                put_parameter(model, ours, value)
        return model.eval()


def read_config(file: GgufFile) -> tuple[Architecture, ModelConfig]:
    """The architecture that the metadata name and the config that they describe: they become a config.json's
    entries."""
    at = file.path.name
    architecture = architecture_of(file.metadata, at)
    prefix = f"{architecture.name}."
    own = {key.removeprefix(prefix): shortest(value) for key, value in file.metadata.items() if key.startswith(prefix)}
    window = own.get("attention.sliding_window")
    if isinstance(window, int) and window == 0:  # llama.cpp's word for a Phi-3 without a window, which Phi-4 is
        del own["attention.sliding_window"]
    raw: dict[str, Any] = {theirs: own.pop(key) for key, theirs in architecture.keys.items() if key in own}
    for needed, theirs in architecture.keys.items():
        if needed not in architecture.optional and theirs not in raw:
            raise ConfigError(f"{at}: {prefix}{needed}: expected a number, found none; convert anew")
    raw |= scaling_entries(own, raw, architecture.stretches)
    strangers = [key for key in own if key not in CHECKED]
    if strangers:
        raise ConfigError(f"{at}: {prefix}{strangers[0][:60]}: not supported; no part here does that")
    raw["vocab_size"] = vocab_size(file, own)
    found = "output.weight" not in file.tensors
    raw["tie_word_embeddings"] = {"always": True, "never": False}.get(architecture.tie, found)
    if architecture.partial:
        raw["partial_rotary_factor"] = share_turned(own, raw, at)
    raw |= {key: tensor in file.tensors for key, tensor in architecture.flags.items()} | architecture.implied(raw)
    for role in ("bos", "eos", "padding"):
        raw[f"{role[:3]}_token_id"] = file.metadata.get(f"tokenizer.ggml.{role}_token_id")
    own_family = family(architecture.family)
    config = own_family.config_of({**raw, "model_type": own_family.model_type})
    mixer = config.stack.layers[0].mixer
    for key in ("rope.dimension_count", "attention.value_length"):
        partial = architecture.partial and key == "rope.dimension_count"
        if integer(own, key, mixer.head_channels) != mixer.head_channels and not partial:
            raise ConfigError(
                f"{at}: {prefix}{key}: expected {mixer.head_channels}, the channels of a head, got {own[key]}; "
                "no part here does that"
            )
    if architecture.square and mixer.n_heads * mixer.head_channels != config.stack.width:
        raise ConfigError(
            f"{at}: {prefix}attention.key_length: expected {config.stack.width // max(1, mixer.n_heads)}, the width "
            f"divided by the heads, got {mixer.head_channels}; llama.cpp's {architecture.name} has no other"
        )
    return architecture, with_frequencies(file, config) if architecture.factors else config


def share_turned(own: dict[str, Any], raw: dict[str, Any], at: str) -> float:
    """The share of each head's channels that turn."""
    heads = integer(raw, "num_attention_heads")
    channels = integer(raw, "head_dim", integer(raw, "hidden_size") // heads if heads else 0)
    turned = integer(own, "rope.dimension_count", channels)
    if not 0 < turned <= channels:
        raise ConfigError(f"{at}: rope.dimension_count: expected 1..{channels} channels, got {turned}")
    return turned / channels


def shortest(value: Any) -> Any:
    """A float of the metadata as the shortest number that is the same in float32: 1e-5, not 9.99999974e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def vocab_size(file: GgufFile, own: dict[str, Any]) -> int:
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise CheckpointError(f"{file.path.name}: expected a matrix token_embd.weight, found none")
    if integer(own, "vocab_size", table.shape[0]) != table.shape[0]:
        raise ConfigError(f"{file.path.name}: vocab_size: expected {table.shape[0]}, got {own['vocab_size']!r:.40}")
    return table.shape[0]


def scaling_entries(own: dict[str, Any], raw: dict[str, Any], stretches: bool) -> dict[str, Any]:
    """config.json's rotary scaling; takes its keys out of `own`."""
    factor, original = own.pop("rope.scaling.factor", None), own.pop("rope.scaling.original_context_length", None)
    # a factor without a kind is linear in llama.cpp
    kind = own.pop("rope.scaling.type", "none" if factor is None else "linear")
    if not isinstance(kind, str) or kind not in ("none", "linear", "yarn"):
        raise ConfigError(f"rope.scaling.type: expected none, linear or yarn, got {kind!r:.40}")
    if kind == "none":
        return {}
    entries = {"rope_scaling": {"rope_type": kind, "factor": factor}}
    if kind in STRETCHED and stretches:  # the metadata have the length after scaling, config.json the one before
        stretch = number({"factor": factor}, "factor", 1.0)
        before = integer(raw, "max_position_embeddings", 2048) / max(1.0, stretch)
        return {**entries, "max_position_embeddings": max(1, int(before))}
    if kind not in STRETCHED:
        entries["rope_scaling"]["original_max_position_embeddings"] = original
    return entries


def with_frequencies(file: GgufFile, config: ModelConfig) -> ModelConfig:
    """The config with Llama 3's scaling, which a file holds as a factor for each pair of channels."""
    if FREQUENCIES not in file.tensors:
        return config
    layer = config.stack.layers[0]
    position = layer.position
    assert isinstance(position, Rope)
    pairs = layer.mixer.head_channels // 2
    if file.tensors[FREQUENCIES].shape != (pairs,) or position.scaling is not None:
        raise CheckpointError(f"{FREQUENCIES}: expected {pairs} factors and no other scaling")
    scaling = scaling_of(torch.from_numpy(values(file, FREQUENCIES)), position, config.context_tokens)
    layers = tuple(replace(one, position=replace(position, scaling=scaling)) for one in config.stack.layers)
    return replace(config, decoder=replace(config.stack, layers=layers))


def scaling_of(factors: Tensor, position: Rope, context: int) -> RopeScaling:
    """The scaling that divides frequencies by `factors`, one for each pair: a published Llama 3's where it is one."""
    plain = powers(position.theta, 2 * len(factors))
    for known in LLAMA_3:
        if torch.allclose(plain / llama3(plain, known), factors, rtol=1e-5):
            return known
    own = tuple(factors.tolist())
    return RopeScaling("longrope", 1.0, context, attention_factor=1.0, short_factors=own, long_factors=own)


def table_of(architecture: Architecture, config: ModelConfig) -> list[Weight]:
    """The name table of a file: its names with those of our parameters, queries and keys as the architecture has
    them. Raises ConfigError for a model with a part that no tensor holds."""
    parts: dict[str, list[str]] = {}
    for ours, _ in build(config).named_parameters():
        parts.setdefault(gguf_name(ours, architecture.parts), []).append(ours)
    mixer = config.stack.layers[0].mixer
    heads = {"attn_q": mixer.n_heads, "attn_k": mixer.n_kv_heads} if architecture.paired else {}
    table = []
    for theirs, names in parts.items():
        weight = Weight(theirs, tuple(names), "fused" if len(names) > 1 else "same")
        part = theirs.split(".")[-2]
        if part.endswith("_exps"):
            weight = replace(weight, how="stacked", size=len(names))
        if part in heads:
            weight = replace(weight, how="pairs", heads=heads[part], channels=mixer.head_channels)
        table.append(weight)
    return table


def is_norm(name: str) -> bool:
    return name.split(".")[-2].endswith("norm")


def check_names(file: GgufFile, wanted: set[str], more: set[str]) -> None:
    missing = sorted(wanted - set(file.tensors))
    strangers = sorted(set(file.tensors) - wanted - more)
    if missing or strangers:
        what = f"missing {missing[0]!r}" if missing else f"unexpected {strangers[0][:60]!r}"
        raise CheckpointError(f"{file.path.name}: the tensors don't fit the metadata: {what}")
