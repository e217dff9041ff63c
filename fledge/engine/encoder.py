"""`Encoder`: rows of token ids to a vector each, to the numbers of a task head, or to the likeliest tokens for their
masks; and from a folder to one.

B rows, T tokens of a row, W numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fledge.batch import padded
from fledge.engine.fill import likeliest
from fledge.engine.load import READ
from fledge.engine.predict import TaskKind, kind_of, n_virtual, reader_of
from fledge.engine.purpose import HEAD_OF, Purpose, gives_share, purpose_of
from fledge.engine.row_queue import WaitingRow
from fledge.errors import ConfigError
from fledge.lineage import folder_digest, sha256_file
from fledge.model.sentence import SentenceConfig, SentenceModel, load_sentence_model
from fledge.model.sentence_steps import MODULES
from fledge.model.transformer import Transformer
from fledge.tune.load import find_served, load_served, served_folders, served_tokenizer

WIDTHS: dict[Purpose, int] = {"question-answering": 2, "score": 1, "multiple-choice": 1}
"""Numbers of a head without names for them."""


@dataclass(frozen=True)
class Encoder:
    """A model that answers a row by numbers. `facts` say how a text becomes a row and what the numbers are: purpose,
    width, max_tokens; of vectors lower, prompt (before a text), unit (of length 1); of a head labels, several, kinds
    and global_question (fledge/data/task_framing.py), share (of one number: it is told through a sigmoid)."""

    facts: dict[str, Any]
    sentences: SentenceModel | None = None
    classifier: Transformer | None = None
    kind: TaskKind | None = None

    def answers(self, rows: Sequence[WaitingRow]) -> list[np.ndarray]:
        """float32 [n, W] of each row, in one pass: its vector [1, W]; a head's numbers, [1, W] of a text's labels and
        [T, W] of a head on tokens; or, of a row that asks for `top_k` tokens, id and probability of each of its masks'
        likeliest [masks x top_k, 2], mask by mask (float32 holds every id exactly)."""
        if self.sentences is None:
            found = self.head(rows).numpy()
            return [one[: len(row.ids)] if found.ndim == 3 else one[None] for one, row in zip(found, rows, strict=True)]
        states, layout = self.sentences.states([list(row.ids) for row in rows])
        vectors = self.sentences.reduced(states, layout).float().cpu().numpy()
        return [
            self.filled(row, one) if row.top_k else vector[None]
            for row, one, vector in zip(rows, states, vectors, strict=True)
        ]

    @torch.inference_mode()
    def numbers(self, rows: list[list[int]]) -> Tensor:
        """float32 [B, W] on the CPU: vectors, or logits of texts' labels."""
        found = self.answers([WaitingRow("", number, tuple(ids)) for number, ids in enumerate(rows)])
        return torch.from_numpy(np.concatenate(found))

    @torch.inference_mode()
    def head(self, rows: Sequence[WaitingRow]) -> Tensor:
        """float32 [B, W], or [B, T, W] with what stands behind shorter rows, on the CPU."""
        assert self.classifier is not None and self.kind is not None
        tokens, layout = padded([list(row.ids) for row in rows], self.classifier.config.special_ids.get("pad", 0))
        if any(row.kinds for row in rows):
            kinds, _ = padded([list(row.kinds or (0,) * len(row.ids)) for row in rows])
            tokens = replace(tokens, kind=kinds.ids)
        on_device = tokens.to(self.classifier.embedding.weight.device)
        return self.classifier.head(self.kind.head, on_device, layout).float().cpu()

    @torch.inference_mode()
    def filled(self, row: WaitingRow, states_TD: Tensor) -> np.ndarray:
        """What `answers` says of a row with masks."""
        assert self.sentences is not None
        model, tokenizer = self.sentences.model, self.sentences.tokenizer
        masked = torch.tensor(row.ids, device=states_TD.device) == tokenizer.special["mask"]
        shares, ids = likeliest(model, states_TD[: len(row.ids)][masked], tokenizer.vocab_size, row.top_k)
        return torch.stack([ids.float(), shares], -1).flatten(0, 1).cpu().numpy()


def load_encoder(path: str | Path, pooling: str = "", threads: int = 0) -> Encoder:
    """What a folder's model answers texts with, by `purpose_of`. Raises ConfigError for a model that only writes text,
    and what loading raises."""
    if threads:
        torch.set_num_threads(threads)
    folder = find_vectors(path)
    purpose = purpose_of(folder, pooling)
    if purpose in HEAD_OF:
        model = load_served(folder).eval()
        kind = kind_of(model.config)
        reader = reader_of(model.config, served_tokenizer(folder), 0, kind, n_virtual(model))
        facts: dict[str, Any] = {
            "purpose": purpose, "width": WIDTHS.get(purpose) or len(kind.names), "max_tokens": reader.max_tokens,
            "labels": ["LABEL_0"] if purpose == "score" else list(kind.names), "several": kind.several,
            "kinds": reader.kinds, "global_question": reader.global_question,
            "share": purpose == "score" and gives_share(folder),
        }  # fmt: skip
        return Encoder(facts, classifier=model, kind=kind)
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
