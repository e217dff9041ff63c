"""`Encoder`: rows of token ids to a vector each, or to the numbers of a head of labels; and from a folder to one.

B rows, W numbers a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge.batch import Tokens, padded
from fledge.engine.load import READ
from fledge.engine.predict import kind_of
from fledge.engine.purpose import Purpose, purpose_of
from fledge.errors import ConfigError
from fledge.lineage import folder_digest, sha256_file
from fledge.model.sentence import SentenceConfig, SentenceModel, load_sentence_model
from fledge.model.sentence_steps import MODULES
from fledge.model.transformer import Transformer
from fledge.tune.load import find_served, load_served, served_folders, served_tokenizer


@dataclass(frozen=True)
class Encoder:
    """A model that answers a row by `width` numbers. `facts` say how a text becomes a row and what the numbers are:
    purpose, width, max_tokens, lower, prompt (before a text), unit (of length 1), labels, several."""

    facts: dict[str, Any]
    sentences: SentenceModel | None = None
    classifier: Transformer | None = None

    @torch.inference_mode()
    def numbers(self, rows: list[list[int]]) -> Tensor:
        """float32 [B, W] on the CPU: vectors, or a head's logits."""
        if self.sentences is not None:
            return self.sentences.vectors(rows).float().cpu()
        assert self.classifier is not None
        tokens, layout = padded(rows, self.classifier.config.special_ids.get("pad", 0))
        on_device: Tokens = tokens.to(self.classifier.embedding.weight.device)
        return self.classifier.head("sequence", on_device, layout).float().cpu()


def load_encoder(path: str | Path, pooling: str = "", threads: int = 0) -> Encoder:
    """What a folder's model answers texts with, by `purpose_of`. Raises ConfigError for a model that only writes text,
    and what loading raises."""
    if threads:
        torch.set_num_threads(threads)
    folder = find_vectors(path)
    purpose: Purpose = purpose_of(folder, pooling)
    if purpose == "classify":
        model = load_served(folder).eval()
        kind = kind_of(model.config)
        facts = {
            "purpose": purpose, "width": len(kind.names), "max_tokens": model.config.context_tokens,
            "labels": list(kind.names), "several": kind.several,
        }  # fmt: skip
        return Encoder(facts, classifier=model)
    sentences = load_vectors(folder, pooling)
    config = sentences.config
    facts = {
        "purpose": purpose, "width": sentences.width, "max_tokens": config.max_tokens, "lower": config.lower,
        "prompt": config.prompts.get(config.default_prompt, ""), "unit": config.normalise,
    }  # fmt: skip
    return Encoder(facts, sentences=sentences)


def load_vectors(path: str | Path, pooling: str = "", device: torch.device | str = "cpu") -> SentenceModel:
    """A folder's model as one that gives vectors: a sentence-transformers folder's own way, else pooled by `pooling`
    (mean where it is empty) to length 1. Raises ConfigError as `purpose_of`, and for a decoder without a pooling."""
    folder = find_vectors(path)
    if purpose_of(folder, pooling) == "generate":
        raise ConfigError(
            f"pooling: expected one for {Path(path).name}, which writes text; give pooling=mean or lasttoken"
        )
    if (folder / MODULES).is_file():
        return load_sentence_model(folder, device)
    model, tokenizer = load_served(folder, device), served_tokenizer(folder)
    if model.encoder is not None and model.decoder is not None:
        raise ConfigError(f"pooling: expected an encoder or a decoder alone, got {model.config.family}")
    return SentenceModel(model, tokenizer, SentenceConfig((pooling or "mean",), True, model.config.context_tokens))


def find_vectors(path: str | Path) -> Path:
    """The folder at `path`, itself or a run's: of sentence-transformers, of a model or of an adapter. Raises
    CheckpointError."""
    for folder in (Path(path), Path(path) / "model"):
        if (folder / MODULES).is_file():
            return folder
    return find_served(path)


def vector_files(path: str | Path) -> list[Path]:
    """Every file that the model at `path` is read from, its base's too where it is an adapter."""
    folder = find_vectors(path)
    inside = (folder / MODULES).is_file()
    folders = [folder] if inside else served_folders(folder)
    found = [one for top in folders for one in sorted(top.rglob("*") if inside else top.iterdir())]
    return [one for one in found if one.suffix in READ and one.is_file()]


def vectors_digest(path: str | Path) -> str:
    """Digest of all files that decide a text's vector, whatever their folder is called."""
    files = vector_files(path)
    return folder_digest({f"{place} {file.name}": sha256_file(file) for place, file in enumerate(files)})
