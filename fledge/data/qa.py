"""`data qa`: question/answer conversations from signatures and docstrings. Imports no torch.

Held out by name: a name whose SHA-256 begins with hex digit 0 is asked about in val.jsonl only. A document that
`data build` holds out is asked about in val.jsonl only too, so that tuning never shows what evaluation reads. A
held-out name's docstring may stand in the text of pre-training: `document_trained` in each row of val.jsonl says so.
"""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fledge.config import to_dict
from fledge.data.beside import beside, clean
from fledge.data.config import PYTHON, QaConfig
from fledge.data.corpus import CORPUS, read_corpus
from fledge.data.definitions import definitions
from fledge.data.document import Document, is_held_out
from fledge.data.questions import Exchange, about_definitions, about_text, number_of
from fledge.data.sources import gather
from fledge.errors import CheckpointError, DataError
from fledge.lineage import (
    CARD,
    make_folder,
    refuse_other_artefact,
    refuse_without_card,
    sha256_file,
    sha256_json,
    verify,
    write_card,
)
from fledge.text.documents import ReadingConfig, refuse_inside

RECIPE = 1  # raised when the same config and sources would give other conversations
KIND = "conversations"
TRAIN, VAL = "train.jsonl", "val.jsonl"
KEYS = {"messages", "name", "document"}  # of a row
FEW = 200  # with fewer conversations about definitions, questions about the text itself are added


def build_qa(config: QaConfig, json: bool = False) -> dict[str, Any]:
    """Write train.jsonl and val.jsonl of {"messages": [...]} and a card; gives counts and the digest.

    `config.source` may also be a folder written by `data build`: then its split is kept. Raises DataError when the
    source gives no conversation, ConfigError when files that would be replaced are somebody's own.
    """
    began = time.monotonic()
    if config.source != PYTHON:
        refuse_inside(config.source, config.out)
    make_folder(config.out)
    refuse_other_artefact(config.out, KIND)
    refuse_without_card(config.out, (name for name in (TRAIN, VAL) if not is_ours(config.out / name)), "data qa")
    clean(config.out, (TRAIN, VAL, CARD))
    documents = list(split_documents(config.source, config.reading))
    sources = sha256_json([(document.path, document.sha256, trained) for document, trained in documents])
    inputs = {"recipe": RECIPE, "sources": sources} | {
        name: getattr(config, name) for name in ("max_conversations", "max_answer_characters")
    }
    card = finished(config.out, inputs)
    reused = card is not None
    if card is None:
        card = write(config, documents, inputs)
    result = {"out": str(config.out), "reused": reused, **card["facts"]["counts"], "digest": card["digest"]}
    result["seconds"] = round(time.monotonic() - began, 2)
    if not json:
        print(summary(result))
    return result


def is_ours(path: Path) -> bool:
    """Whether a file is empty or its first row one of these conversations, as a killed run leaves them."""
    try:
        with open(path, encoding="utf-8") as file:
            line = file.readline()
        row = json_format.loads(line) if line else dict.fromkeys(KEYS)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(row, dict) and row.keys() >= KEYS


def split_documents(source: str, reading: ReadingConfig) -> Iterator[tuple[Document, bool]]:
    """(document, whether it may be trained on): the split of a corpus folder, else by the hash of the path."""
    if (Path(source) / CORPUS).is_file():
        trained = set()
        for document in read_corpus(source, "train"):
            trained.add(document.path)
            yield document, True
        for document in read_corpus(source, "val"):
            path = f"{document.path}#tail" if document.path in trained else document.path
            yield Document(path, document.text), False
    else:
        for document in gather(source, reading=reading):
            yield document, not is_held_out(document.path)


def write(config: QaConfig, documents: list[tuple[Document, bool]], inputs: dict[str, Any]) -> dict[str, Any]:
    trained_paths = {document.path for document, trained in documents if trained}
    train, val, counts = split_conversations(config, documents)
    if not train:
        raise DataError(f"{config.source}: expected documented Python or sentences to ask about, found none; add text")
    (config.out / CARD).unlink(missing_ok=True)
    with beside(config.out / TRAIN) as path:
        write_rows(path, ({"messages": c.messages(), "name": c.name, "document": c.document} for c in train))
    with beside(config.out / VAL) as path:
        rows = ({"messages": c.messages(), "name": c.name, "document": c.document} for c in val)
        write_rows(path, (row | {"document_trained": row["document"] in trained_paths} for row in rows))
    strangers = [p.relative_to(config.out).as_posix() for p in config.out.rglob("*") if p.is_file()]
    skip = tuple(name for name in strangers if name not in (TRAIN, VAL))
    corpus = Path(config.source) / CORPUS
    parents = {"corpus": sha256_file(corpus)} if corpus.is_file() else {}
    return write_card(config.out, KIND, parents, to_dict(config), {"inputs": inputs, "counts": counts}, skip)


def split_conversations(
    config: QaConfig, documents: list[tuple[Document, bool]]
) -> tuple[list[Exchange], list[Exchange], dict[str, Any]]:
    """(train, val, counts): questions without duplicates, by hash of the question; val has none of train's answers."""
    found = [d for document, _ in documents for d in definitions(document, config.max_answer_characters)]
    made = list(about_definitions(found))
    n_from_text = 0
    if len(made) < FEW:
        from_text = [c for document, _ in documents for c in about_text(document, config.max_answer_characters)]
        n_from_text = len(from_text)
        made += from_text
    trained_at = {document.path: trained for document, trained in documents}
    unique = {conversation.turns[0][0]: conversation for conversation in reversed(made)}
    ordered = sorted(unique.values(), key=lambda conversation: number_of(conversation.turns))
    train = [c for c in ordered if trained_at[c.document] and not is_held_out(c.name)][: config.max_conversations]
    answers = {answer for conversation in train for _, answer in conversation.turns}
    held_out = [c for c in ordered if (not trained_at[c.document] or is_held_out(c.name)) and len(c.turns) == 1]
    val = [c for c in held_out if c.turns[0][1] not in answers]
    counts = {
        "definitions": len(found),
        "train_conversations": len(train),
        "val_conversations": len(val),
        "duplicate_questions": len(made) - len(unique),
        "val_answers_in_train": len(held_out) - len(val),
        "from_text": n_from_text,
    }
    return train, val, counts


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json_format.dumps(row, ensure_ascii=False) + "\n")


def finished(out: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The card, if the folder holds whole what these inputs give; else None."""
    try:
        card = verify(out)
    except CheckpointError:
        return None
    return card if card["kind"] == KIND and card["facts"].get("inputs") == inputs else None


def summary(result: dict[str, Any]) -> str:
    """What `data qa` prints for people."""
    lines = [
        f"from      {result['definitions']:,} documented definitions",
        f"train     {result['train_conversations']:,} conversations",
        f"held out  {result['val_conversations']:,} conversations, by name",
        f"dropped   {result['duplicate_questions']:,} duplicate questions, "
        f"{result['val_answers_in_train']:,} held-out ones whose answer is also a training answer",
    ]
    if result["from_text"]:
        lines.append(f"added     {result['from_text']:,} questions about how the text goes on (too few definitions)")
    again = " (already there)" if result["reused"] else ""
    return "\n".join([*lines, f"conversations {result['digest'][:12]} in {result['out']}{again}"])
