"""What a folder is served for: text from a decoder, vectors of texts, or what a task head says. Imports no torch.

A folder of sentence-transformers and an encoder give vectors, and an encoder with a masked-language-model output fills
masks beside; a head on whole texts gives labels, or one number, one on words tags, one on spans places of answers, one
on choices which answer is right; what has a decoder writes text, unless a pooling is asked for by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from fledge.errors import CheckpointError, ConfigError
from fledge.model.config import ModelConfig
from fledge.model.families import FAMILIES
from fledge.model.sentence_steps import MODULES, POOLINGS
from fledge.tune.base import CONFIG, HEAD, base_of

Purpose = Literal[
    "generate", "embed", "classify", "score", "token-classification", "question-answering", "multiple-choice"
]

HEAD_OF: dict[Purpose, str] = {
    "classify": "sequence", "score": "sequence", "token-classification": "token", "question-answering": "span",
    "multiple-choice": "choice",
}  # fmt: skip
"""The purposes that a task head answers; `score` is a head of one number."""
ACTIVATIONS = ("sentence_transformers", "sbert_ce_default_activation_function")
"""Where config.json says what a head's number goes through: sentence-transformers' keys, new and old."""


def purpose_of(folder: Path, pooling: str = "") -> Purpose:
    """What the model of a folder (its own, or an adapter's) is served for. `pooling`: vectors, whatever it is.

    Raises CheckpointError for a folder without a readable config, ConfigError for a pooling that doesn't fit it.
    """
    check_pooling(pooling)
    if (folder / MODULES).is_file():
        if pooling:
            raise ConfigError(f"pooling: expected none, as {MODULES} in {folder.name} says how vectors are made")
        return "embed"
    heads: dict[str, int] = {}
    if not (folder / "config.json").is_file():
        heads = told_head(folder)
    config = told_config(folder)
    if config is None:  # of no known family: whoever loads it says so
        return "embed" if pooling else "generate"
    if pooling:
        if config.decoder is not None and config.encoder is not None:
            raise ConfigError(f"pooling: expected an encoder or a decoder alone, got {config.family}, which is both")
        return "embed"
    heads = heads or {head.name: head.labels for head in config.heads}
    if heads.get("sequence") == 1:
        return "score"
    for purpose, head in HEAD_OF.items():
        if head in heads:
            return purpose
    return "embed" if config.decoder is None else "generate"


def fills_masks(folder: Path) -> bool:
    """Whether the model of a folder that is served for vectors has an output over the vocabulary that was trained to
    fill masks. Raises as `purpose_of`."""
    if (folder / MODULES).is_file():
        return False
    config = told_config(folder)
    return config is not None and config.decoder is None and config.lm


def gives_share(folder: Path) -> bool:
    """Whether the one number of a folder's head is the logit of a share, to be told through a sigmoid: yes, as
    transformers, sentence-transformers and vLLM read it, unless the folder says that it is a regression's or names the
    identity. Raises CheckpointError."""
    if not (folder / "config.json").is_file() and told_head(folder):
        return False  # with a head of our own an adapter was tuned to numbers
    raw = read_object(described_in(folder) / "config.json")
    of_sentences, older = (raw.get(key) for key in ACTIVATIONS)
    named = of_sentences.get("activation_fn") if isinstance(of_sentences, dict) else None
    named = named or older or ""
    return raw.get("problem_type") != "regression" and not str(named).endswith("Identity")


def keep_activation(folder: Path, other: Path) -> None:
    """Let another folder's config.json say of its head's number what `folder`'s says, for whose weights became its.
    Raises CheckpointError."""
    there = read_object(folder / "config.json")
    kept = {key: there[key] for key in ACTIVATIONS if key in there}
    if kept:
        text = json.dumps(read_object(other / "config.json") | kept, indent=2)
        (other / "config.json").write_text(text + "\n", encoding="utf-8")


def check_pooling(pooling: str) -> None:
    """Raises ConfigError."""
    if pooling and pooling not in POOLINGS:
        raise ConfigError(f"pooling: expected one of {', '.join(POOLINGS)}, got {pooling!r:.40}")


def told_head(folder: Path) -> dict[str, int]:
    """The head that an adapter's folder tells of, and how many labels it has; none where it tells of none."""
    if not (folder / HEAD).is_file():
        return {}
    raw = read_object(folder / HEAD)
    labels = raw.get("labels")
    return {str(raw.get("task")): len(labels) if isinstance(labels, list) else int(labels == 1)}


def told_config(folder: Path) -> ModelConfig | None:
    """What a model's folder says of it, or that of an adapter's base. Raises CheckpointError, ConfigError."""
    return config_of(read_object(described_in(folder) / "config.json"))


def described_in(folder: Path) -> Path:
    """The folder whose config.json tells of a model: its own, or that of an adapter's base. Raises CheckpointError."""
    if (folder / "config.json").is_file():
        return folder
    base = base_of(read_object(folder / CONFIG), folder)
    return base if (base / "config.json").is_file() else base / "model"  # of a run


def config_of(raw: dict[str, Any]) -> ModelConfig | None:
    """The config of a known family; None for another. Raises ConfigError."""
    for family in FAMILIES.values():
        if family.model_type == raw.get("model_type"):
            return family.config_of(raw)
    return None


def read_object(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises CheckpointError."""
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON, found none ({type(error).__name__})") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: expected a mapping, got {type(raw).__name__}")
    return raw
