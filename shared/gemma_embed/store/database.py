"""The SQLite file of an embedding store: its form, its size, and what a damaged one looks like.

File offsets are those of https://www.sqlite.org/fileformat.html section 1.3.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from pathlib import Path

from gemma_embed.errors import StoreError

logger = logging.getLogger("gemma_embed")

LOCK_SECONDS = 60.0

_APPLICATION_ID = 0x67656D62
# A new version also changes the text of the table: by either number or text, a damaged store is
# told from a store of another version.
_VERSION = 1
_CREATE = """CREATE TABLE vectors (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    vector BLOB NOT NULL,
    checksum INTEGER NOT NULL
)"""
_PAGE_BYTES = 16384  # Five vectors of 768 numbers to a page; SQLite's own 4,096 hold one.
_REMAINDER = 0.9  # Of max_bytes, after an eviction.

_PRAGMAS = ("application_id", "user_version", "auto_vacuum", "encoding")
_MASTER = "SELECT rowid, type, name, tbl_name, rootpage, sql FROM sqlite_master"
_EMPTY = [0, 0, 0, "UTF-8"]
_FORM = [
    *(_APPLICATION_ID, _VERSION, 0, "UTF-8"),
    (1, "table", "vectors", "vectors", 2, _CREATE),
    (2, "index", "sqlite_autoindex_vectors_1", "vectors", 3, None),
]


class Damaged(sqlite3.DatabaseError):
    """A file does not have the form of a store."""


def create(path: Path) -> tuple[int, int] | None:
    """Create an empty file unless there is one; return what ``file_id`` says of it.

    Raises:
        OSError: If it cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        # SQLite itself would create a file that everyone may read.
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT, 0o600))
    return file_id(path)


def file_id(path: Path) -> tuple[int, int] | None:
    """Tell files apart that had the same path one after the other."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def connect(path: Path) -> sqlite3.Connection:
    """Open a store's file; give an empty one the form of a store.

    Statements commit by themselves unless a transaction is begun; text columns are bytes.

    Raises:
        Damaged: If it has another form.
        sqlite3.Error: If it cannot be used.
    """
    connection = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)
    try:
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        # The default journal, not a write-ahead log: one file, which may be copied or renamed.
        connection.execute("PRAGMA synchronous = FULL")
        # SQLite takes some files of other programs for empty ones.
        if _form(connection) == _EMPTY and path.stat().st_size == 0:
            _initialize(connection)
        if _form(connection) != _FORM:
            raise Damaged("it does not have the form of a store")
        # From here on a flipped bit can make text of any column, which need not be UTF-8.
        connection.text_factory = bytes
    except (UnicodeDecodeError, sqlite3.OperationalError) as error:
        connection.close()
        if primary_code(error) in (0, sqlite3.SQLITE_ERROR):
            # A table that cannot be parsed, text that is not UTF-8, or a form of SQLite's future.
            raise Damaged("it cannot be read as a store") from error
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def _form(connection: sqlite3.Connection) -> list[object]:
    values = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in _PRAGMAS]
    return values + connection.execute(_MASTER).fetchall()


def _initialize(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    # Another process may have been faster.
    if not connection.execute(_MASTER).fetchall():
        connection.execute(_CREATE)
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.execute("COMMIT")


def primary_code(error: Exception) -> int:
    """SQLite's number of an error without its variant; 0 for an error that is not SQLite's."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def is_damage(error: sqlite3.DatabaseError, path: Path) -> bool:
    """Whether an error means that a file is not as it was written."""
    code = primary_code(error)
    if code == sqlite3.SQLITE_READONLY:
        # So a flipped bit in the format versions, at offset 18, looks.
        return path.exists() and _first_page(path)[18:20] not in (b"\1\1", b"\2\2")
    return isinstance(error, Damaged) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def put_aside(path: Path) -> None:
    """Rename a damaged store to ``<name>.damaged``, in place of an older one of that name.

    Raises:
        StoreError: If the file is not a store's.
        OSError: If it cannot be renamed.
    """
    # Another process may have put it aside meanwhile.
    with contextlib.suppress(FileNotFoundError):
        page = _first_page(path)
        version, application = int.from_bytes(page[60:64]), int.from_bytes(page[68:72])
        if (version, application) != (_VERSION, _APPLICATION_ID) and _CREATE.encode() not in page:
            raise StoreError(
                f"{path} is another program's file, an embedding store of another version of this "
                "package, or a store whose first page is gone: give the store a path of its own"
            )
        path.replace(_aside(path))
        logger.warning(
            "the embedding store %s is damaged: it was renamed to %s and a new one begun, whose "
            "vectors are computed when they are needed",
            path,
            _aside(path).name,
        )


def delete_aside(path: Path) -> None:
    """Delete the damaged file that ``put_aside`` renamed, if there is one."""
    _aside(path).unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.damaged")


def _first_page(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_PAGE_BYTES)


def bytes_used(connection: sqlite3.Connection) -> int:
    """Bytes of the pages in use."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def evict(connection: sqlite3.Connection, max_bytes: int, spared: int) -> None:
    """Delete the oldest rows of a file that is larger than ``max_bytes``, and some more.

    Args:
        connection: To the file.
        max_bytes: The size.
        spared: So many of the newest rows stay in any case.
    """
    used = bytes_used(connection)
    if used <= max_bytes:
        return
    (count,) = connection.execute("SELECT count(*) FROM vectors").fetchone()
    connection.execute(
        "DELETE FROM vectors"
        " WHERE id <= (SELECT id FROM vectors ORDER BY id DESC LIMIT 1 OFFSET ?)",
        (max(int(count * _REMAINDER * max_bytes / used), spared),),
    )
