"""Cleaning a corpus: documents are read, cleaned once and written aside; the corpus is made from what was written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from fledge.data.beside import remove
from fledge.data.cleaning.cleaner import SHOWN_EXAMPLES, Cleaner, StepTally
from fledge.data.cleaning.config import CleanConfig, PersonalKind
from fledge.data.cleaning.language import PROFILES
from fledge.data.cleaning.minhash import NearDuplicates
from fledge.data.cleaning.step import Dropped
from fledge.data.corpus import Record
from fledge.data.document import Document
from fledge.errors import DataError
from fledge.lineage import sha256_file
from fledge.log import Progress

CLEANED = "cleaned"  # the scratch folder's name, as that of a file written beside
RECIPE = 1  # raised when the same options and documents would give other text
NEAR = "near_duplicates"
Read = Callable[[], Iterator[Document]]


@dataclass(frozen=True)
class Cleaned:
    """A corpus after cleaning: where to read what is left, a record for every document found, and what each step did
    (None: there were no steps)."""

    source: str
    records: list[Record]
    steps: list[dict[str, Any]] | None


def inputs(config: CleanConfig) -> dict[str, Any]:
    """What decides the outcome beside the documents: steps, their options, and the content of the files they name."""
    files = [*config.contamination.evaluations] if "contamination" in config.steps else []
    files += [PROFILES] if "language" in config.steps else []
    missing = next((path for path in files if not path.is_file()), None)
    if missing is not None:
        raise DataError(f"{missing}: expected an evaluation set, found none; check the path")
    return {"recipe": RECIPE, **config.used(), "files": [sha256_file(path) for path in files]}


@contextmanager
def cleaned(config: CleanConfig, source: str, records: list[Record], read: Read, out: Path) -> Iterator[Cleaned]:
    """The corpus after the steps of `config`, readable within the block. `read` gives the documents that records call
    trained on; the scratch files stand in `out`. Raises DataError if nothing is left."""
    if not config.steps:
        yield Cleaned(source, records, None)
        return
    folder = out / f".{CLEANED}.tmp-{os.getpid()}"
    remove(folder)
    try:
        folder.mkdir()
        yield clean(config, records, read, folder / "cleaned.jsonl")
    finally:
        remove(folder)


def clean(config: CleanConfig, records: list[Record], read: Read, path: Path) -> Cleaned:
    """Clean every document of `read` into the JSON lines `path`."""
    cleaner = Cleaner(config)
    cleaner.prepare(read)
    near = NearDuplicates(config.near_duplicates) if NEAR in config.steps else None
    by_path = {record.path: record for record in records}
    with open(path, "wb+") as file:
        written = write_cleaned(cleaner, near, by_path, read, file)
        rows = cleaner.facts()
        if near is not None:
            rows.append(drop_near(near, by_path, written, file, cleaner.hidden))
    kept = list(by_path.values())
    if not any(record.split == "train" for record in kept):
        raise DataError(f"clean: expected documents to be left, got none of {len(kept)}; {told(kept)}")
    return Cleaned(str(path), kept, rows)


def write_cleaned(
    cleaner: Cleaner, near: NearDuplicates | None, by_path: dict[str, Record], read: Read, file: BinaryIO
) -> list[tuple[str, int]]:
    """Take each document through the steps; what is left is written, and named with its offset in the file."""
    progress = Progress("clean", sum(record.split == "train" for record in by_path.values()))
    first: dict[str, str] = {}
    written: list[tuple[str, int]] = []
    for done, document in enumerate(read(), 1):
        left = cleaner(document)
        record = by_path[document.path]
        if isinstance(left, Dropped):
            record = replace(record, split="dropped", reason=left.reason)
        else:
            digest = left.sha256
            original = first.setdefault(digest, left.path)
            record = replace(record, bytes=left.n_bytes, sha256=digest)
            if original != left.path:
                record = replace(record, split="dropped", reason="exact duplicate", closest=original)
            else:
                written.append((left.path, file.tell()))
                file.write(json.dumps({"path": left.path, "text": left.text}, ensure_ascii=False).encode() + b"\n")
                if near is not None:
                    near.add(left.text)
        by_path[document.path] = record
        progress.update(done)
    progress.close()
    return written


def drop_near(
    near: NearDuplicates,
    by_path: dict[str, Record],
    written: list[tuple[str, int]],
    file: BinaryIO,
    hidden: tuple[PersonalKind, ...],
) -> dict[str, Any]:
    """Mark all near-duplicates but the first of each cluster; gives the facts of the step."""

    def text_of(number: int) -> str:
        file.seek(written[number][1])
        return json.loads(file.readline())["text"]

    tally = StepTally(NEAR, hidden, len(written), sum(by_path[path].bytes for path, _ in written))
    for number, first in near.clusters(text_of).items():
        path, original = written[number][0], written[first][0]
        record = by_path[path]
        reason = "of an earlier document"
        text = text_of(number) if len(tally.dropped) < SHOWN_EXAMPLES else ""
        tally.drop(Document(path, text), reason, record.bytes)
        by_path[path] = replace(record, split="dropped", reason=f"{NEAR}: {reason}", closest=original)
    details = {"bands": near.bands, "rows": near.rows, "compared": near.compared}
    return tally.facts() | details


def told(records: list[Record]) -> str:
    """The most frequent reasons, for an error."""
    reasons = [record.reason for record in records if record.reason]
    counts = sorted(((reasons.count(reason), reason) for reason in set(reasons)), reverse=True)
    return ", ".join(f"{n} {reason}" for n, reason in counts[:3])
