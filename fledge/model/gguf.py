"""Reading llama.cpp's GGUF files of LLaMA's kind: metadata as a config.json, tensors by LLaMA's names.

The file is read within the bounds of its own size (see `fledge.text.gguf_file`); one tensor at a time becomes float32.
Source: gguf-py's constants (keys and names), llama.cpp's convert_hf_to_gguf.py (what is turned and permuted).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fledge.errors import CheckpointError, ConfigError, TokenizerError
from fledge.model.config import ModelConfig
from fledge.model.families import family
from fledge.model.families.family import Family, Weight, integer, number
from fledge.model.families.rotary import STRETCHED
from fledge.model.folder import put_parameter
from fledge.model.gguf_blocks import values
from fledge.model.gguf_quantized import quantized_maps_of
from fledge.model.names import expanded, their_shape, to_ours
from fledge.model.quantized_files import install
from fledge.model.transformer import Transformer, build
from fledge.nn.config import Rope, RopeScaling
from fledge.nn.rope import llama3, powers
from fledge.text.gguf_file import GgufFile

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # theirs -> our family
PAIRED = ("llama",)  # whose queries and keys turn channel pairs (c, c + 1)
KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
IGNORED = (
    "attention.value_length",
    "rope.dimension_count",
    "vocab_size",
    "rope.scaling.finetuned",
)  # checked or unused
OPTIONAL = ("attention.head_count_kv", "attention.key_length", "rope.freq_base")
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
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
        own_family, config = read_config(file)
        table = {gguf_name(weight.theirs): weight for weight in named(own_family, config)}
        check_names(file, set(table))
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
            for ours, value in to_ours(weight, tensor, shapes).items():
                put_parameter(model, ours, value)
        return model.eval()


def read_config(file: GgufFile) -> tuple[Family, ModelConfig]:
    """The family and config that the metadata describe: they become a config.json's entries."""
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ConfigError(f"{file.path.name}: general.architecture: expected one of {known}, got {architecture!r:.40}")
    own = {
        key.removeprefix(f"{architecture}."): value
        for key, value in file.metadata.items()
        if key.startswith(f"{architecture}.")
    }
    raw: dict[str, Any] = {theirs: own.pop(key) for key, theirs in KEYS.items() if key in own}
    for needed, theirs in KEYS.items():
        if needed not in OPTIONAL and theirs not in raw:
            raise ConfigError(f"{file.path.name}: {architecture}.{needed}: expected a number, found none; convert anew")
    raw |= scaling_entries(own, raw)
    strangers = [key for key in own if key not in IGNORED]
    if strangers:
        raise ConfigError(
            f"{file.path.name}: {architecture}.{strangers[0][:60]}: not supported; no part here does that"
        )
    raw["vocab_size"] = vocab_size(file, own)
    raw["tie_word_embeddings"] = "output.weight" not in file.tensors
    raw["attention_bias"] = "blk.0.attn_output.bias" in file.tensors
    for role in ("bos", "eos", "padding"):
        raw[f"{role[:3]}_token_id"] = file.metadata.get(f"tokenizer.ggml.{role}_token_id")
    own_family = family(ARCHITECTURES[architecture])
    config = own_family.config_of({**raw, "model_type": own_family.model_type})
    channels = config.stack.layers[0].mixer.head_channels
    for key in ("rope.dimension_count", "attention.value_length"):
        if integer(own, key, channels) != channels:
            raise ConfigError(
                f"{file.path.name}: {architecture}.{key}: expected {channels}, the channels of a head, got {own[key]}; "
                "no part here does that"
            )
    return own_family, with_frequencies(file, config)


def vocab_size(file: GgufFile, own: dict[str, Any]) -> int:
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise CheckpointError(f"{file.path.name}: expected a matrix token_embd.weight, found none")
    if integer(own, "vocab_size", table.shape[0]) != table.shape[0]:
        raise ConfigError(f"{file.path.name}: vocab_size: expected {table.shape[0]}, got {own['vocab_size']!r:.40}")
    return table.shape[0]


def scaling_entries(own: dict[str, Any], raw: dict[str, Any]) -> dict[str, Any]:
    """config.json's rotary scaling; takes its keys out of `own`."""
    factor, original = own.pop("rope.scaling.factor", None), own.pop("rope.scaling.original_context_length", None)
    # a factor without a kind is linear in llama.cpp
    kind = own.pop("rope.scaling.type", "none" if factor is None else "linear")
    if kind == "none":
        return {}
    if kind not in ("linear", "yarn"):
        raise ConfigError(f"rope.scaling.type: expected none, linear or yarn, got {kind!r:.40}")
    entries = {"rope_scaling": {"rope_type": kind, "factor": factor}}
    if kind in STRETCHED:  # the metadata have the length after scaling, config.json the one before
        stretch = number({"factor": factor}, "factor", 1.0)
        before = integer(raw, "max_position_embeddings", 2048) / max(1.0, stretch)
        return {**entries, "max_position_embeddings": max(1, int(before))}
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
    factors = torch.from_numpy(values(file, FREQUENCIES))
    plain = powers(position.theta, 2 * pairs)
    known = [scaling for scaling in LLAMA_3 if torch.allclose(plain / llama3(plain, scaling), factors, rtol=1e-5)]
    own = tuple(factors.tolist())
    context = config.context_tokens
    each = RopeScaling("longrope", 1.0, context, attention_factor=1.0, short_factors=own, long_factors=own)
    scaling = known[0] if known else each
    layers = tuple(replace(one, position=replace(position, scaling=scaling)) for one in config.stack.layers)
    return replace(config, decoder=replace(config.stack, layers=layers))


def named(own_family: Family, config: ModelConfig) -> list[Weight]:
    """The family's name table, queries and keys as GGUF has them."""
    mixer = config.stack.layers[0].mixer
    heads = {"q_proj": mixer.n_heads, "k_proj": mixer.n_kv_heads}
    table = []
    for weight in expanded(own_family, config):
        part = weight.theirs.split(".")[-2]
        if part in heads and own_family.name in PAIRED:
            weight = replace(weight, how="pairs", heads=heads[part], channels=mixer.head_channels)
        table.append(weight)
    return table


def gguf_name(theirs: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` as `blk.3.attn_q.weight`."""
    stem, _, end = theirs.rpartition(".")
    if stem.startswith("model.layers."):
        index, _, part = stem.removeprefix("model.layers.").partition(".")
        return f"blk.{index}.{NAMES[part]}.{end}"
    return f"{NAMES[stem]}.{end}"


def check_names(file: GgufFile, wanted: set[str]) -> None:
    missing = sorted(wanted - set(file.tensors))
    strangers = sorted(set(file.tensors) - wanted - {FREQUENCIES})
    if missing or strangers:
        what = f"missing {missing[0]!r}" if missing else f"unexpected {strangers[0][:60]!r}"
        raise CheckpointError(f"{file.path.name}: the tensors don't fit the metadata: {what}")
