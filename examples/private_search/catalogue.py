"""What is indexed, in one SQLite file: sources, units, documents, passages, and their words."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from private_search.chunks import Chunk
from private_search.documents import Document, Kind, Skipped, Unit

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sources (name TEXT PRIMARY KEY, kind TEXT, path TEXT, pages TEXT);
CREATE TABLE IF NOT EXISTS units (
    number INTEGER PRIMARY KEY, source TEXT, key TEXT, stamp TEXT, state TEXT, reason TEXT,
    parent INTEGER, UNIQUE (source, key));
CREATE INDEX IF NOT EXISTS parts_of_unit ON units (parent);
CREATE TABLE IF NOT EXISTS documents (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, unit INTEGER, digest BLOB,
    kind TEXT, title TEXT, address TEXT, date REAL, sender TEXT, recipients TEXT, labels TEXT,
    folder TEXT, site TEXT, note TEXT, space TEXT);
CREATE INDEX IF NOT EXISTS documents_of_unit ON documents (unit);
CREATE INDEX IF NOT EXISTS documents_in_space ON documents (space);
CREATE TABLE IF NOT EXISTS passages (
    number INTEGER PRIMARY KEY AUTOINCREMENT, document INTEGER, title TEXT, text TEXT, place TEXT);
CREATE INDEX IF NOT EXISTS passages_of_document ON passages (document);
CREATE TABLE IF NOT EXISTS gone (id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT);
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5 (
    title, text, content=passages, content_rowid=number, tokenize="unicode61 remove_diacritics 2");
CREATE VIRTUAL TABLE IF NOT EXISTS vocabulary USING fts5vocab (words, row);
CREATE TRIGGER IF NOT EXISTS passage_added AFTER INSERT ON passages BEGIN
    INSERT INTO words (rowid, title, text) VALUES (new.number, new.title, new.text); END;
CREATE TRIGGER IF NOT EXISTS passage_removed AFTER DELETE ON passages BEGIN
    INSERT INTO words (words, rowid, title, text)
    VALUES ('delete', old.number, old.title, old.text); END;
"""


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


def start_of(day: date | None) -> float | None:
    """Return the first moment of a day, UTC, as filters have it."""
    return day and datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


class Catalogue:
    """The file. For one thread at a time; other processes may read while one writes."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, timeout=30, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = NORMAL")
        # Deleted mail is overwritten, in the file as well.
        self.db.execute("PRAGMA secure_delete = ON")
        self.db.executescript(_SCHEMA)

    def known(self, source: str) -> dict[str, tuple[int, str, str]]:
        """Return number, stamp and state of a source's units, by their keys."""
        rows = self.db.execute(
            "SELECT key, number, stamp, state FROM units WHERE source = ? AND parent IS NULL",
            (source,),
        )
        return {key: (number, stamp, state) for key, number, stamp, state in rows}

    def note(
        self,
        source: str,
        unit: Unit | Skipped,
        state: str,
        reason: str = "",
        parent: int | None = None,
    ) -> int:
        """Write down the state of a unit, or of a part of one, and return its number.

        A unit that is being read has no stamp: after a kill it is read again.
        """
        stamp = unit.stamp if isinstance(unit, Unit) and state != "reading" else ""
        return int(
            self.db.execute(
                "INSERT INTO units (source, key, stamp, state, reason, parent) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (source, key) DO UPDATE SET "
                "stamp = excluded.stamp, state = excluded.state, reason = excluded.reason "
                "RETURNING number",
                (source, unit.key, stamp, state, reason, parent),
            ).fetchone()[0]
        )

    def put(self, unit: int, document: Document, chunks: Iterable[Chunk]) -> bool:
        """Store a document and its passages; False if it was there, and equal."""
        fields = asdict(document)
        digest = hashlib.blake2b(repr(sorted(fields.items())).encode(), digest_size=16).digest()
        row = self.db.execute(
            "SELECT number, digest FROM documents WHERE id = ?", (document.id,)
        ).fetchone()
        if row is not None and row[1] == digest:
            self.db.execute("UPDATE documents SET unit = ? WHERE number = ?", (unit, row[0]))
            return False
        if row is not None:
            self._forget(row[0])
        columns = ("id", "kind", "title", "address", "date", "sender", "recipients", "labels",
                   "folder", "site", "note")  # fmt: skip
        number = self.db.execute(
            f"INSERT INTO documents (unit, digest, {', '.join(columns)}) "  # noqa: S608
            f"VALUES (?, ?{', ?' * len(columns)})",
            (unit, digest, *(fields[column] for column in columns)),
        ).lastrowid
        self.db.executemany(
            "INSERT INTO passages (document, title, text, place) VALUES (?, ?, ?, ?)",
            ((number, chunk.title, chunk.text, chunk.place) for chunk in chunks),
        )
        # It is there again, should it have gone.
        self.db.execute("DELETE FROM gone WHERE id = ?", (document.id,))
        return True

    def keep(self, unit: int, ids: set[str]) -> int:
        """Remove a unit's documents but these; their vectors follow. Return how many went."""
        rows = self.db.execute("SELECT number, id FROM documents WHERE unit = ?", (unit,))
        old = [(number, name) for number, name in rows if name not in ids]
        for number, name in old:
            self._forget(number)
            self.db.execute("INSERT OR IGNORE INTO gone VALUES (?)", (name,))
        return len(old)

    def remove(self, unit: int) -> int:
        """Remove a unit and its documents."""
        gone = self.keep(unit, set())
        self.db.execute("DELETE FROM units WHERE number = ? OR parent = ?", (unit, unit))
        return gone

    def _forget(self, document: int) -> None:
        self.db.execute("DELETE FROM passages WHERE document = ?", (document,))
        self.db.execute("DELETE FROM documents WHERE number = ?", (document,))

    def pending(self, space: str) -> Iterator[tuple[int, list[Found]]]:
        """Yield documents that have no vectors in a space, with their passages."""
        numbers = self.db.execute(
            "SELECT number FROM documents WHERE space IS NOT ? ORDER BY number", (space,)
        ).fetchall()
        for (number,) in numbers:
            yield number, self.passages("documents.number = ?", (number,))

    def embedded(self, space: str, documents: Iterable[int]) -> None:
        """Note that documents have their vectors in a space."""
        rows = ((space, number) for number in documents)
        self.db.executemany("UPDATE documents SET space = ? WHERE number = ?", rows)
        self.db.commit()

    def passages(self, where: str = "1", values: Sequence[object] = ()) -> list[Found]:
        """Return passages, in their order; ``where`` is this package's own SQL."""
        rows = self.db.execute(
            "SELECT passages.number, id, kind, passages.title, text, place, address, date, sender, "  # noqa: S608
            "folder, site FROM passages JOIN documents ON documents.number = document "
            f"WHERE {where} ORDER BY passages.number",
            values,
        )
        return [Found(*row) for row in rows]

    def by_number(self, numbers: Sequence[int]) -> dict[int, Found]:
        """Return passages by their numbers; those that have gone are missing."""
        wanted = json.dumps([number for number in numbers if number < 2**63])
        found = self.passages("passages.number IN (SELECT value FROM json_each(?))", (wanted,))
        return {each.number: each for each in found}

    def matching(self, expression: str, filters: Filter, limit: int) -> list[int]:
        """Search words: numbers of passages, best first (BM25, titles count three times)."""
        where, values = self.condition(filters)
        rows = self.db.execute(
            "SELECT words.rowid FROM words JOIN passages ON passages.number = words.rowid "  # noqa: S608
            f"JOIN documents ON documents.number = document WHERE words MATCH ? AND {where} "
            "ORDER BY bm25(words, 3.0, 1.0) LIMIT ?",
            (expression, *values, limit),
        )
        return [number for (number,) in rows]

    def condition(self, filters: Filter) -> tuple[str, list[object]]:
        """Return a filter as SQL over ``documents``."""
        parts, values = ["1"], []
        for column, sign, value in (
            ("kind", "=", filters.kind),
            ("date", ">=", filters.after),
            ("date", "<", filters.before),
        ):
            if value is not None:
                parts.append(f"{column} {sign} ?")
                values.append(value)
        for column in ("sender", "folder", "site"):
            if getattr(filters, column):
                # One value, since SQLite takes 32,766 and a mailbox may have more senders.
                parts.append(f"{column} IN (SELECT value FROM json_each(?))")  # noqa: S608
                values.append(json.dumps(self.chosen(column, filters)))
        return " AND ".join(parts), values

    def chosen(self, column: str, filters: Filter) -> list[str]:
        """Return the values of a column that a filter means, as both searches compare them."""
        wanted = str(getattr(filters, column)).lower().strip("/")
        rows = self.db.execute(f"SELECT DISTINCT {column} FROM documents")  # noqa: S608
        tests = {
            "sender": lambda value: wanted in value,
            "folder": lambda value: f"/{wanted}/" in f"/{value}/",
            "site": lambda value: f".{value}".endswith(f".{wanted.removeprefix('www.')}"),
        }
        return [value for (value,) in rows if value and tests[column](value.lower())]

    def frequency(self, terms: Sequence[str]) -> dict[str, int]:
        """Return in how many passages terms occur, as the index has them: small, no accents."""
        rows = self.db.execute(
            "SELECT term, doc FROM vocabulary WHERE term IN (SELECT value FROM json_each(?))",
            (json.dumps(terms),),
        )
        return dict(rows.fetchall())

    def count(self) -> int:
        """Return how many passages there are."""
        return int(self.db.execute("SELECT count(*) FROM passages").fetchone()[0])

    def setting(self, name: str, value: str | None = None) -> str | None:
        """Read a setting, or write one."""
        if value is not None:
            self.db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))
            self.db.commit()
            return value
        row = self.db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])
