"""The corpus: which document is trained on, which is held out, which is dropped, and why. Imports no torch.

`corpus.jsonl` holds a line {"path", "text", "split"} for each document that is used, training text first;
`documents.jsonl` a line for each document that was found, in the same order, dropped ones last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, TextIO

from fledge.data.config import BuildConfig
from fledge.data.document import Document, is_held_out
from fledge.data.in_threads import grouped, in_threads, threads_to_use
from fledge.data.shingles import HeldOutShingles
from fledge.data.sources import gather
from fledge.errors import DataError
from fledge.lineage import sha256_json
from fledge.log import say
from fledge.text.bad_rows import BadRows
from fledge.text.documents import CORPUS as CORPUS
from fledge.text.documents import Tally

Split = Literal["train", "val", "dropped"]
DOCUMENTS = "documents.jsonl"
SPLIT_END = ', "split": "%s"}\n'  # of a line of corpus.jsonl: tells its split without reading it
GROUP_CHARACTERS = 1 << 20  # of documents that a thread takes at once
SIGN_SECONDS = 10.0
LEAST_TRAINED = 0.5  # holding out whole documents must leave this share of the text to train on


@dataclass(frozen=True, slots=True)
class Record:
    """One document as documents.jsonl has it. `reason` says why it was dropped; `contained` is the share of a held-out
    document's five-word sequences that stand in the training text, `closest` the training document with the most of
    them. `tokens` is filled when shards are written, `source` where there are several."""

    path: str
    split: Split
    bytes: int
    sha256: str
    reason: str = ""
    contained: float | None = None
    closest: str = ""
    tokens: int | None = None
    source: int | None = None


RECORD_FIELDS = tuple(field.name for field in fields(Record))


def survey(config: BuildConfig, quarantine: TextIO | None = None) -> tuple[list[Record], Tally]:
    """Every document found, as if all were trained on but exact duplicates: the first of equal texts is kept. Bad rows
    go to `quarantine`."""
    tally, records = Tally(bad=BadRows(quarantine)), []
    first: dict[str, str] = {}
    several = len(config.sources) > 1
    for document in told(gather(config.sources, tally, config.reading)):
        digest = document.sha256
        original = first.setdefault(digest, document.path)
        kept = original == document.path
        records.append(
            Record(
                path=document.path,
                split="train" if kept else "dropped",
                bytes=document.n_bytes,
                sha256=digest,
                reason="" if kept else "exact duplicate",
                closest="" if kept else original,
                source=document.source if several else None,
            )
        )
    if not any(record.split == "train" for record in records):
        raise DataError(
            f"{', '.join(config.sources)}: expected text, found none ({len(tally.binary)} binary and "
            f"{len(tally.empty)} empty files)"
        )
    return records, tally


def told(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents, with a sign of life every SIGN_SECONDS: how many there will be, nobody knows."""
    shown = time.monotonic()
    n_bytes = 0
    for number, document in enumerate(documents, 1):
        yield document
        n_bytes += document.n_bytes
        if time.monotonic() - shown > SIGN_SECONDS:
            say(f"gather · {number} documents, {n_bytes} bytes so far")
            shown = time.monotonic()


def source_digest(records: list[Record]) -> str:
    """Digest of what a source held: paths and contents."""
    parts = ((record.path, record.sha256, record.source) for record in records)
    return sha256_json([part if part[2] is not None else part[:2] for part in parts])


def hold_out_whole(records: list[Record], config: BuildConfig) -> list[Record] | None:
    """The records with every sixteenth document (by the hash of its path) out of training, or None when that leaves
    nothing to evaluate on or less than half of the text to train on."""
    marked = []
    for record in records:
        if record.split == "train" and is_held_out(record.path):
            large = record.bytes >= config.minimum_eval_bytes
            reason = "" if large else f"held out, but below {config.minimum_eval_bytes} bytes"
            record = replace(record, split="val" if large else "dropped", reason=reason)
        marked.append(record)
    total = sum(record.bytes for record in records if record.split == "train")
    trained = sum(record.bytes for record in marked if record.split == "train")
    enough = trained >= LEAST_TRAINED * total and any(record.split == "val" for record in marked)
    return marked if enough else None


def write_whole(config: BuildConfig, records: list[Record], corpus: TextIO) -> list[Record]:
    """Write corpus.jsonl with whole documents held out; near-duplicates of training text are dropped on the way."""
    by_path = {record.path: record for record in records}
    texts = {document.path: document.text for document in wanted(config, by_path, "val")}
    shingles = HeldOutShingles(texts)
    groups = grouped(wanted(config, by_path, "train"), lambda document: len(document.text), GROUP_CHARACTERS)
    find = lambda group: [shingles.find(document.text) for document in group]  # noqa: E731
    for group, found_in in in_threads(find, groups, threads_to_use(config.threads)):
        for document, hits in zip(group, found_in, strict=True):
            shingles.mark(document.path, hits)
            write_line(corpus, document.path, document.text, "train")
    for path, text in texts.items():
        found = shingles.containment(path)
        near = found.share >= config.near_duplicate
        by_path[path] = replace(
            by_path[path],
            split="dropped" if near else "val",
            reason="near-duplicate of training text" if near else "",
            contained=round(found.share, 4),
            closest=found.closest,
        )
        if not near:
            write_line(corpus, path, text, "val")
    return in_order(by_path.values())


def write_tails(config: BuildConfig, records: list[Record], corpus: TextIO) -> list[Record]:
    """Write corpus.jsonl with the last `val_fraction` of each document's characters held out: two records each."""
    by_path = {record.path: record for record in records}
    train: list[Record] = []
    val: list[Record] = []
    for split, kept in (("train", train), ("val", val)):
        for document in wanted(config, by_path, "train"):
            cut = int(len(document.text) * (1 - config.val_fraction))
            part = Document(document.path, document.text[:cut] if split == "train" else document.text[cut:])
            if part.text:
                source = by_path[part.path].source
                kept.append(Record(part.path, split, part.n_bytes, part.sha256, source=source))  # type: ignore[arg-type]
                write_line(corpus, part.path, part.text, split)
    return [*train, *val, *(record for record in records if record.split == "dropped")]


def in_order(records: Iterable[Record]) -> list[Record]:
    """Training text, then held-out text, then what was dropped: the order of corpus.jsonl and of the shards."""
    return sorted(records, key=lambda record: ("train", "val", "dropped").index(record.split))


def wanted(config: BuildConfig, by_path: dict[str, Record], split: Split) -> Iterator[Document]:
    """The documents of one split, read again. Raises DataError if one has changed or gone since it was surveyed."""
    missing = {path for path, record in by_path.items() if record.split == split}
    for document in gather(config.sources, reading=config.reading):
        record = by_path.get(document.path)
        if record is None or record.sha256 != document.sha256:
            raise DataError(f"{document.path}: changed while it was read; run the same command again")
        if record.split == split:
            missing.discard(document.path)
            yield document
    if missing:
        raise DataError(f"{min(missing)}: gone while the corpus was built; run the same command again")


def write_line(file: TextIO, path: str, text: str, split: str) -> None:
    file.write(json.dumps({"path": path, "text": text, "split": split}, ensure_ascii=False) + "\n")


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write documents.jsonl: a line for each record, without the fields that don't apply to it."""
    with open(path, "w", encoding="utf-8") as file:
        for record in records:
            row = {key: value for key in RECORD_FIELDS if (value := getattr(record, key)) not in (None, "")}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_records(folder: str | Path) -> list[Record]:
    """The records of a corpus or dataset folder. Raises DataError naming file and line."""
    return [Record(**row) for row in read_rows(Path(folder) / DOCUMENTS, ("path", "split", "bytes", "sha256"))]


def read_corpus(folder: str | Path, split: str | None = None) -> Iterator[Document]:
    """The documents of a corpus or dataset folder, of one split or of both. Raises DataError naming file and line."""
    others = tuple(SPLIT_END % other for other in ("train", "val") if split not in (None, other))
    for row in read_rows(Path(folder) / CORPUS, ("path", "text", "split"), others):
        if split is None or row["split"] == split:
            yield Document(row["path"], row["text"])


def read_rows(path: Path, keys: tuple[str, ...], skipped: tuple[str, ...] = ()) -> Iterator[dict]:
    """The objects of JSON lines, but of those that end so. Raises DataError for one without a key."""
    if not path.is_file():
        raise DataError(f"{path}: expected a file written by `fledge data build`, found none; build the corpus first")
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if skipped and line.endswith(skipped):
                continue
            try:
                row = json.loads(line)
                missing = [key for key in keys if key not in row]
            except (ValueError, TypeError):
                raise DataError(f"{path}, line {number}: not a JSON object; build the corpus again") from None
            if missing:
                raise DataError(f"{path}, line {number}: expected {', '.join(missing)}; build the corpus again")
            yield row
