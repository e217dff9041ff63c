"""`fledge convert`: other checkpoint formats into a folder that fledge and transformers open."""

from __future__ import annotations

import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge.errors import CheckpointError, ConfigError
from fledge.lineage import check_writable, make_folder, sha256_file
from fledge.log import say
from fledge.model.convert_config import ConvertConfig
from fledge.model.folder import load_model, read_config, save_model, write_json
from fledge.model.gguf import load_gguf
from fledge.model.llama2c import load_llama2c
from fledge.model.quantized_files import quantized_maps
from fledge.model.resize import check_fits
from fledge.model.safetensors_file import write_safetensors
from fledge.model.safetensors_header import DTYPES
from fledge.model.transformer import Transformer
from fledge.model.weight_files import (
    INDEX,
    PICKLE_INDEX,
    PICKLE_NAME,
    WEIGHTS,
    checked_index,
    is_pickle,
    pickled,
)
from fledge.text.gguf_file import MAGIC, GgufFile
from fledge.text.llama2c import from_llama2c
from fledge.text.tokenizer import Tokenizer, tokenizer_beside


def convert(config: ConvertConfig) -> dict[str, Any]:
    """Write `target` from `source`; gives its folder, family and number of parameters.

    Raises ConfigError if `target` holds something, CheckpointError for a source that can't be read safely.
    """
    source, target = Path(config.source), Path(config.target)
    if not source.exists():
        raise CheckpointError(f"{source}: expected a checkpoint, found nothing; check the path")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target}: expected a new or empty folder, found something there; choose another target")
    check_writable(target.parent)
    make_folder(target.parent)
    scratch = target.parent / f".new-{target.name}-{os.getpid()}"
    try:
        model, tokenizer = read_source(source, config, scratch)
        shutil.rmtree(scratch, ignore_errors=True)
        parents = {"source": sha256_file(source)} if source.is_file() else {}
        save_model(
            with_ids(as_type(model, config.dtype), tokenizer), scratch, tokenizer, parents,
            shard_bytes=config.shard_bytes,
        )  # fmt: skip
        if target.exists():
            target.rmdir()
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    n_parameters = sum(p.numel() for p in model.parameters())
    say(f"{target}: {model.config.family}, {n_parameters:,} parameters")
    return {"target": str(target), "family": model.config.family, "parameters": n_parameters}


def read_source(source: Path, config: ConvertConfig, scratch: Path) -> tuple[Transformer, Tokenizer | None]:
    if config.keep_quantized and not (source.is_file() and is_gguf(source)):
        raise ConfigError(f"keep_quantized: expected a .gguf file, got {source}; a quantized folder stays so by itself")
    if source.is_file():
        if is_gguf(source):
            model = load_gguf(source, config.keep_quantized)
            return model, read_tokenizer(config.tokenizer) or own_tokenizer(source)
        if is_pickle(source):
            raise pickled(source)
        if source.suffix != ".bin":
            raise CheckpointError(
                f"{source.name}: expected a llama2.c .bin file, a .gguf file or a model folder; give the folder that "
                "it is in"
            )
        return load_llama2c(source), read_tokenizer(config.tokenizer)
    folder = source
    has_pickle = (source / PICKLE_NAME).is_file() or (source / PICKLE_INDEX).is_file()
    if has_pickle and not list(source.glob("*.safetensors")) and config.trust_pickle:
        folder = unpickled(source, scratch)
    tokenizer = read_tokenizer(config.tokenizer)
    return load_model(folder, dtype=None), tokenizer or tokenizer_beside(source)


def as_type(model: Transformer, name: str) -> Transformer:
    """The model with its weights as the type called `name`; as they are for an empty one. Raises ConfigError for a
    quantized model, whose scales are float32."""
    if name and quantized_maps(model):
        raise ConfigError(f"dtype: expected none for a quantized model, got {name}; convert the original")
    return model.to(getattr(torch, name)) if name else model


def is_gguf(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == MAGIC


def own_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer inside a GGUF file, or None if there is none."""
    with GgufFile(path) as file:
        inside = any(key.startswith("tokenizer.ggml.tokens") for key in file.metadata)
    return Tokenizer.load(path) if inside else None


def read_tokenizer(path: str) -> Tokenizer | None:
    if not path:
        return None
    return from_llama2c(path) if path.endswith(".bin") else Tokenizer.load(path)


def unpickled(source: Path, scratch: Path) -> Path:
    """`source` with its pickled tensors rewritten as safetensors in `scratch`, file by file; torch's unpickler takes
    tensors only."""
    read_config(source)
    shard_of = {} if (source / PICKLE_NAME).is_file() else checked_index(source, PICKLE_INDEX, ".bin")
    scratch.mkdir(parents=True)
    shutil.copy(source / "config.json", scratch / "config.json")
    ours = {name: f"{Path(name).stem}.safetensors" for name in set(shard_of.values())} or {PICKLE_NAME: WEIGHTS}
    for name in sorted(ours):
        say(f"{name}: reading pickled tensors because trust_pickle is set; nothing but tensors is accepted")
        write_safetensors(scratch / ours[name], {key: t.clone() for key, t in plain_tensors(source / name).items()})
    if shard_of:
        write_json(scratch / INDEX, {"weight_map": {tensor: ours[name] for tensor, name in shard_of.items()}})
    return scratch


def plain_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled file by name. Raises CheckpointError for anything else in it."""
    refuse_packed(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types here, none of them ours
        raise CheckpointError(
            f"{path.name}: not a file of plain tensors ({error.__class__.__name__}); save its state dict alone"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(
            f"{path.name}: expected tensors by name, got {type(state).__name__}; save the state dict alone"
        )
    for name, value in state.items():
        check_tensor(f"{path.name}: {name[:80]!r}", value)
    return state


def refuse_packed(path: Path) -> None:
    """Raise CheckpointError for a zip file that unpacks to more than it holds: torch never packs."""
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                whole = sum(member.file_size for member in archive.infolist())
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
            raise CheckpointError(f"{path.name}: not a file that torch saved ({error}); save it anew") from None
        if whole > path.stat().st_size:
            raise CheckpointError(
                f"{path.name}: expected at most the file's {path.stat().st_size} bytes in it, got {whole}; torch saves "
                "tensors as they are"
            )


def check_tensor(at: str, value: Any) -> None:
    """Raise CheckpointError for what is no plain tensor that safetensors can hold, or claims more than it has."""
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{at}: expected a tensor, got {type(value).__name__}; save the state dict alone")
    if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in DTYPES.values():
        raise CheckpointError(f"{at}: expected a dense tensor of a common type, got {value.dtype} on {value.device}")
    if value.numel() * value.itemsize > value.untyped_storage().nbytes():
        raise CheckpointError(f"{at}: shape {list(value.shape)} claims more values than the file holds")


def with_ids(model: Transformer, tokenizer: Tokenizer | None) -> Transformer:
    """The model with the tokenizer's special ids in its config. Raises ConfigError if the vocabulary does not fit."""
    if tokenizer is None:
        return model
    check_fits(tokenizer, model.config.vocab_size)
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    known = {role: i for role, i in ids.items() if i is not None}
    model.config = replace(model.config, special_ids={**known, **model.config.special_ids})
    return model
