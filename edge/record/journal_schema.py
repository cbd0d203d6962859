"""The tables of the journal, their version, and how an older journal gets the present ones."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from edge.base.errors import InputError

TABLES = (
    """CREATE TABLE IF NOT EXISTS runs (
        run INTEGER PRIMARY KEY, started REAL NOT NULL, line TEXT NOT NULL, bundle TEXT NOT NULL,
        graph_sha256 TEXT NOT NULL, threshold REAL NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS parts (
        id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs, part INTEGER NOT NULL, triggered REAL NOT NULL,
        ended REAL NOT NULL, encoder INTEGER, verdict TEXT NOT NULL, cause TEXT, score REAL, image TEXT, blobs TEXT,
        picture TEXT, outcome TEXT)""",
)
INDEX = "CREATE UNIQUE INDEX IF NOT EXISTS outcomes ON parts (outcome)"  # an outcome that is reported twice is one row


def _to_1(database: sqlite3.Connection) -> None:
    """From an empty file, or from a journal that has no version: the oldest of these have no column ``outcome``."""
    for table in TABLES:
        database.execute(table)
    if "outcome" not in [row[1] for row in database.execute("PRAGMA table_info(parts)")]:
        database.execute("ALTER TABLE parts ADD COLUMN outcome TEXT")
    database.execute(INDEX)


# from version 0, 1, ...; the last one leads to VERSION
MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_to_1,)
VERSION = len(MIGRATIONS)  # kept in SQLite's ``user_version``


def migrate(database: sqlite3.Connection, name: str) -> None:
    """Bring a journal to `VERSION`, in one transaction.

    database: in autocommit mode. name: of the file, for messages.

    Raises InputError for a journal of a newer version, sqlite3.Error where it cannot be written.
    """
    database.execute("BEGIN IMMEDIATE")  # another line that shares the journal may be starting too
    try:
        found = int(database.execute("PRAGMA user_version").fetchone()[0])
        if found > VERSION:
            raise InputError(f"the journal {name} was written by a newer version of Lineside",
                             got=f"journal version {found}", expected=f"at most {VERSION}",
                             next="Run the newer version, or set another `path` under [journal] in the line file.")
        for step in MIGRATIONS[found:]:
            step(database)
        database.execute(f"PRAGMA user_version = {VERSION}")
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
