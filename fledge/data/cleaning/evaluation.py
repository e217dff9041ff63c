"""Evaluation sets as items: what contamination looks for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.data.cleaning.config import MatchConfig
from fledge.errors import DataError
from fledge.text.compressed import FORMS, damage_of, unpacked
from fledge.text.documents import LINES

PARAGRAPHS = re.compile(r"\n\s*\n")
TABLES = (".parquet", ".arrow", ".warc", ".wet", ".csv", ".tsv")
MOST_BYTES = 1 << 30  # of a set, unpacked


@dataclass(frozen=True)
class Item:
    """One item of an evaluation set: its number from 1 and its texts."""

    number: int
    texts: tuple[str, ...]


def read_items(path: Path, match: MatchConfig) -> Iterator[Item]:
    """The items of a set, unpacked if it is compressed: of JSON lines a line, of JSON an entry of its list (the texts
    under `fields`, or all), of a text a paragraph. Raises DataError naming file and line."""
    kind = (path.with_suffix("") if path.suffix.lower() in FORMS else path).suffix.lower()
    if kind in TABLES:
        raise DataError(f"{path}: expected JSON lines, JSON or text as an evaluation set, got {kind}; convert it")
    data = read_bytes(path)
    if kind in LINES:
        rows = ((n, f"{path}, line {n}", line) for n, line in enumerate(data.split(b"\n"), 1) if line.strip())
        for number, at, line in rows:
            yield item_of(number, parsed(line, at, "JSON lines"), match.fields, at)
        return
    if kind == ".json":
        tree = parsed(data, str(path), "JSON")
        if not isinstance(tree, list):
            raise DataError(
                f"{path}: expected a list of items, got {type(tree).__name__}; write its items as JSON lines"
            )
        for number, row in enumerate(tree, 1):
            yield item_of(number, row, match.fields, f"{path}, item {number}")
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8, got another byte at {error.start}; convert it") from None
    for number, paragraph in enumerate(filter(str.strip, PARAGRAPHS.split(text)), 1):
        yield Item(number, (paragraph,))


def parsed(data: bytes, at: str, form: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise DataError(f"{at}: not JSON; the file is damaged or not {form}") from None


def item_of(number: int, row: Any, fields: tuple[str, ...], at: str) -> Item:
    if not isinstance(row, dict):
        raise DataError(f"{at}: expected an object, got {type(row).__name__}")
    missing = [name for name in fields if name not in row]
    if missing:
        raise DataError(f"{at}: expected the key {missing[0]}, got {', '.join(row)[:80]}")
    chosen = [row[name] for name in fields] if fields else list(row.values())
    return Item(number, tuple(text for value in chosen for text in texts_in(value)))


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a JSON value, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts_in(inner)


def read_bytes(path: Path) -> bytes:
    """A file's bytes, unpacked by its ending. Raises DataError if it can't be read or is too large."""
    try:
        with open(path, "rb") as file:
            stream = unpacked(file, path.suffix.lower()) if path.suffix.lower() in FORMS else file
            data, damage = stream.read(MOST_BYTES + 1), damage_of(stream)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path}: can't be read as an evaluation set ({reason}); check the path") from None
    if len(data) > MOST_BYTES:
        raise DataError(f"{path}: expected an evaluation set of at most {MOST_BYTES} bytes; split it")
    if damage is not None:
        raise DataError(f"{path}: can't be read as an evaluation set ({damage.reason}); make it anew")
    return data
