"""The SQLite file of an embedding store: its form, its size, and what to do when it is damaged."""

from __future__ import annotations

import logging
import mmap
import os
import re
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path

from gemma_embed.errors import StoreError

logger = logging.getLogger("gemma_embed")

LOCK_SECONDS = 60.0

REPLACE = "REPLACE INTO vectors (key, vector, checksum) VALUES (?, ?, ?)"
_ADD = "INSERT OR IGNORE INTO vectors (key, vector, checksum) VALUES (?, ?, ?)"

_APPLICATION_ID = 0x67656D62
# Another number has another text of the table too: by either, a file with damage is told from one
# of another version.
_SCHEMA = 1
_CREATE = """CREATE TABLE vectors (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    vector BLOB NOT NULL,
    checksum INTEGER NOT NULL
)"""
_PAGE_BYTES = 16384  # Five vectors of 768 numbers to a page; SQLite's own 4,096 hold one.
_KEPT_BY_EVICTION = 0.9

_NAME = "vectors"
_FORM = (
    _APPLICATION_ID,
    _SCHEMA,
    0,
    "UTF-8",
    [
        (1, "table", _NAME, _NAME, 2, _CREATE),
        (2, "index", "sqlite_autoindex_vectors_1", _NAME, 3, None),
    ],
)
_PRAGMAS = ("application_id", "user_version", "auto_vacuum", "encoding")
_MASTER = "SELECT rowid, type, name, tbl_name, rootpage, sql FROM sqlite_master"

# https://www.sqlite.org/fileformat.html section 2.1: what precedes the values of a row. Its own
# length, then the kind of each column: NULL, since the id is kept elsewhere; 32 bytes; any number
# of bytes; an integer of up to 8 bytes.
_ROW = re.compile(
    rb"[\x05-\x07]\x00\x4c([\x80-\xff]{0,2}[\x00-\x7f])([\x00-\x06\x08\x09])", re.DOTALL
)
_KEY_BYTES = 32
_INTEGER_BYTES = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 8: 0, 9: 0}


class Damaged(sqlite3.DatabaseError):
    """A file has not the form that it was made with."""


def make_sure_of(path: Path) -> None:
    """Make an empty file, unless there is one.

    Raises:
        OSError: If it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Closing a file drops the locks that SQLite holds on it in this process, so not any time.
    if not path.is_file():
        # SQLite itself would make a file that everyone may read.
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT, 0o600))


def opened(path: Path) -> sqlite3.Connection:
    """Open a store's file, or give an empty one the form of a store.

    Statements commit by themselves unless a transaction is begun.

    Raises:
        Damaged: If it has another form.
        sqlite3.Error: If it cannot be used.
    """
    connection = sqlite3.connect(
        path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        # The default journal, not a write-ahead log: one file, which may be copied or put aside.
        connection.execute("PRAGMA synchronous = FULL")
        if _form(connection) == (0, 0, 0, "UTF-8", []):
            _make(connection)
        if _form(connection) != _FORM:
            raise Damaged("it has another form than a store")
        # Without it a flipped bit that makes text of a column raises in the driver.
        connection.text_factory = bytes
    except UnicodeDecodeError as error:
        connection.close()
        raise Damaged("SQLite's own message about it cannot be read") from error
    except sqlite3.OperationalError as error:
        connection.close()
        if code(error) in (0, sqlite3.SQLITE_ERROR):
            # A table that cannot be parsed, text that is none, or a form from SQLite's future.
            raise Damaged(str(error)) from error
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def is_damage(error: sqlite3.DatabaseError, path: Path) -> bool:
    """Whether an error means that the file is not as it was written."""
    if code(error) == sqlite3.SQLITE_READONLY:
        # So a flipped bit in the versions that may write and read it looks.
        return path.exists() and _beginning(path)[18:20] not in (b"\1\1", b"\2\2")
    damage = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return isinstance(error, Damaged) or code(error) in damage


def code(error: Exception) -> int:
    """SQLite's number of an error; 0 for an error that is not SQLite's."""
    # The low byte is the primary code; the rest tells its kinds apart.
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _refuse_another_programs(path: Path) -> None:
    # https://www.sqlite.org/fileformat.html section 1.3: the versions are at offsets 60 and 68.
    page = _beginning(path)
    version, application = int.from_bytes(page[60:64]), int.from_bytes(page[68:72])
    if (version, application) != (_SCHEMA, _APPLICATION_ID) and _CREATE.encode() not in page:
        raise StoreError(
            f"{path} is another program's file, or an embedding store of another version of this "
            "package, or one whose first page is gone: give the store a path of its own"
        )


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_PAGE_BYTES)


def _form(connection: sqlite3.Connection) -> tuple[object, ...]:
    values = [connection.execute(f"PRAGMA {name}").fetchone() for name in _PRAGMAS]
    return (*(value[0] for value in values), connection.execute(_MASTER).fetchall())


def _make(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    # Another process may have been faster.
    if not connection.execute(_MASTER).fetchall():
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


def evict(connection: sqlite3.Connection, max_bytes: int, spared: int) -> None:
    """Delete the oldest rows of a file that has grown beyond a size, and some more.

    Args:
        connection: To the file.
        max_bytes: The size.
        spared: So many of the newest rows stay in any case.
    """
    used = bytes_used(connection)
    if used <= max_bytes:
        return
    (held,) = connection.execute("SELECT count(*) FROM vectors").fetchone()
    kept = max(int(held * _KEPT_BY_EVICTION * max_bytes / used), spared)
    connection.execute(
        "DELETE FROM vectors WHERE id IN (SELECT id FROM vectors ORDER BY id LIMIT ?)",
        (max(held - kept, 0),),
    )


def salvage(path: Path) -> None:
    """Copy every intact row to a new file in the place of a damaged one, which is put aside.

    Raises:
        StoreError: If the damaged file is not a store's.
        sqlite3.Error: If the new file cannot be written.
        OSError: If the files cannot be moved.
    """
    _refuse_another_programs(path)
    remove_set_aside(path)
    fresh = path.with_name(f"{path.name}.salvage-{os.getpid()}")
    _copy_rows(path, fresh)
    aside = path.with_name(f"{path.name}.damaged")
    try:
        os.link(path, aside)
    except OSError:
        # A disk without hard links; with them there is a store at every moment.
        path.replace(aside)
    fresh.replace(path)
    # Another process may have written to the old file since it was read.
    kept = _copy_rows(aside, path)
    logger.warning(
        "the embedding store %s was damaged: %d vectors are intact, others are computed again when "
        "they are needed; the damaged file is kept as %s",
        path,
        kept,
        aside.name,
    )


def remove_set_aside(path: Path) -> None:
    """Delete what salvages of a file left beside it."""
    for other in path.parent.iterdir():
        if other.name.startswith((f"{path.name}.damaged", f"{path.name}.salvage-")):
            other.unlink(missing_ok=True)


def _copy_rows(source: Path, target: Path) -> int:
    make_sure_of(target)
    connection = opened(target)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(_ADD, _intact_rows(source))
        (held,) = connection.execute("SELECT count(*) FROM vectors").fetchone()
        connection.execute("COMMIT")
    finally:
        connection.close()
    return int(held)


def _intact_rows(path: Path) -> Iterator[tuple[bytes, bytes, int]]:
    """Find rows by their own form and checksum, whatever leads to them.

    SQLite would follow the file's bookkeeping, and one flipped bit there hides thousands of rows.
    A row that was deleted and not yet overwritten may come back: it still is what its key says.
    """
    if path.stat().st_size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = 0
        while found := _ROW.search(data, place):
            place = found.start() + 1
            length, kind = _varint(found[1]) - 12, found[2][0]
            start = found.end() + _KEY_BYTES
            end = start + length // 2
            key, vector = data[start - _KEY_BYTES : start], data[start:end]
            after = end + _INTEGER_BYTES[kind]
            expected = 1 if kind == 9 else int.from_bytes(data[end:after], signed=True)
            if length >= 0 and length % 2 == 0 and intact(key, vector, expected):
                place = after
                yield key, vector, expected


def _varint(data: bytes) -> int:
    value = 0
    for byte in data:
        value = value << 7 | byte & 0x7F
    return value
