"""`fledge export`: a model folder as one GGUF file, which llama.cpp opens and computes the same with.

What a file's metadata can't say is refused: they are read back, before any weight is written, and must describe the
model that they were made of, its tokenizer included.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge.errors import ConfigError
from fledge.lineage import check_output_file, fsync_folder, make_folder, rename
from fledge.log import say
from fledge.model.config import ModelConfig
from fledge.model.export_config import ExportConfig
from fledge.model.families import family
from fledge.model.families.decoder import bare, difference
from fledge.model.families.family import Weight
from fledge.model.folder import find_model, load_model
from fledge.model.gguf import FREQUENCIES, is_norm, read_config, scaling_of, shortest, table_of
from fledge.model.gguf_architectures import Architecture, written_as
from fledge.model.gguf_pack import BLOCK, packed
from fledge.model.gguf_tokenizer import check_tokenizer, tokenizer_metadata
from fledge.model.names import their_shape, to_theirs
from fledge.model.quantized_files import quantized_maps
from fledge.model.resize import unpadded
from fledge.model.transformer import Transformer
from fledge.nn.config import Moe, Rope, RopeScaling
from fledge.nn.rope import llama3, powers
from fledge.text.gguf_file import GgufFile
from fledge.text.gguf_write import Entry, header
from fledge.text.tokenizer import Tokenizer

FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}  # general.file_type, by ggml's numbers
BLOCK_FORMAT = 2  # general.quantization_version


@dataclass(frozen=True)
class Plan:
    """What a file will hold: `metadata` before the tokenizer's, and each tensor's entry with the row that makes it
    (None: the rotary `factors`)."""

    architecture: Architecture
    config: ModelConfig
    metadata: dict[str, Any]
    tensors: tuple[tuple[Entry, Weight | None], ...]
    factors: Tensor | None


def export(config: ExportConfig, json: bool = False) -> dict[str, Any]:
    """Write `config.out`, whole or not at all; gives its path, architecture, type, numbers of parameters and bytes.

    Raises ConfigError for a model that llama.cpp has no equal of or a file that is there, TokenizerError for a
    tokenizer that GGUF can't say, and what `load_model` raises.
    """
    if config.out.exists():
        raise ConfigError(f"out: expected a new file, found {config.out}; choose another, or remove it")
    check_output_file(config.out)
    folder = find_model(config.model)
    tokenizer = Tokenizer.load(config.tokenizer or folder)
    model = load_model(folder, dtype=None)
    n_bytes = write_model(model, tokenizer, config.out, config.type, name=Path(config.model).resolve().name)
    architecture = written_as(model.config.family).name
    n_parameters = sum(p.numel() for p in model.parameters())
    if not json:
        say(f"{config.out}: {architecture}, {n_parameters:,} parameters, {config.type}, {n_bytes:,} bytes")
    return {
        "out": str(config.out),
        "architecture": architecture,
        "type": config.type,
        "parameters": n_parameters,
        "bytes": n_bytes,
        "bits_per_parameter": round(8 * n_bytes / n_parameters, 2),
    }


def write_model(model: Transformer, tokenizer: Tokenizer, path: Path, kind: str, name: str = "") -> int:
    """Write the model as a GGUF file of type `kind` beside `path`, then rename; gives its size in bytes."""
    refuse_parts(model)
    config, parameters = unpadded(model.config, {name: p.detach() for name, p in model.named_parameters()})
    plan = planned(config, {name: tuple(p.shape) for name, p in parameters.items()}, kind)
    words = {"general.name": name} if name else {}
    metadata = {**plan.metadata, **words, **tokenizer_metadata(tokenizer, config.vocab_size)}
    entries = [entry for entry, _ in plan.tensors]
    head = header(metadata, entries)
    n_bytes = len(head) + sum(entry.padded_bytes for entry in entries)
    make_folder(path.parent)
    scratch = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(scratch, "wb") as file:
            file.write(head)
            written = bodies(plan, parameters)
            if plan.factors is not None:
                file.write(next(written))  # the only values that a description depends on
            file.truncate(n_bytes)  # so that the table holds for a reader, before a weight is written
            file.flush()
            check_says_the_same(scratch, plan, tokenizer)
            for data in written:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        rename(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    fsync_folder(path.parent)
    return n_bytes


def refuse_parts(model: Transformer) -> None:
    """Raise ConfigError for what a model has beside plain weights and an output."""
    maps = quantized_maps(model)
    if maps:
        raise ConfigError(
            f"gguf: expected weights in floating point, got {len(maps)} quantized maps, whose scales GGUF's blocks "
            "can't hold; export the model that was quantized, with type=q8_0"
        )
    if not model.config.lm or model.config.heads:
        raise ConfigError("gguf: expected a language model with its output alone, got one with heads or without output")


def planned(config: ModelConfig, shapes: dict[str, tuple[int, ...]], kind: str) -> Plan:
    """What the file of a model holds. Raises ConfigError for a family that is not written."""
    architecture = written_as(config.family)
    if "attention.sliding_window" not in architecture.keys:
        config = without_idle_windows(config)
    try:
        own = family(architecture.family).write(replace(config, family=architecture.family))
    except ConfigError as error:
        place = str(error).partition(": ")[0]
        raise no_place(place, architecture) if place.startswith("model.") else error from None
    prefix = f"{architecture.name}."
    said = {f"{prefix}{key}": own[theirs] for key, theirs in architecture.keys.items() if own.get(theirs) is not None}
    metadata = {"general.architecture": architecture.name, "general.file_type": FILE_TYPES[kind]}
    metadata |= {"general.quantization_version": BLOCK_FORMAT} if kind == "q8_0" else {}
    metadata |= said | {f"{prefix}vocab_size": config.vocab_size}
    channels, rope, factors = config.stack.layers[0].mixer.head_channels, main_rope(config), None
    if rope is not None:
        metadata |= {f"{prefix}rope.dimension_count": rope.channels or channels}
        metadata |= {f"{prefix}attention.value_length": channels}
        metadata |= {f"{prefix}{key}": value for key, value in scaling_metadata(rope, config).items()}
        factors = factors_of(rope, channels, architecture)
    tensors: list[tuple[Entry, Weight | None]] = []
    if factors is not None:
        tensors.append((Entry(FREQUENCIES, tuple(factors.shape), "F32"), None))
    for weight in table_of(architecture, config):
        shape = their_shape(weight, shapes)
        tensors.append((Entry(weight.theirs, shape, type_of(weight.theirs, shape, kind)), weight))
    return Plan(architecture, config, metadata, tuple(tensors), factors)


def main_rope(config: ModelConfig) -> Rope | None:
    """The rotary position of the layers that see everything, where there are such."""
    found = [(layer.window is not None, layer.position) for layer in config.stack.layers]
    ropes = {windowed: position for windowed, position in found if isinstance(position, Rope)}
    return ropes.get(False, ropes.get(True))


def without_idle_windows(config: ModelConfig) -> ModelConfig:
    """The config without windows over at least the longest document, which hide nothing."""
    layers = tuple(
        replace(layer, window=None) if (layer.window or 0) >= config.context_tokens else layer
        for layer in config.stack.layers
    )
    return replace(config, decoder=replace(config.stack, layers=layers))


def scaling_metadata(position: Rope, config: ModelConfig) -> dict[str, Any]:
    """The metadata of rotary scaling, and the length of a document where it changes that."""
    scaling = position.scaling
    if scaling is None or scaling.kind in ("llama3", "longrope"):
        return {}
    if scaling.kind == "linear":
        told = {"type": "linear", "factor": scaling.factor}
        return {
            **{f"rope.scaling.{key}": value for key, value in told.items()},
            "context_length": config.context_tokens,
        }
    if scaling.kind == "yarn":
        told = {"type": "yarn", "factor": scaling.factor, "original_context_length": scaling.original_tokens}
        return {f"rope.scaling.{key}": value for key, value in told.items()}
    raise ConfigError(f"gguf: rope_scaling: expected linear, yarn or llama3, got {scaling.kind}; llama.cpp has no such")


def factors_of(position: Rope, channels: int, architecture: Architecture) -> Tensor | None:
    """Divisors of the frequencies, float32 [R/2], where the scaling is no more than that."""
    scaling = position.scaling
    if scaling is None or scaling.kind not in ("llama3", "longrope"):
        return None
    if not architecture.factors:
        raise ConfigError(
            f"gguf: rope_scaling: expected linear or yarn for llama.cpp's {architecture.name}, got others"
        )
    if scaling.kind == "llama3":
        plain = powers(position.theta, channels)
        return plain / llama3(plain, scaling)
    if scaling.short_factors != scaling.long_factors or scaling.attention_factor != 1.0:
        raise ConfigError(
            "gguf: rope_scaling: expected one set of factors for short and long documents, got two; export to "
            "llama.cpp is not supported"
        )
    return torch.tensor(scaling.short_factors, dtype=torch.float32)


def type_of(name: str, shape: tuple[int, ...], kind: str) -> str:
    """ggml's type of a tensor in a file of type `kind`."""
    if len(shape) < 2 or is_norm(name) or name.startswith("position_embd") or ".ffn_gate_inp." in name:
        return "F32"
    return "F16" if kind == "q8_0" and shape[-1] % BLOCK else kind.upper()


def bodies(plan: Plan, parameters: dict[str, Tensor]) -> Iterator[bytes]:
    """The bytes of each tensor in the file's order, one at a time."""
    for entry, weight in plan.tensors:
        if weight is None:
            assert plan.factors is not None
            tensor = plan.factors
        else:
            tensor = to_theirs(weight, parameters).float()
            if plan.architecture.whole_norms and is_norm(entry.name):
                tensor = tensor + 1.0
        yield packed(tensor, entry.type, f"gguf: {entry.name}").ljust(entry.padded_bytes, b"\0")


def check_says_the_same(path: Path, plan: Plan, tokenizer: Tokenizer) -> None:
    """Raise ConfigError or TokenizerError unless the file at `path` describes the model and tokenizer of the plan."""
    with GgufFile(path) as file:
        try:
            _, again = read_config(file)
        except ConfigError as error:
            raise ConfigError(f"gguf: {str(error).removeprefix(path.name + ': ')}") from None
        check_tokenizer(file.metadata, tokenizer, path.name)
    place = difference(comparable(again), comparable(as_read(plan)), "model")
    if place:
        raise no_place(place, plan.architecture)


def no_place(place: str, architecture: Architecture) -> ConfigError:
    return ConfigError(
        f"{place}: llama.cpp's {architecture.name} computes with another value, and its files have no place for this "
        "one; a model of another family, or trained with llama.cpp's value, can be exported"
    )


def as_read(plan: Plan) -> ModelConfig:
    """The plan's config with scaling by factors in the form that a reader gives it."""
    if plan.factors is None:
        return plan.config
    layers = []
    for layer in plan.config.stack.layers:
        assert isinstance(layer.position, Rope)
        scaling: RopeScaling = scaling_of(plan.factors, layer.position, plan.config.context_tokens)
        layers.append(replace(layer, position=replace(layer.position, scaling=scaling)))
    return replace(plan.config, decoder=replace(plan.config.stack, layers=tuple(layers)))


def comparable(config: ModelConfig) -> ModelConfig:
    """The config without its family's name and what is of training alone, its numbers as float32."""
    found: ModelConfig = in_float32(replace(bare(config), family=""))
    return found


def in_float32(value: Any) -> Any:
    if isinstance(value, Moe):
        value = replace(value, balance=0.0)  # of training alone
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: in_float32(getattr(value, field.name)) for field in fields(value)})
    if isinstance(value, tuple):
        return tuple(in_float32(item) for item in value)
    return shortest(value)
