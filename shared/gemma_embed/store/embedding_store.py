"""Vectors on disk: they outlive crashes, indexes and changes of width."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from gemma_embed.compact import packed, unpacked
from gemma_embed.errors import ConfigurationError, StoreError
from gemma_embed.files import expanded
from gemma_embed.store import database
from gemma_embed.vectors import Vectors

StoredForm = Literal["float32", "int8"]

_Result = TypeVar("_Result")

_KEYS_PER_QUERY = 500
_SELECT = "SELECT key, vector, checksum FROM vectors WHERE key IN ({})"
_REPLACE = "REPLACE INTO vectors (key, vector, checksum) VALUES (?, ?, ?)"

# Two are needed for a damaged file. The third is for file systems whose inode numbers change by
# themselves, where every file looks as if it had just been replaced.
_ATTEMPTS = 3

_ADVICE = {
    sqlite3.SQLITE_FULL: "free some space on the disk, or set max_bytes",
    sqlite3.SQLITE_IOERR: "check the disk's space, quota and health",
    sqlite3.SQLITE_READONLY: "make it writable, or leave the store out",
    sqlite3.SQLITE_BUSY: f"another process locked it for {database.LOCK_SECONDS:.0f} s",
}

# One operation at a time, and no fork in the middle of one: SQLite forbids carrying an open file
# into a child (https://www.sqlite.org/howtocorrupt.html section 2.6).
_OPERATION = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_OPERATION.acquire,
        after_in_parent=_OPERATION.release,
        after_in_child=_OPERATION.release,
    )


@dataclass(frozen=True)
class StoreStats:
    """What a store contains, and how it has served this object.

    Attributes:
        vectors: Vectors in the file.
        bytes: Bytes in use in the file.
        hits: Vectors that were found.
        misses: Vectors that were asked for and not found.
        damaged: Those of the misses that were in the file, changed by the disk.
    """

    vectors: int
    bytes: int
    hits: int
    misses: int
    damaged: int


class EmbeddingStore:
    """A cache of full-width vectors, by weights, software, prompt and text.

    Give one to ``Embedder`` or to an adapter as ``store=``. A vector in it is not computed again:
    not after a crash, not for another width, another framework or another index. Vectors are
    committed batch by batch and come back bit for bit. Threads and processes may share a file on
    a local disk; the object can be pickled and copied.

    A row that the disk has changed counts as missing. A file that SQLite cannot read any more is
    renamed to ``<name>.damaged``, replacing an older file of that name, with a warning, and a new
    file is begun. A file that is not a store's is never touched.

    The file contains hashes of texts, not texts. But a vector tells much of what its text says
    (https://arxiv.org/abs/2310.06816), so only its owner may read the file.

    Attributes:
        path: The file.
        max_bytes: Beyond this the oldest vectors are deleted, though never those of the batch
            just written; None for no limit.
        form: ``float32``; or ``int8``, a quarter of the bytes, by the rule of
            ``gemma_embed.compact``. Then an embedder with this store returns what the store gives
            back, computed or found: a vector near the model's, and another fingerprint. One file
            may hold both forms, each for the embedders that ask for it.
    """

    def __init__(
        self, path: str | Path, *, max_bytes: int | None = None, form: StoredForm = "float32"
    ) -> None:
        """Check the options; the first use creates or opens the file.

        Args:
            path: The file, ``~`` for the home folder; missing folders are created.
            max_bytes: See the class.
            form: See the class.

        Raises:
            ConfigurationError: If an option has a value that cannot work.
        """
        if not isinstance(path, (str, Path)) or not str(path):
            raise ConfigurationError(f"store path {path!r} is not a path")
        if max_bytes is not None and not (isinstance(max_bytes, int) and max_bytes >= 1_000_000):
            raise ConfigurationError(f"max_bytes={max_bytes!r}: use an int, at least 1,000,000")
        if form not in get_args(StoredForm):
            raise ConfigurationError(f"unknown form={form!r}; use 'float32' or 'int8'")
        self.path = expanded(path)
        self.max_bytes = max_bytes
        self.form = form
        self._hits = self._misses = self._damaged = 0

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        # As they were before there were forms, since indexes have them.
        other = {} if self.form == "float32" else {"form": self.form}
        return {"path": str(self.path), "max_bytes": self.max_bytes, **other}

    def __repr__(self) -> str:
        form = "" if self.form == "float32" else f", form={self.form!r}"
        return f"EmbeddingStore({str(self.path)!r}, max_bytes={self.max_bytes}{form})"

    def __enter__(self) -> EmbeddingStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, space: str, texts: Sequence[str], width: int) -> tuple[list[int], Vectors]:
        """Look vectors up.

        Args:
            space: Name of the vector space at full width, at most 59 bytes.
            texts: Prompted texts, no text twice.
            width: Numbers in a vector.

        Returns:
            The rows of ``texts`` that were found, and for each its vector: float32, shape
            (found, width), bit for bit as stored.

        Raises:
            StoreError: If the file cannot be used.
        """
        keys = [self._key(space, text) for text in texts]
        size = width if self.form == "int8" else 4 * width

        def look_up(connection: sqlite3.Connection) -> tuple[list[int], list[bytes], int]:
            missing = {key: row for row, key in enumerate(keys)}
            rows: list[int] = []
            found: list[bytes] = []
            damaged = 0
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                asked = keys[start : start + _KEYS_PER_QUERY]
                query = _SELECT.format(",".join("?" * len(asked)))
                for key, vector, checksum in connection.execute(query, asked):
                    # A damaged index leads to rows of other keys.
                    if key in missing and _is_intact(key, vector, checksum, size):
                        rows.append(missing.pop(key))
                        found.append(vector)
                    else:
                        damaged += 1
            return rows, found, damaged

        with _OPERATION:
            rows, found, damaged = self._run(look_up)
            self._hits += len(rows)
            self._misses += len(keys) - len(rows)
            self._damaged += damaged
        kind = "i1" if self.form == "int8" else "<f4"
        stored = np.frombuffer(b"".join(found), dtype=kind).reshape(len(rows), width)
        return rows, unpacked(stored, "int8", width) if self.form == "int8" else stored

    def rounded(self, vectors: Vectors) -> Vectors:
        """Return vectors as the store would give them back, again and again the same.

        Args:
            vectors: float32, shape (n, width), rows of norm 1.
        """
        if self.form == "float32":
            return vectors
        return unpacked(packed(vectors, "int8"), "int8", vectors.shape[1])

    def put(self, space: str, texts: Sequence[str], vectors: Vectors) -> None:
        """Store vectors: when this returns, all of them are on the disk.

        Args:
            space: Name of the vector space at full width, at most 59 bytes.
            texts: Prompted texts.
            vectors: float32, shape (len(texts), width).

        Raises:
            StoreError: If the file cannot be used; then it is as it was before.
        """
        rows = []
        stored = packed(vectors, "int8") if self.form == "int8" else vectors.astype("<f4")
        for text, vector in zip(texts, stored, strict=True):
            key, data = self._key(space, text), vector.tobytes()
            rows.append((key, data, _checksum(key, data)))

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_REPLACE, rows)
            if self.max_bytes is not None:
                database.evict(connection, self.max_bytes, spared=len(rows))
            connection.execute("COMMIT")

        self._run(write)

    def check_writable(self) -> None:
        """Find out now, not after an hour of model work, whether vectors can be stored.

        Raises:
            StoreError: If they cannot.
        """

        def try_to_write(connection: sqlite3.Connection) -> None:
            # A transaction alone begins on a read-only file too.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM vectors WHERE id = -1")
            connection.execute("ROLLBACK")

        self._run(try_to_write)

    def clear(self) -> None:
        """Delete and overwrite all vectors, and give the space back to the disk.

        A damaged file that was put aside is deleted.

        Raises:
            StoreError: If the file cannot be used.
        """

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("DELETE FROM vectors")
            connection.execute("VACUUM")
            database.delete_aside(self.path)

        self._run(delete)

    def stats(self) -> StoreStats:
        """Count what the file contains; reads the complete index.

        Raises:
            StoreError: If the file cannot be used.
        """

        def count(connection: sqlite3.Connection) -> tuple[int, int]:
            (vectors,) = connection.execute("SELECT count(*) FROM vectors").fetchone()
            return vectors, database.bytes_used(connection)

        vectors, used = self._run(count)
        return StoreStats(vectors, used, self._hits, self._misses, self._damaged)

    def close(self) -> None:
        """Do nothing: every operation closes the file by itself."""

    def _key(self, space: str, text: str) -> bytes:
        # Of its own for each form: a row of another one is never asked for.
        name = space if self.form == "float32" else f"{space} {self.form}"
        return hashlib.blake2b(text.encode(), key=name.encode(), digest_size=32).digest()

    def _run(self, operation: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Run an operation on the file; put a damaged file aside and run it again."""
        with _OPERATION:
            try:
                return self._attempt(operation, 1)
            except (sqlite3.Error, OSError) as error:
                advice = _ADVICE.get(
                    database.primary_code(error), "check that it is a file of yours on a local disk"
                )
                raise StoreError(f"the embedding store {self.path}: {error}; {advice}") from error

    def _attempt(self, operation: Callable[[sqlite3.Connection], _Result], number: int) -> _Result:
        file = database.create(self.path)
        try:
            # Closing ends a transaction that an error or Ctrl-C has left open.
            with closing(database.connect(self.path)) as connection:
                result = operation(connection)
        except sqlite3.DatabaseError as error:
            if number == _ATTEMPTS or not database.is_damage(error, self.path):
                raise
            # Another process may have put it aside already.
            if number > 1 or file == database.file_id(self.path):
                database.put_aside(self.path)
        else:
            # Another process may have put the file aside meanwhile, and what was written with it.
            if number == _ATTEMPTS or file == database.file_id(self.path):
                return result
        return self._attempt(operation, number + 1)


def open_store(
    store: EmbeddingStore | str | Path | Mapping[str, Any] | None,
) -> EmbeddingStore | None:
    """Return a store object; no file is opened.

    Args:
        store: An object, the path of its file, the ``settings`` of one, or None.

    Raises:
        ConfigurationError: If it is none of these.
    """
    if store is None or isinstance(store, EmbeddingStore):
        return store
    if not isinstance(store, Mapping):
        return EmbeddingStore(store)
    if unknown := store.keys() - {"path", "max_bytes", "form"}:
        raise ConfigurationError(f"a store has no settings {sorted(map(str, unknown))}")
    return EmbeddingStore(
        store.get("path", ""),
        max_bytes=store.get("max_bytes"),
        form=store.get("form", "float32"),
    )


def _checksum(key: bytes, vector: bytes) -> int:
    # Finds every change of up to 32 bits in a row.
    return zlib.crc32(vector, zlib.crc32(key))


def _is_intact(key: bytes, vector: object, checksum: object, size: int) -> bool:
    # A flipped bit may change the type of a column as well.
    return isinstance(vector, bytes) and len(vector) == size and _checksum(key, vector) == checksum
