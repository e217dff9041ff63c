"""Bad rows: what of a source could not be read as a document. Each is counted and told, none ends the reading by
itself; too large a share of them does."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TextIO

from fledge.errors import DataError

EXCERPT_CHARACTERS = 200
NAMED = 3  # places that an error tells


@dataclass(frozen=True)
class BadRow:
    """`number` counts `unit`s ("line", "record", "row" from 1; "byte" from 0) of `file`; `reason` is one of few words
    to count by, `detail` the whole story, `begins` the row's first characters."""

    file: str
    unit: str
    number: int
    reason: str
    detail: str
    begins: str = ""

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}: {self.detail}"

    def to_json(self) -> str:
        """One line of quarantine.jsonl."""
        row = {"file": self.file, self.unit: self.number, "reason": self.reason, "detail": self.detail}
        return json.dumps({**row, "begins": self.begins}, ensure_ascii=False)


class BadRows:
    """Counts bad rows by reason, keeps the first few of a source, and writes every one to `quarantine` if there is one.
    Memory does not grow with their number."""

    def __init__(self, quarantine: TextIO | None = None):
        self.quarantine = quarantine
        self.reasons: Counter[str] = Counter()
        self.begin_source()

    def begin_source(self) -> None:
        self.first: list[BadRow] = []
        self.n_of_source = 0

    def add(self, row: BadRow) -> None:
        self.reasons[row.reason] += 1
        self.n_of_source += 1
        if len(self.first) < NAMED:
            self.first.append(row)
        if self.quarantine is not None:
            self.quarantine.write(row.to_json() + "\n")

    def refuse_beyond(self, share: float, n_good: int) -> None:
        """Raises DataError, naming the first, if more than this share of the source's rows is bad."""
        n_bad, n_all = self.n_of_source, self.n_of_source + n_good
        if n_bad <= share * n_all:
            return
        others = n_bad - len(self.first)
        places = " | ".join(map(str, self.first)) + (f" | and {others} more" if others else "")
        raise DataError(
            f"{places}; {n_bad} of {n_all} rows are bad, expected at most a share of {share:g}; mend them, or raise "
            "reading.max_bad_share to leave them out"
        )


def excerpt(data: bytes | str) -> str:
    """The first characters of a row, whatever they are, as text."""
    text = data[: 4 * EXCERPT_CHARACTERS].decode("utf-8", "replace") if isinstance(data, bytes) else data
    return text[:EXCERPT_CHARACTERS].encode("utf-8", "replace").decode()
