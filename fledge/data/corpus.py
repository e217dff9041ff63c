"""The corpus: which document is trained on, which is held out, which is dropped, and why. Imports no torch.

`corpus.jsonl` holds a line {"path", "text", "split"} for each document that is used, training text first;
`documents.jsonl` a line for each document that was found, in the same order, dropped ones last.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, TextIO

from fledge.data.config import BuildConfig
from fledge.data.corpus_lines import CorpusLines
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
from fledge.text.source_files import BUFFER_BYTES

Split = Literal["train", "val", "dropped"]
DOCUMENTS = "documents.jsonl"
SPLIT_END = b', "split": "%s"}\n'  # of a line of corpus.jsonl: tells its split without reading it
GROUP_CHARACTERS = 1 << 20  # of documents that a thread takes at once
SIGN_SECONDS = 10.0
MOST_KEPT, FEW_BYTES = 0.25, 16 << 20  # of the bytes read, texts that the survey keeps; so many it always may
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


class HeldTexts:
    """Texts that will be held out if whole documents are, in UTF-8, which the survey keeps so that they need not be
    read again. None: they are not the small part of the source that they should be."""

    def __init__(self) -> None:
        self.texts: dict[str, bytes] | None = {}
        self.n_bytes = 0

    def keep(self, path: str, text: bytes, n_read: int) -> None:
        """One more, of which all `n_read` bytes so far are the measure."""
        if self.texts is not None:
            self.texts[path] = text
            self.n_bytes += len(text)
            if self.n_bytes > max(FEW_BYTES, MOST_KEPT * n_read):
                self.texts = None


def survey(
    config: BuildConfig, quarantine: TextIO | None = None, held: HeldTexts | None = None
) -> tuple[list[Record], Tally]:
    """Every document found, as if all were trained on but exact duplicates: the first of equal texts is kept. Bad rows
    go to `quarantine`, texts that may be held out to `held`."""
    tally, records = Tally(bad=BadRows(quarantine)), []
    first: dict[str, str] = {}
    several = len(config.sources) > 1
    n_bytes, shown = 0, time.monotonic()
    for document in gather(config.sources, tally, config.reading):
        text = document.encoded()
        digest = hashlib.sha256(text).hexdigest()
        original = first.setdefault(digest, document.path)
        kept = original == document.path
        records.append(
            Record(
                path=document.path,
                split="train" if kept else "dropped",
                bytes=len(text),
                sha256=digest,
                reason="" if kept else "exact duplicate",
                closest="" if kept else original,
                source=document.source if several else None,
            )
        )
        n_bytes += len(text)
        if held is not None and kept and len(text) >= config.minimum_eval_bytes and is_held_out(document.path):
            held.keep(document.path, text, n_bytes)
        if time.monotonic() - shown > SIGN_SECONDS:  # how many there will be, nobody knows
            say(f"gather · {len(records)} documents, {n_bytes} bytes so far")
            shown = time.monotonic()
    if not any(record.split == "train" for record in records):
        raise DataError(
            f"{', '.join(config.sources)}: expected text, found none ({len(tally.binary)} binary and "
            f"{len(tally.empty)} empty files)"
        )
    return records, tally


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


def write_whole(
    config: BuildConfig,
    records: list[Record],
    corpus: CorpusLines,
    held: dict[str, bytes] | None,
    take: Callable[[Iterator[str], int], None],
) -> list[Record]:
    """Write corpus.jsonl with whole documents held out; near-duplicates of training text are dropped on the way.

    `held`: the texts to hold out, where they are known. `take` is given the training texts as they are written, and
    their number, and takes them all."""
    by_path = {record.path: record for record in records}
    if held is None:
        held = {document.path: document.encoded() for document in wanted(config, by_path, "val")}
    shingles = HeldOutShingles(held)
    n_train = sum(record.split == "train" for record in records)
    take(write_training_texts(wanted(config, by_path, "train"), shingles, corpus, config.threads), n_train)
    for path, text in held.items():
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
            corpus.write(path, text, "val")
    return in_order(by_path.values())


def write_training_texts(
    documents: Iterator[Document], shingles: HeldOutShingles, corpus: CorpusLines, threads: int
) -> Iterator[str]:
    """Look the documents up and write them; gives the text of each."""
    groups = grouped(documents, lambda document: len(document.text), GROUP_CHARACTERS)
    find = lambda group: shingles.find([document.encoded() for document in group])  # noqa: E731
    for group, hits in in_threads(find, groups, threads_to_use(threads)):
        shingles.mark([document.path for document in group], hits)
        for document in group:
            corpus.write(document.path, document.encoded(), "train")
            yield document.text


def write_tails(config: BuildConfig, records: list[Record], corpus: CorpusLines) -> list[Record]:
    """Write corpus.jsonl with the last `val_fraction` of each document's characters held out: two records each."""
    by_path = {record.path: record for record in records}
    train: list[Record] = []
    val: list[Record] = []
    parts: tuple[tuple[Split, list[Record]], ...] = (("train", train), ("val", val))
    for split, kept in parts:
        for document in wanted(config, by_path, "train"):
            cut = int(len(document.text) * (1 - config.val_fraction))
            text = (document.text[:cut] if split == "train" else document.text[cut:]).encode()
            if text:
                digest, source = hashlib.sha256(text).hexdigest(), by_path[document.path].source
                kept.append(Record(document.path, split, len(text), digest, source=source))
                corpus.write(document.path, text, split)
    return [*train, *val, *(record for record in records if record.split == "dropped")]


def in_order(records: Iterable[Record]) -> list[Record]:
    """Training text, then held-out text, then what was dropped: the order of corpus.jsonl and of the shards."""
    return sorted(records, key=lambda record: ("train", "val", "dropped").index(record.split))


def wanted(config: BuildConfig, by_path: dict[str, Record], split: Split) -> Iterator[Document]:
    """The documents of one split, read again, with their UTF-8. Raises DataError if one has changed since it was
    surveyed, or one that is used has gone."""
    missing = {path for path, record in by_path.items() if record.split != "dropped"}
    for document in gather(config.sources, reading=config.reading):
        record, text = by_path.get(document.path), document.encoded()
        if record is None or record.sha256 != hashlib.sha256(text).hexdigest():
            raise DataError(f"{document.path}: changed while it was read; run the same command again")
        missing.discard(document.path)
        if record.split == split:
            yield Document.of(document.path, document.text, text, document.source)
    if missing:
        gone = min(missing, key=lambda path: (by_path[path].split == "train", path))
        raise DataError(f"{gone}: gone while the corpus was built; run the same command again")


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
    others = tuple(SPLIT_END % other for other in (b"train", b"val") if split not in (None, other.decode()))
    for row in read_rows(Path(folder) / CORPUS, ("path", "text", "split"), others):
        if split is None or row["split"] == split:
            yield Document(row["path"], row["text"])


def read_rows(path: Path, keys: tuple[str, ...], skipped: tuple[bytes, ...] = ()) -> Iterator[dict]:
    """The objects of JSON lines, but of those that end so. Raises DataError for one without a key."""
    if not path.is_file():
        raise DataError(f"{path}: expected a file written by `fledge data build`, found none; build the corpus first")
    with open(path, "rb", BUFFER_BYTES) as file:
        for number, line in enumerate(file, 1):
            if skipped and line.endswith(skipped):
                continue
            try:
                row = json.loads(line.decode())
                missing = [key for key in keys if key not in row]
            except (ValueError, TypeError):
                raise DataError(f"{path}, line {number}: not a JSON object; build the corpus again") from None
            if missing:
                raise DataError(f"{path}, line {number}: expected {', '.join(missing)}; build the corpus again")
            yield row
