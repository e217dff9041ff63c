"""modules.json of a sentence-transformers folder: the steps from a text to its vector. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from fledge.config import read_json
from fledge.errors import ConfigError

MODULES = "modules.json"
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def steps_of(folder: Path) -> list[tuple[str, str]]:
    """(kind, folder) of each step in modules.json: a model, pooling, any dense layers, and normalising or not. Raises
    ConfigError."""
    if not (folder / MODULES).is_file():
        raise ConfigError(f"{folder}: expected a sentence-transformers folder with {MODULES}, found none")
    raw = read_json(folder / MODULES)
    steps = []
    for entry in raw if isinstance(raw, list) else [raw]:
        kind, path = (entry.get("type"), entry.get("path", "")) if isinstance(entry, dict) else (None, "")
        if not isinstance(kind, str) or not isinstance(path, str) or Path(path).is_absolute() or ".." in path:
            raise ConfigError(f"{MODULES}: expected a type and a folder inside for each step, got {str(entry)[:60]!r}")
        steps.append((kind.rpartition(".")[2], path))
    kinds = ", ".join(kind for kind, _ in steps)
    if not re.fullmatch("Transformer, Pooling(, Dense)*(, Normalize)?", kinds):
        raise ConfigError(
            f"{MODULES}: expected Transformer, Pooling, any Dense and at most Normalize, got {kinds[:80] or 'none'}"
        )
    return steps


def text_folder(folder: Path) -> Path:
    """The folder of model and tokenizer: `folder` itself, or where its modules.json says. Raises ConfigError."""
    return folder / steps_of(folder)[0][1] if (folder / MODULES).is_file() else folder
