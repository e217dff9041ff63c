"""Where votes are kept: a SQLite file, or PostgreSQL by an address; opened, made, and refused where it is of something
else."""

from __future__ import annotations

import secrets
import sqlite3
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fledge.errors import ConfigError, DataError
from fledge.label.items import Items
from fledge.label.store import META, Dialect, Store
from fledge.lineage import check_output_file

SCHEMES = ("postgresql://", "postgres://")
BUSY_SECONDS = 10.0  # for another process to end its own vote
LITE = Dialect(
    mark="?",
    begin="BEGIN IMMEDIATE",
    tables="SELECT name FROM sqlite_master WHERE type = 'table'",
    errors=sqlite3.Error,
    taken=sqlite3.IntegrityError,
    shared=False,
)


def open_labels(place: str) -> Store:
    """What `fledge label` has written. Raises DataError where it isn't there or is something else."""
    store = opened(place, make=False)
    try:
        store.meta()
    except BaseException:
        store.close()
        raise
    return store


def make_labels(place: str, items: Items, name: str, seed: int | None = None) -> Store:
    """The labels of `items`, made where there are none. `name`: what the file of pairs is called.

    Raises DataError where the votes there are on other pairs, ConfigError where they were shown by another seed."""
    store = opened(place, make=True)
    try:
        tables = store.tables()
        if META not in tables and (store.dialect.shared or not tables):
            with store.writing():
                if META not in store.tables():  # another process may have been quicker
                    store.create(first_meta(items, name, seed), items.found)
        check_same(store, items, name, seed)
        if store.dialect is LITE:
            keep_durably(store)
    except BaseException:
        store.close()
        raise
    return store


def first_meta(items: Items, name: str, seed: int | None) -> dict[str, str]:
    drawn = secrets.randbits(62) if seed is None else seed
    return {"digest": items.digest(), "pairs": name, "seed": str(drawn), "made_at": f"{time.time():.0f}"}


def check_same(store: Store, items: Items, name: str, seed: int | None) -> None:
    meta, digest = store.meta(), items.digest()
    if meta["digest"] != digest:
        raise DataError(
            f"{store.place}: expected votes on {name} ({digest[:12]}…), got votes on {meta['pairs']} "
            f"({meta['digest'][:12]}…); choose another out=, or give the file that they are on"
        )
    if seed is not None and meta["seed"] != str(seed):
        raise ConfigError(f"seed: expected that of {store.place}, {meta['seed']}, got {seed}; leave it out")


def opened(place: str, make: bool) -> Store:
    if place.startswith(SCHEMES):
        return open_postgres(place)
    if "://" in place:
        scheme = place.partition("://")[0]
        raise ConfigError(f"{scheme:.40}://: expected a SQLite file or postgresql://…, got another scheme")
    return open_lite(Path(place), make)


def open_lite(path: Path, make: bool) -> Store:
    if make:
        check_output_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
    elif not path.is_file():
        raise DataError(f"{path}: expected what fledge label has written, found none; check the path")

    def connect() -> sqlite3.Connection:
        address = f"{path.resolve().as_uri()}?mode={'rwc' if make else 'rw'}"
        return sqlite3.connect(address, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True)

    try:
        return Store(connect, LITE, str(path))
    except sqlite3.Error as error:
        raise DataError(f"{path}: can't be opened as a database ({error}); choose another") from None


def keep_durably(store: Store) -> None:
    """Readers beside the writer, and each vote on the disk before it is answered."""
    store.run("PRAGMA journal_mode=WAL")
    store.run("PRAGMA synchronous=FULL")


def open_postgres(address: str) -> Store:
    """Raises ConfigError without psycopg, DataError where the server can't be reached."""
    try:
        import psycopg
    except ImportError:
        raise ConfigError(
            f"{without_password(address)}: expected the package psycopg, found none; pip install 'fledge[postgres]'"
        ) from None
    dialect = Dialect(
        mark="%s",
        begin="BEGIN",
        tables="SELECT tablename FROM pg_tables WHERE schemaname = current_schema()",
        errors=psycopg.Error,
        taken=psycopg.errors.UniqueViolation,
        shared=True,
    )

    def connect() -> Any:
        try:
            return psycopg.connect(address, autocommit=True)
        except psycopg.Error as error:
            said = " ".join(str(error).split())[:200]
            raise DataError(
                f"{without_password(address)}: expected a PostgreSQL server, got: {said}; check the address"
            ) from None

    return Store(connect, dialect, without_password(address))


def without_password(address: str) -> str:
    """The address as it may be shown: no password, no options."""
    parts = urlsplit(address)
    login, at, server = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{login.partition(':')[0]}{at}{server}{parts.path}"
