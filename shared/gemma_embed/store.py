"""Vectors on disk: what outlives crashes, indexes and changes of width."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gemma_embed import store_file
from gemma_embed.errors import ConfigurationError, StoreError
from gemma_embed.vectors import Vectors

_Result = TypeVar("_Result")

_KEYS_PER_QUERY = 500
_SELECT = "SELECT key, vector, checksum FROM vectors WHERE key IN ({})"

_MENDS = {
    sqlite3.SQLITE_FULL: "free some space on the disk, or set max_bytes",
    sqlite3.SQLITE_IOERR: "check the disk's space, quota and health",
    sqlite3.SQLITE_READONLY: "make it writable, or leave the store out",
    sqlite3.SQLITE_BUSY: f"another process held it for {store_file.LOCK_SECONDS:.0f} s",
}

# SQLite forbids closing a connection on the other side of a fork: it would undo what the parent is
# doing. Held here, a child never closes one.
_INHERITED: list[sqlite3.Connection] = []


@dataclass(frozen=True)
class StoreStats:
    """What a store holds, and how it has served this object.

    Attributes:
        vectors: Vectors held.
        bytes: Bytes in use in the file.
        hits: Vectors that were found.
        misses: Vectors that were asked for and not found.
        damaged: Those of them that were there, changed by the disk.
    """

    vectors: int
    bytes: int
    hits: int
    misses: int
    damaged: int


class EmbeddingStore:
    """Full-width vectors by what they were made from: weights, software, prompt and text.

    Give one to ``Embedder`` or to an adapter as ``store=``. What it holds is never computed again:
    not after a crash, not for another width, another framework or another index. Vectors are
    committed batch by batch and come back bit for bit. Threads and processes may share a file on
    a local disk; the object can be pickled and copied.

    It keeps hashes of texts, not texts. But a vector tells much of what its text says
    (https://arxiv.org/abs/2310.06816), so only its owner may read the file.

    Attributes:
        path: The file.
        max_bytes: Beyond this the oldest vectors are forgotten, though never those of the batch
            just written; None for no limit.
    """

    def __init__(self, path: str | Path, *, max_bytes: int | None = None) -> None:
        """Check the options; the file is made or opened at the first use.

        Args:
            path: The file; its folder is made if need be.
            max_bytes: See the class.

        Raises:
            ConfigurationError: If an option has a value that cannot work.
        """
        if not isinstance(path, (str, Path)) or not str(path):
            raise ConfigurationError(f"store path {path!r} is not a path")
        if max_bytes is not None and max_bytes < 1_000_000:
            raise ConfigurationError(f"max_bytes={max_bytes}: a store takes at least 1,000,000")
        self.path = Path(path)
        self.max_bytes = max_bytes
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._hits = self._misses = self._damaged = 0

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        return {"path": str(self.path), "max_bytes": self.max_bytes}

    def __repr__(self) -> str:
        return f"EmbeddingStore({str(self.path)!r}, max_bytes={self.max_bytes})"

    def __reduce__(self) -> tuple[object, ...]:
        return (_remade, (self.path, self.max_bytes))

    def __enter__(self) -> EmbeddingStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # A constructor that raised leaves no connection behind.
        if getattr(self, "_connection", None) is not None:
            self.close()

    def get(self, space: str, texts: Sequence[str], width: int) -> tuple[list[int], Vectors]:
        """Look vectors up.

        Args:
            space: Name of the vector space at full width, at most 64 bytes.
            texts: Prompted texts, no text twice.
            width: Numbers in a vector.

        Returns:
            The rows of ``texts`` that were found, and for each its vector: float32, shape
            (found, width), bit for bit as stored. A vector that changed on the disk is not found.

        Raises:
            StoreError: If the file cannot be used.
        """
        row_of = {_key(space, text): row for row, text in enumerate(texts)}
        keys = list(row_of)

        def look_up(connection: sqlite3.Connection) -> tuple[list[int], list[bytes], int]:
            rows: list[int] = []
            found: list[bytes] = []
            damaged = 0
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                asked = keys[start : start + _KEYS_PER_QUERY]
                query = _SELECT.format(",".join("?" * len(asked)))
                for key, vector, checksum in connection.execute(query, asked):
                    if store_file.intact(key, vector, checksum) and len(vector) == 4 * width:
                        rows.append(row_of[key])
                        found.append(vector)
                    else:
                        damaged += 1
            return rows, found, damaged

        rows, found, damaged = self._do(look_up)
        with self._lock:
            self._hits += len(rows)
            self._misses += len(keys) - len(rows)
            self._damaged += damaged
        return rows, np.frombuffer(b"".join(found), dtype="<f4").reshape(len(rows), width)

    def put(self, space: str, texts: Sequence[str], vectors: Vectors) -> None:
        """Keep vectors: when this returns, all of them are on the disk.

        Args:
            space: Name of the vector space at full width, at most 64 bytes.
            texts: Prompted texts.
            vectors: float32, shape (len(texts), width).

        Raises:
            StoreError: If the file cannot be used; then none of these is kept, and all that was
                kept before still is.
        """
        rows = []
        for text, vector in zip(texts, vectors, strict=True):
            key, data = _key(space, text), vector.astype("<f4").tobytes()
            rows.append((key, data, store_file.checksum(key, data)))

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(store_file.REPLACE, rows)
            if self.max_bytes is not None:
                store_file.evict(connection, self.max_bytes, spared=len(rows))
            connection.execute("COMMIT")

        self._do(write)

    def check_writable(self) -> None:
        """Find out now, not after an hour of model work, whether vectors can be kept.

        Raises:
            StoreError: If they cannot.
        """

        def try_to_write(connection: sqlite3.Connection) -> None:
            # A transaction alone begins on a read-only file too.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM vectors WHERE id = -1")
            connection.execute("ROLLBACK")

        self._do(try_to_write)

    def clear(self) -> None:
        """Forget everything, overwrite it, and give the space back to the disk.

        A damaged file that was put aside is deleted.

        Raises:
            StoreError: If the file cannot be used.
        """

        def forget(connection: sqlite3.Connection) -> None:
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("DELETE FROM vectors")
            connection.execute("VACUUM")
            store_file.remove_set_aside(self.path)

        self._do(forget)

    def stats(self) -> StoreStats:
        """Count what is held; reads the whole index."""

        def count(connection: sqlite3.Connection) -> tuple[int, int]:
            (held,) = connection.execute("SELECT count(*) FROM vectors").fetchone()
            return held, store_file.bytes_used(connection)

        held, used = self._do(count)
        return StoreStats(held, used, self._hits, self._misses, self._damaged)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._leave_the_parent()
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _do(self, operation: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Run an operation; if the file is damaged, save what can be read and run it again."""
        self._leave_the_parent()
        with self._lock:
            try:
                try:
                    return self._done(operation)
                except sqlite3.DatabaseError as error:
                    self.close()
                    if not store_file.is_damage(error, self.path):
                        raise
                    self._set_aside()
                return self._done(operation)
            except (sqlite3.Error, OSError) as error:
                self.close()
                mend = _MENDS.get(
                    store_file.code(error), "check that it is a file of yours on a local disk"
                )
                raise StoreError(f"the embedding store {self.path}: {error}; {mend}") from error
            except BaseException:
                # Also Ctrl-C: closing ends the transaction that may be open.
                self.close()
                raise

    def _done(self, operation: Callable[[sqlite3.Connection], _Result]) -> _Result:
        while True:
            result = operation(self._open())
            # If another process has put the file aside meanwhile, what was written went with it.
            if self._file == store_file.file_id(self.path):
                return result

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and self._file == store_file.file_id(self.path):
            return self._connection
        self.close()
        store_file.make_sure_of(self.path)
        # Before opening: if the file is put aside in between, that is noticed afterwards.
        self._file = store_file.file_id(self.path)
        self._connection = store_file.opened(self.path)
        return self._connection

    def _set_aside(self) -> None:
        if self._file is None or self._file == store_file.file_id(self.path):
            store_file.salvage(self.path)

    def _leave_the_parent(self) -> None:
        if self._pid == os.getpid():
            return
        if self._connection is not None:
            _INHERITED.append(self._connection)
        # Another thread of the parent may have held the lock when it forked.
        self._lock = threading.RLock()
        self._connection = None
        self._pid = os.getpid()


def open_store(
    store: EmbeddingStore | str | Path | Mapping[str, Any] | None,
) -> EmbeddingStore | None:
    """Return a store object; no file is opened.

    Args:
        store: An object, the path of its file, the ``settings`` of one, or None for none.

    Raises:
        ConfigurationError: If it is none of these.
    """
    if store is None or isinstance(store, EmbeddingStore):
        return store
    if not isinstance(store, Mapping):
        return EmbeddingStore(store)
    try:
        return EmbeddingStore(**store)
    except TypeError as error:
        raise ConfigurationError(f"settings that a store does not have: {error}") from error


def _remade(path: Path, max_bytes: int | None) -> EmbeddingStore:
    return EmbeddingStore(path, max_bytes=max_bytes)


def _key(space: str, text: str) -> bytes:
    return hashlib.blake2b(text.encode(), key=space.encode(), digest_size=32).digest()
