"""Which text is evaluated: a file, a folder, or the held-out documents of a dataset folder. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fledge.data.config import PYTHON
from fledge.data.corpus import CORPUS, read_corpus
from fledge.data.document import Document
from fledge.data.shards import Shard, open_shards
from fledge.data.sources import gather
from fledge.errors import DataError
from fledge.lineage import read_card


@dataclass(frozen=True)
class EvaluationText:
    """Documents, where they are from (`split`) and, for a dataset with this tokenizer, the shard trained on."""

    documents: tuple[Document, ...]
    split: str
    train: Shard | None
    why_no_train: str


def evaluation_text(path: Path, tokenizer_digest: str) -> EvaluationText:
    """The text at a path. Raises DataError if there is none. `python` is a path like any other here: the installation
    is a source for `data build` alone."""
    if not path.exists():
        hint = "; of the Python installation, build a folder with fledge data build" if str(path) == PYTHON else ""
        raise DataError(f"text: expected a file or folder of text, found none at {path}; check the path{hint}")
    if (path / CORPUS).is_file():
        documents = tuple(read_corpus(path, "val"))
        train, why = training_shard(path, tokenizer_digest)
        found = EvaluationText(documents, "held-out documents of a dataset", train, why)
    else:
        found = EvaluationText(
            tuple(gather(str(path.absolute()))), "all of it", None, "the text comes without a training shard"
        )
    if not found.documents:
        why = "nothing is held out there" if (path / CORPUS).is_file() else "empty and binary files are no text"
        raise DataError(f"{path}: expected text to evaluate on, found none; {why}")
    return found


def training_shard(path: Path, tokenizer_digest: str) -> tuple[Shard | None, str]:
    if read_card(path)["kind"] != "dataset":
        return None, "the corpus has no shards yet"
    dataset = open_shards(path)
    if dataset.tokenizer.digest != tokenizer_digest:
        return None, "the dataset's tokenizer is not the model's"
    return dataset.train, ""
