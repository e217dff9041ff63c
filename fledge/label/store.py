"""Items and votes in a database, by SQL that SQLite and PostgreSQL take alike. One connection; the caller sees to it
that one thread at a time is here.

A vote that was taken back stays, marked: whoever sends it again changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fledge.errors import DataError
from fledge.label.items import Item, packed, unpacked

FORMAT = 1
META = "label_meta"
TABLES = (
    "CREATE TABLE label_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE label_items (number BIGINT PRIMARY KEY, place TEXT NOT NULL, ranked BIGINT NOT NULL,"
    " prompt TEXT NOT NULL, answer_1 TEXT NOT NULL, answer_2 TEXT NOT NULL)",
    "CREATE TABLE label_votes (token TEXT PRIMARY KEY, annotator TEXT NOT NULL, number BIGINT NOT NULL,"
    " item BIGINT NOT NULL, choice TEXT NOT NULL, swapped BIGINT NOT NULL, seconds DOUBLE PRECISION NOT NULL,"
    " reason TEXT NOT NULL, reasons TEXT NOT NULL, voted_at DOUBLE PRECISION NOT NULL, undone BIGINT NOT NULL,"
    " UNIQUE (annotator, number))",
    # Of several tabs that judge the same item at once, one is heard.
    "CREATE UNIQUE INDEX label_votes_one ON label_votes (annotator, item) WHERE undone = 0",
)
VOTE = "token, annotator, number, item, choice, swapped, seconds, reason, reasons, voted_at, undone"


class Taken(Exception):
    """The database already has what was to be unique."""


@dataclass(frozen=True)
class Dialect:
    """What differs between databases: the mark of a parameter, how a transaction that writes begins, which tables there
    are, and the driver's exceptions. `shared`: other programs' tables may stand beside ours."""

    mark: str
    begin: str
    tables: str
    errors: type[Exception]
    taken: type[Exception]
    shared: bool


@dataclass(frozen=True)
class Vote:
    """What an annotator said of an item. `number` counts an annotator's votes; `choice` is of the item's answers
    ("first", "second", "tie", "skip"); `swapped`: the second stood left; `voted_at` in Unix seconds."""

    token: str
    annotator: str
    number: int
    item: int
    choice: str
    swapped: bool
    seconds: float
    reason: str
    reasons: tuple[str, ...]
    voted_at: float
    undone: bool = False


class Store:
    """`connect` gives a connection (DB-API) that commits each statement outside BEGIN and COMMIT. `place` names it in
    errors."""

    def __init__(self, connect: Callable[[], Any], dialect: Dialect, place: str):
        self.connect = connect
        self.dialect = dialect
        self.place = place
        self.connection = connect()

    def close(self) -> None:
        self.connection.close()

    def run(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of one statement. Raises Taken, or DataError with what the database says."""
        if getattr(self.connection, "closed", False):  # a server that was away
            self.connection = self.connect()
        with self.told():
            cursor = self.connection.execute(sql.replace("?", self.dialect.mark), values)
            return list(cursor.fetchall()) if cursor.description else []

    def run_each(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """One statement that gives nothing, for each of many rows."""
        with self.told():
            self.connection.cursor().executemany(sql.replace("?", self.dialect.mark), rows)

    @contextmanager
    def told(self) -> Iterator[None]:
        """The driver's exceptions as ours."""
        try:
            yield
        except self.dialect.taken as error:
            raise Taken(str(error)) from None
        except self.dialect.errors as error:
            raise self.refused(error) from None

    def refused(self, error: Exception) -> DataError:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        return DataError(f"{self.place}: expected a database that can be used, got: {said}; check it and try again")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """All of it or nothing, on the disk once the block has ended."""
        self.run(self.dialect.begin)
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            try:
                self.run("ROLLBACK")
            except DataError:
                pass  # the connection is gone, and the transaction with it
            raise

    def create(self, meta: dict[str, str], items: Sequence[Item]) -> None:
        """Make the tables and fill in what will not change. Inside `writing`."""
        for statement in TABLES:
            self.run(statement)
        for name, value in {"format": str(FORMAT), **meta}.items():
            self.run("INSERT INTO label_meta (name, value) VALUES (?, ?)", name, value)
        self.run_each(
            "INSERT INTO label_items (number, place, ranked, prompt, answer_1, answer_2) VALUES (?, ?, ?, ?, ?, ?)",
            (
                (number, item.at, int(item.ranked), packed(item.prompt), packed(item.first), packed(item.second))
                for number, item in enumerate(items, 1)
            ),
        )

    def tables(self) -> set[str]:
        return {str(name) for (name,) in self.run(self.dialect.tables)}

    def meta(self) -> dict[str, str]:
        """What was stored at the start. Raises DataError for a database of another program or a later release."""
        tables = self.tables()
        if META not in tables:
            got = "one of another program" if tables and not self.dialect.shared else "one without its tables"
            raise DataError(f"{self.place}: expected a database of fledge label, got {got}; choose another")
        found = {str(name): str(value) for name, value in self.run("SELECT name, value FROM label_meta")}
        format = found.get("format", "")
        if not format.isdecimal() or int(format) > FORMAT:
            raise DataError(f"{self.place}: expected format {FORMAT}, got {format!r:.20}; use a later fledge")
        return found

    def n_items(self) -> int:
        return int(self.run("SELECT COUNT(*) FROM label_items")[0][0])

    def item(self, number: int) -> Item | None:
        rows = self.run("SELECT prompt, answer_1, answer_2, ranked, place FROM label_items WHERE number = ?", number)
        return item_of(rows[0]) if rows else None

    def items(self) -> dict[int, Item]:
        rows = self.run("SELECT number, prompt, answer_1, answer_2, ranked, place FROM label_items ORDER BY number")
        return {int(number): item_of(rest) for number, *rest in rows}

    def next_number(self, annotator: str) -> int | None:
        """The first item that the annotator has said nothing of."""
        rows = self.run(
            "SELECT number FROM label_items WHERE NOT EXISTS (SELECT 1 FROM label_votes WHERE annotator = ? AND"
            " item = label_items.number AND undone = 0) ORDER BY number LIMIT 1",
            annotator,
        )
        return int(rows[0][0]) if rows else None

    def counts(self, annotator: str) -> dict[str, int]:
        """Votes by choice."""
        sql = "SELECT choice, COUNT(*) FROM label_votes WHERE annotator = ? AND undone = 0 GROUP BY choice"
        return {str(choice): int(n) for choice, n in self.run(sql, annotator)}

    def votes(self) -> list[Vote]:
        """Every vote that stands, by annotator and in their order."""
        return self.chosen("WHERE undone = 0 ORDER BY annotator, number")

    def by_token(self, token: str) -> Vote | None:
        return next(iter(self.chosen("WHERE token = ?", token)), None)

    def of_item(self, annotator: str, item: int) -> Vote | None:
        return next(iter(self.chosen("WHERE annotator = ? AND item = ? AND undone = 0", annotator, item)), None)

    def last(self, annotator: str) -> Vote | None:
        """The annotator's latest vote that stands."""
        return next(
            iter(self.chosen("WHERE annotator = ? AND undone = 0 ORDER BY number DESC LIMIT 1", annotator)), None
        )

    def numbered(self, annotator: str, number: int) -> Vote | None:
        return next(iter(self.chosen("WHERE annotator = ? AND number = ?", annotator, number)), None)

    def chosen(self, where: str, *values: Any) -> list[Vote]:
        return [vote_of(row) for row in self.run(f"SELECT {VOTE} FROM label_votes {where}", *values)]

    def next_vote(self, annotator: str) -> int:
        sql = "SELECT COALESCE(MAX(number), 0) + 1 FROM label_votes WHERE annotator = ?"
        return int(self.run(sql, annotator)[0][0])

    def add(self, vote: Vote) -> None:
        """Raises Taken where the token, the number or a vote on the item is there."""
        self.run(
            f"INSERT INTO label_votes ({VOTE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(vote.token, vote.annotator, vote.number, vote.item, vote.choice, int(vote.swapped), vote.seconds),
            *(vote.reason, json.dumps(vote.reasons), vote.voted_at, int(vote.undone)),
        )

    def undo(self, annotator: str, number: int) -> None:
        self.run("UPDATE label_votes SET undone = 1 WHERE annotator = ? AND number = ?", annotator, number)

    def undo_skips(self, annotator: str) -> None:
        self.run("UPDATE label_votes SET undone = 1 WHERE annotator = ? AND choice = 'skip' AND undone = 0", annotator)


def item_of(row: Sequence[Any]) -> Item:
    prompt, first, second, ranked, place = row
    return Item(unpacked(prompt), unpacked(first), unpacked(second), bool(ranked), str(place))


def vote_of(row: Sequence[Any]) -> Vote:
    token, annotator, number, item, choice, swapped, seconds, reason, reasons, voted_at, undone = row
    told = tuple(json.loads(reasons))
    return Vote(
        token, annotator, int(number), int(item), choice, bool(swapped), float(seconds), reason, told, float(voted_at),
        bool(undone),
    )  # fmt: skip
