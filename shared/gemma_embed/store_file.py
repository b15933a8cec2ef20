"""The SQLite file of an embedding store: its form, its size, and what to do when it is damaged."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from gemma_embed.errors import StoreError

logger = logging.getLogger("gemma_embed")

LOCK_SECONDS = 60.0

REPLACE = "REPLACE INTO vectors (key, vector, checksum) VALUES (?, ?, ?)"

_APPLICATION_ID = 0x67656D62
_SCHEMA = 1
_CREATE = """CREATE TABLE vectors (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    vector BLOB NOT NULL,
    checksum INTEGER NOT NULL
)"""
_PAGE_BYTES = 16384  # Five vectors of 768 numbers to a page; SQLite's own 4,096 hold one.
_KEPT_BY_EVICTION = 0.9

_SCAN = "SELECT id, key, vector, checksum FROM vectors WHERE id > ? ORDER BY id LIMIT 500"
_LAST_ID = 2**63 - 1


def connected(path: Path) -> sqlite3.Connection:
    """Open a file; statements commit by themselves unless a transaction is begun."""
    connection = sqlite3.connect(
        path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
    )
    # Without it a flipped bit that makes text of a column raises in the driver.
    connection.text_factory = bytes
    return connection


def opened(path: Path) -> sqlite3.Connection:
    """Open a store's file, or make it.

    Raises:
        StoreError: If it is not a store's.
        sqlite3.Error: If it cannot be used.
        OSError: If it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # SQLite itself would make a file that everyone may read.
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT, 0o600))
    connection = connected(path)
    try:
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        # The default journal, not a write-ahead log: one file, which may be copied or put aside.
        connection.execute("PRAGMA synchronous = FULL")
        if _form(connection) == (0, 0):
            _make(connection)
        if _form(connection) != (_APPLICATION_ID, _SCHEMA):
            raise _not_ours(path)
    except BaseException:
        connection.close()
        raise
    return connection


def _not_ours(path: Path) -> StoreError:
    return StoreError(
        f"{path} is another program's file, or an embedding store of another version of this "
        "package: give the store a path of its own"
    )


def _refuse_another_programs(path: Path) -> None:
    # https://www.sqlite.org/fileformat.html section 1.3: the application id is at offset 68.
    with path.open("rb") as file:
        header = file.read(72)
    if int.from_bytes(header[68:72]) != _APPLICATION_ID:
        raise _not_ours(path)


def _form(connection: sqlite3.Connection) -> tuple[int, int]:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return application, version


def _make(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables:
        connection.execute(_CREATE)
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {_SCHEMA}")
    connection.execute("COMMIT")


def file_id(path: Path) -> tuple[int, int] | None:
    """Tell files apart that had the same path one after the other."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def checksum(key: bytes, vector: bytes) -> int:
    """CRC-32 of a row: finds every change of up to 32 bits in a row."""
    return zlib.crc32(vector, zlib.crc32(key))


def intact(key: object, vector: object, expected: object) -> bool:
    """Whether a row is as it was written; a flipped bit may change a column's type as well."""
    return (
        isinstance(key, bytes) and isinstance(vector, bytes) and checksum(key, vector) == expected
    )


def bytes_used(connection: sqlite3.Connection) -> int:
    """Bytes of the pages in use."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * size)


def evict(connection: sqlite3.Connection, max_bytes: int) -> None:
    """Delete the oldest rows of a file that has grown beyond a size, and some more."""
    used = bytes_used(connection)
    if used <= max_bytes:
        return
    (held,) = connection.execute("SELECT count(*) FROM vectors").fetchone()
    surplus = held - int(held * _KEPT_BY_EVICTION * max_bytes / used)
    connection.execute(
        "DELETE FROM vectors WHERE id IN (SELECT id FROM vectors ORDER BY id LIMIT ?)", (surplus,)
    )


def salvage(path: Path) -> None:
    """Copy every intact row to a new file in the place of a damaged one, which is put aside.

    Raises:
        StoreError: If the damaged file is not a store's.
        sqlite3.Error: If the new file cannot be written.
        OSError: If the files cannot be moved.
    """
    _refuse_another_programs(path)
    fresh = path.with_name(f"{path.name}.salvage-{os.getpid()}")
    fresh.unlink(missing_ok=True)
    source, target = connected(path), opened(fresh)
    kept = 0
    try:
        # Without it SQLite refuses to read anything of a file that was cut short.
        source.execute("PRAGMA writable_schema = ON")
        target.execute("BEGIN")
        for row in _readable(source):
            target.execute(REPLACE, row)
            kept += 1
        target.execute("COMMIT")
    finally:
        source.close()
        target.close()
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    path.replace(aside)
    fresh.replace(path)
    logger.warning(
        "the embedding store %s was damaged: %d vectors are intact, others are computed again when "
        "they are needed; the damaged file is kept as %s",
        path,
        kept,
        aside.name,
    )


def _readable(connection: sqlite3.Connection) -> Iterator[tuple[bytes, bytes, int]]:
    last, step = 0, 1
    while last < _LAST_ID:
        before = last
        try:
            for row, key, vector, expected in connection.execute(_SCAN, (last,)):
                if intact(key, vector, expected):
                    last, step = max(last, row), 1
                    yield key, vector, expected
        except sqlite3.DatabaseError:
            # A page after `last` is broken.
            last += step
            step *= 2
            continue
        if last == before:
            return
