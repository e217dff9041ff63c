"""Where votes are kept: made once, opened again, refused where it is of something else; both databases' SQL."""

from __future__ import annotations

import sqlite3
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from fledge.errors import ConfigError, DataError
from fledge.label.places import make_labels, open_labels, without_password
from fledge.label.store import Taken
from tests.label.samples import Desk, items_of, new_desk, new_store, pairs, say, write_rows


def test_what_was_stored_is_there_when_it_is_opened_again(tmp_path):
    desk = new_desk(tmp_path)
    say(desk, "ana", 1, "good")
    say(desk, "ana", 2, "tie", seconds=2.5)
    before, items = desk.store.votes(), desk.store.items()
    desk.store.close()
    again = open_labels(str(tmp_path / "labels.db"))
    assert again.votes() == before and [vote.choice for vote in before] == ["first", "tie"]
    assert again.items() == items and again.n_items() == 6
    assert again.meta()["seed"] == "7"


def test_the_seed_is_drawn_once_and_then_kept(tmp_path):
    items = items_of(tmp_path)
    seeds = []
    for name in ("a.db", "a.db", "b.db"):
        store = make_labels(str(tmp_path / name), items, "pairs.jsonl")
        seeds.append(store.meta()["seed"])
        store.close()
    assert seeds[0] == seeds[1] != seeds[2]
    with pytest.raises(ConfigError, match="seed: expected that of .*a.db, .* got 3; leave it out"):
        make_labels(str(tmp_path / "a.db"), items, "pairs.jsonl", 3)


def test_votes_on_other_pairs_are_refused_by_digest(tmp_path):
    new_store(tmp_path).close()
    with pytest.raises(
        DataError, match="expected votes on other.jsonl .* got votes on pairs.jsonl .* choose another out="
    ):
        make_labels(str(tmp_path / "labels.db"), items_of(tmp_path, 5), "other.jsonl")
    make_labels(str(tmp_path / "labels.db"), items_of(tmp_path), "renamed.jsonl").close()  # the same pairs


def test_what_is_no_database_of_labels_is_refused_and_left_as_it_is(tmp_path):
    text = write_rows(tmp_path / "text.db", pairs(40))
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    (tmp_path / "empty.db").touch()
    said = {
        "text.db": "file is not a database",
        "other.db": "got one of another program",
        "empty.db": "got one without its tables",
    }
    for name, why in said.items():
        before = (tmp_path / name).read_bytes()
        with pytest.raises(DataError, match=why):
            open_labels(str(tmp_path / name))
        if name != "empty.db":
            with pytest.raises(DataError, match=why):
                make_labels(str(tmp_path / name), items_of(tmp_path), "pairs.jsonl")
        assert (tmp_path / name).read_bytes() == before
    assert text.exists()
    with pytest.raises(DataError, match="expected what fledge label has written, found none"):
        open_labels(str(tmp_path / "nothing.db"))
    assert not (tmp_path / "nothing.db").exists()


def test_a_later_format_is_refused(tmp_path):
    store = new_store(tmp_path)
    store.run("UPDATE label_meta SET value = ? WHERE name = 'format'", "2")
    with pytest.raises(DataError, match="expected format 1, got '2'; use a later fledge"):
        store.meta()


@pytest.mark.parametrize(
    ("place", "said"),
    [("mysql://x/y", "mysql://: expected a SQLite file or postgresql"), (".", "got a folder; choose another")],
)
def test_a_place_that_cannot_be_is_refused(tmp_path, place, said):
    with pytest.raises(ConfigError, match=said):
        make_labels(place, items_of(tmp_path), "pairs.jsonl")


def test_a_transaction_that_fails_leaves_nothing(tmp_path):
    desk = new_desk(tmp_path)
    vote = desk.store
    say(desk, "ana", 1, "good")
    (stands,) = vote.votes()
    with pytest.raises(Taken), vote.writing():
        vote.undo("ana", 1)
        vote.add(stands)  # its token is there
    assert vote.votes() == [stands]


def test_of_two_votes_on_an_item_the_database_itself_takes_one(tmp_path):
    desk = new_desk(tmp_path)
    say(desk, "ana", 1, "good")
    (stands,) = desk.store.votes()
    double = type(stands)(**{**stands.__dict__, "token": "another", "number": 2})
    with pytest.raises(Taken):
        desk.store.add(double)
    desk.store.undo("ana", 1)
    desk.store.add(double)  # the control: of an item whose vote was undone it takes one


# ---- PostgreSQL


def test_without_psycopg_the_package_is_named_and_no_password_is_shown(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match="expected the package psycopg, found none; pip install") as caught:
        open_labels("postgresql://ana:secret@db.example:5432/labels?x=1")
    assert "secret" not in str(caught.value) and "postgresql://ana@db.example:5432/labels" in str(caught.value)
    assert without_password("postgresql:///labels") == "postgresql:///labels"


class Postgres:
    """psycopg's connection as far as it is used, over SQLite: its parameter marks, its own table of tables."""

    def __init__(self, path: Path):
        self.inner = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.closed = False
        self.seen: list[str] = []

    def execute(self, sql: str, values: Any) -> Any:
        assert "?" not in sql and "PRAGMA" not in sql and "IMMEDIATE" not in sql
        self.seen.append(sql)
        sql = sql.replace("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()",
                          "SELECT name FROM sqlite_master")  # fmt: skip
        return self.inner.execute(sql.replace("%s", "?"), values)

    def cursor(self) -> Postgres:
        return self

    def executemany(self, sql: str, rows: Any) -> None:
        for row in rows:
            self.execute(sql, row)

    def close(self) -> None:
        self.closed = True
        self.inner.close()


def test_postgresql_gets_its_own_marks_and_a_lost_connection_is_opened_again(tmp_path, monkeypatch):
    made: list[Postgres] = []

    def connect(address: str, autocommit: bool) -> Postgres:
        assert autocommit and address == "postgresql://ana:secret@db/labels"
        made.append(Postgres(tmp_path / "server"))
        return made[-1]

    fake = types.ModuleType("psycopg")
    fake.connect, fake.Error = connect, sqlite3.Error  # type: ignore[attr-defined]
    fake.errors = types.SimpleNamespace(UniqueViolation=sqlite3.IntegrityError)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "psycopg", fake)
    store = make_labels("postgresql://ana:secret@db/labels", items_of(tmp_path), "pairs.jsonl", 7)
    desk = Desk(store)
    say(desk, "ana", 1, "good")
    made[0].close()
    say(desk, "ana", 2, "bad")
    assert [vote.choice for vote in store.votes()] == ["first", "second"]
    assert len(made) == 2 and any("%s" in sql for sql in made[0].seen)
    assert store.place == "postgresql://ana@db/labels"
