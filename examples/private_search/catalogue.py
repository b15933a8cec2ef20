"""What is indexed, in one SQLite file: sources, units, documents, passages, and their words."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from gemma_embed.errors import ConfigurationError
from private_search.chunks import Chunk
from private_search.documents import Document, Kind

# Of the tables; in ``PRAGMA user_version``.
_VERSION = 1
# What a reader left out of a unit is a unit within it. A document without a unit has gone: nothing
# finds it any more, and its passages and their words leave the file once its vectors have left.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS sources (name TEXT PRIMARY KEY, kind TEXT, paths TEXT);
CREATE TABLE IF NOT EXISTS units (
    number INTEGER PRIMARY KEY AUTOINCREMENT, source TEXT, key TEXT, stamp TEXT, state TEXT,
    reason TEXT, within INTEGER REFERENCES units ON DELETE CASCADE);
CREATE INDEX IF NOT EXISTS units_of_source ON units (source, key);
CREATE INDEX IF NOT EXISTS units_within ON units (within);
CREATE TABLE IF NOT EXISTS documents (
    number INTEGER PRIMARY KEY AUTOINCREMENT, unit INTEGER REFERENCES units ON DELETE SET NULL,
    digest BLOB, id TEXT UNIQUE, kind TEXT, title TEXT, address TEXT, date REAL, sender TEXT,
    recipients TEXT, labels TEXT, folder TEXT, site TEXT);
CREATE INDEX IF NOT EXISTS documents_of_unit ON documents (unit);
CREATE TABLE IF NOT EXISTS passages (
    number INTEGER PRIMARY KEY AUTOINCREMENT, title TEXT, text TEXT, place TEXT,
    document INTEGER REFERENCES documents ON DELETE CASCADE);
CREATE INDEX IF NOT EXISTS passages_of_document ON passages (document);
CREATE VIEW IF NOT EXISTS found AS
    SELECT passages.number, id AS document, kind, passages.title, text, place, address, date,
    sender, folder, site FROM passages JOIN documents ON documents.number = document
    WHERE unit IS NOT NULL;
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5 (
    title, text, content=passages, content_rowid=number, tokenize="unicode61 remove_diacritics 2");
CREATE VIRTUAL TABLE IF NOT EXISTS vocabulary USING fts5vocab (words, row);
CREATE TRIGGER IF NOT EXISTS passage_added AFTER INSERT ON passages BEGIN
    INSERT INTO words (rowid, title, text) VALUES (new.number, new.title, new.text); END;
CREATE TRIGGER IF NOT EXISTS passage_removed AFTER DELETE ON passages BEGIN
    INSERT INTO words (words, rowid, title, text)
    VALUES ('delete', old.number, old.title, old.text); END;
"""
# What is kept of a document besides its passages.
_KEPT = ("id", "kind", "title", "address", "date", "sender", "recipients", "labels", "folder",
         "site")  # fmt: skip
# What a filter's words mean, of a column's values in small letters.
_MEANT: dict[str, Callable[[str, str], bool]] = {
    "sender": lambda value, wanted: wanted in value,
    "folder": lambda value, wanted: f"/{wanted}/" in f"/{value}/",
    "site": lambda value, wanted: f".{value}".endswith(f".{wanted.removeprefix('www.')}"),
}
# Chroma's operators in SQL. A list is one parameter: SQLite takes 32,766, and a mailbox may have
# more senders.
_SQL = {"$gte": ">= ?", "$lt": "< ?", "$in": "IN (SELECT value FROM json_each(?))"}


@dataclass(frozen=True)
class Found:
    """A passage and its document."""

    number: int
    document: str
    kind: Kind
    title: str
    text: str
    place: str
    address: str
    date: float | None
    sender: str
    folder: str
    site: str


@dataclass(frozen=True)
class Filter:
    """What is searched. Empty and None mean all.

    Attributes:
        kind: Files, mails or pages.
        after: Seconds since 1970; this moment and later.
        before: Seconds since 1970; earlier than this moment.
        sender: A part of a sender's name or address.
        folder: A folder, and those below it.
        site: A host, and those below it.
    """

    kind: Kind | None = None
    after: float | None = None
    before: float | None = None
    sender: str = ""
    folder: str = ""
    site: str = ""


ALL = Filter()


def start_of(day: date | None) -> float | None:
    """Return the first moment of a day, UTC, as filters have it."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() if day else None


class Catalogue:
    """The file. For one thread at a time; other processes may read while one writes."""

    def __init__(self, path: Path) -> None:
        """Open the file, or create it.

        Raises:
            ConfigurationError: If another version of this program made it.
        """
        self.db = sqlite3.connect(path, timeout=30, check_same_thread=False)
        version = self.all("PRAGMA user_version")
        if version != [(_VERSION,)] and self.all("SELECT * FROM sqlite_master"):
            self.db.close()
            raise ConfigurationError(
                f"{path} was made by another version of this program: delete all in its folder but "
                "chroma.embeddings.sqlite, and index again; no vector is computed twice"
            )
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = NORMAL")
        self.db.execute("PRAGMA foreign_keys = ON")
        # Deleted mail is overwritten, in the file as well.
        self.db.execute("PRAGMA secure_delete = ON")
        if version != [(_VERSION,)]:
            # Only then, since it waits for whoever writes.
            self.db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT")

    def all(self, query: str, *values: object) -> list[Any]:
        """Return the rows that a query finds."""
        return self.db.execute(query, values).fetchall()

    def insert(self, table: str, **fields: object) -> int:
        """Insert a row, in place of one with the same key, and return its number."""
        columns, values = ", ".join(fields), ", :".join(fields)
        query = f"INSERT OR REPLACE INTO {table} ({columns}) VALUES (:{values})"  # noqa: S608
        return self.db.execute(query, fields).lastrowid or 0

    def setting(self, name: str) -> str | None:
        """Return what is in the table of settings."""
        rows = self.all("SELECT value FROM settings WHERE name = ?", name)
        return rows[0][0] if rows else None

    def put(self, unit: int, document: Document, chunks: Iterable[Chunk]) -> bool:
        """Store a document and its passages; False if it was there, and equal."""
        digest = hashlib.blake2b(repr(document).encode(), digest_size=16).digest()
        # One that has gone is another one when it comes back: its vectors may have left already.
        move = "UPDATE documents SET unit = ? WHERE id = ? AND digest = ? AND unit IS NOT NULL"
        if self.db.execute(move, (unit, document.id, digest)).rowcount:
            return False
        self.db.execute("DELETE FROM documents WHERE id = ?", (document.id,))
        kept = {name: getattr(document, name) for name in _KEPT}
        number = self.insert("documents", unit=unit, digest=digest, **kept)
        for chunk in chunks:
            self.insert("passages", document=number, **vars(chunk))
        return True

    def passages(self, where: str = "1", *values: object) -> list[Found]:
        """Return passages, in their order; ``where`` is this package's own SQL."""
        rows = self.all(f"SELECT * FROM found WHERE {where} ORDER BY number", *values)  # noqa: S608
        return [Found(*row) for row in rows]

    def by_number(self, numbers: Iterable[int]) -> dict[int, Found]:
        """Return passages by their numbers; those that have gone are missing."""
        wanted = json.dumps(list(numbers))
        found = self.passages("number IN (SELECT value FROM json_each(?))", wanted)
        return {each.number: each for each in found}

    def matching(self, expression: str, filters: Filter, limit: int) -> list[int]:
        """Search words: numbers of passages, best first (BM25, titles count three times)."""
        parts = self.conditions(filters)
        where = "".join(f" AND {column} {_SQL[operator]}" for column, operator, _ in parts)
        values = [json.dumps(value) if operator == "$in" else value for _, operator, value in parts]
        rows = self.all(
            "SELECT number FROM words JOIN found ON number = words.rowid "  # noqa: S608
            f"WHERE words MATCH ?{where} ORDER BY bm25(words, 3.0, 1.0) LIMIT ?",
            *(expression, *values, limit),
        )
        return [number for (number,) in rows]

    def conditions(self, filters: Filter) -> list[tuple[str, str, Any]]:
        """Return a filter as columns, Chroma's operators and values, as both searches apply it."""
        parts: list[tuple[str, str, Any]] = [
            ("kind", "$in", filters.kind and [filters.kind]),
            ("date", "$gte", filters.after),
            ("date", "$lt", filters.before),
        ]
        for column, meant in _MEANT.items():
            if wanted := getattr(filters, column).lower().strip("/"):
                rows = self.all(f"SELECT DISTINCT {column} FROM documents")  # noqa: S608
                values = [value for (value,) in rows if value and meant(value.lower(), wanted)]
                # Chroma takes no empty list; nothing has the value itself then.
                parts.append((column, "$in", values or [wanted]))
        return [part for part in parts if part[2] is not None]

    def rarity(self, words: Sequence[str]) -> dict[str, float]:
        """Return how rare words are (IDF); one that nothing has is the rarest of all."""
        query = "SELECT term, doc FROM vocabulary WHERE term IN (SELECT value FROM json_each(?))"
        frequency, total = dict(self.all(query, json.dumps(words))), self.count() + 1
        return {word: max(math.log(total / (frequency.get(word, 0) + 0.5)), 0.0) for word in words}

    def count(self) -> int:
        """Return how many passages there are."""
        return int(self.all("SELECT count(*) FROM passages")[0][0])
