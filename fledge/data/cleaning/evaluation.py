"""Evaluation sets as items: what contamination looks for."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.data.cleaning.config import MatchConfig
from fledge.errors import DataError

PARAGRAPHS = re.compile(r"\n\s*\n")
MOST_BYTES = 1 << 30  # of a set, unpacked


@dataclass(frozen=True)
class Item:
    """One item of an evaluation set: its number from 1 and its texts."""

    number: int
    texts: tuple[str, ...]


def read_items(path: Path, match: MatchConfig) -> Iterator[Item]:
    """The items of a set: a line of JSON lines (the texts under `fields`, or all), else a paragraph. Raises DataError
    naming file and line."""
    kind = path.with_suffix("") if path.suffix == ".gz" else path
    if kind.suffix == ".jsonl":
        yield from read_json_lines(path, match.fields)
        return
    text = read_bytes(path).decode("utf-8", "replace")
    for number, paragraph in enumerate(filter(str.strip, PARAGRAPHS.split(text)), 1):
        yield Item(number, (paragraph,))


def read_json_lines(path: Path, fields: tuple[str, ...]) -> Iterator[Item]:
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{path}, line {number}: not JSON; the file is damaged or not JSON lines") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected an object, got {type(row).__name__}")
        missing = [name for name in fields if name not in row]
        if missing:
            raise DataError(f"{path}, line {number}: expected the key {missing[0]}, got {', '.join(row)[:80]}")
        chosen = [row[name] for name in fields] if fields else list(row.values())
        yield Item(number, tuple(text for value in chosen for text in texts_in(value)))


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a JSON value, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts_in(inner)


def read_bytes(path: Path) -> bytes:
    """A file's bytes, unpacked if its name ends in .gz. Raises DataError if it can't be read or is too large."""
    try:
        with open(path, "rb") as file:
            data = (gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file).read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(f"{path}: can't be read as an evaluation set ({reason}); check the path") from None

    if len(data) > MOST_BYTES:
        raise DataError(f"{path}: expected an evaluation set of at most {MOST_BYTES} bytes; split it")
    return data
