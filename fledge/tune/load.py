"""A model folder, or a base with the adapter of an adapter folder in its weights: whatever is served."""

from __future__ import annotations

from pathlib import Path

import torch

from fledge.model.folder import find_model, load_model
from fledge.model.generation import stop_ids
from fledge.model.transformer import Transformer
from fledge.text.chat import chat_renderer
from fledge.text.tokenizer import Tokenizer
from fledge.tune.folder import adapter_folder, base_folder, load_adapter
from fledge.tune.merge import served
from fledge.tune.told_head import with_head_of


def find_served(path: str | Path) -> Path:
    """The model folder or adapter folder at `path`, itself or in a run folder. Raises CheckpointError."""
    return adapter_folder(path) or find_model(path)


def load_served(path: str | Path, device: torch.device | str = "cpu") -> Transformer:
    """The model of a folder; of an adapter's, its base with the adapter in its weights, or beside them where they
    can't be merged. Raises ConfigError and CheckpointError as `load_model` and `load_adapter` do."""
    folder = adapter_folder(path)
    if folder is None:
        return load_model(path, device)
    base = base_folder(folder)
    return served(load_adapter(with_head_of(load_model(base, device), folder), folder, base))


def tokenizer_folder(path: str | Path) -> Path:
    """The folder whose tokenizer is served: an adapter's own, where it brings one, else its base's."""
    folder = find_served(path)
    if adapter_folder(folder) is None or (folder / "tokenizer.json").is_file():
        return folder
    return base_folder(folder)


def served_tokenizer(path: str | Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder(path))


def served_stop_ids(path: str | Path, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end an answer; of an adapter's those of its base and of its own chat format. Raises ConfigError."""
    folder = find_served(path)
    if adapter_folder(folder) is None:
        return stop_ids(folder, tokenizer)
    renderer = chat_renderer(tokenizer)
    return stop_ids(base_folder(folder), tokenizer) | frozenset(() if renderer is None else renderer.stop_ids)


def served_folders(path: str | Path) -> list[Path]:
    """The folders that are read to serve what is at `path`."""
    folder = find_served(path)
    return [folder] if adapter_folder(folder) is None else [folder, base_folder(folder)]
