"""Chroma clients with telemetry off, and what their errors mean."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_embed.errors import (
    CollectionDamaged,
    CollectionError,
    CollectionLocked,
    ConfigurationError,
    ConnectionFailed,
    EmbeddingError,
    MissingDependency,
)

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.config import System

_SQLITE_FILE = "chroma.sqlite3"
_SQLITE_BEGINS = b"SQLite format 3\0"
# What SQLite's result codes and the system's mean, as Chroma's messages have them.
_CAUSES = {
    "read-only": {"code: 8", "code: 14", "os error 13", "os error 30"},
    "full": {"code: 13", "os error 28"},
    "busy": {"code: 5", "code: 6"},
    "lost": {"code: 11", "code: 26"},
}
RECREATE = (
    "call recreate(passages) with all the passages it was filled from; their vectors come from the "
    "embedding store, without the model"
)


def folder_client(folder: Path) -> ClientAPI:
    """Open a folder with Chroma's telemetry off.

    Raises:
        MissingDependency: If Chroma is not installed.
        ConfigurationError: If the process has opened the folder with other settings.
    """
    try:
        import chromadb
        from chromadb.config import Settings
    except ImportError as error:
        raise MissingDependency(
            f'collections need chromadb ({error}): pip install "gemma-embed[chroma]"'
        ) from error
    try:
        # Not inferred from a .env file in the working directory: it could switch things on.
        return chromadb.PersistentClient(str(folder), Settings(anonymized_telemetry=False))
    except ValueError as error:
        raise ConfigurationError(
            f"{folder} is open in this process with other settings ({error}): pass that client in "
            "place of the folder"
        ) from error


def check_folder(folder: Path) -> None:
    """Refuse what Chroma would fail on with an error that says nothing of the cause.

    Raises:
        ConfigurationError: If there is a file in the folder's place.
        CollectionError: If the folder cannot be written to.
        CollectionDamaged: If its database is something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"{folder} is a file; Chroma needs a folder: pass another path")
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise _read_only(folder)
    database = folder / _SQLITE_FILE
    if database.is_file() and database.stat().st_size:
        with database.open("rb") as file:
            if file.read(len(_SQLITE_BEGINS)) != _SQLITE_BEGINS:
                raise _lost(folder, f"{_SQLITE_FILE} is not a database")
        if _is_anothers(database):
            raise _lost(folder, f"{_SQLITE_FILE} is another program's database")


def _is_anothers(database: Path) -> bool:
    # What cannot be read is left to Chroma to judge.
    with suppress(sqlite3.Error):
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as opened:
            tables = {name for (name,) in opened.execute("SELECT name FROM sqlite_master")}
        # Chroma's first one.
        return bool(tables) and "migrations" not in tables
    return False


@contextmanager
def paused(client: ClientAPI) -> Iterator[None]:
    """Close what a folder's clients in this process have open; open it again for all afterwards.

    Closing a client instead would end the use of every vector store made from it.
    """
    system: System = client._system  # type: ignore[attr-defined] # the only way
    system.stop()
    try:
        yield
    finally:
        system.start()


@contextmanager
def explained(name: str, place: Path | str) -> Iterator[None]:
    """Turn Chroma's errors into this package's.

    Args:
        name: The collection's.
        place: Its folder, or the server.
    """
    try:
        yield
    except BaseException as error:
        explanation = _explanation(error, name, place)
        if explanation is None:
            raise
        raise explanation from error


def _explanation(error: BaseException, name: str, place: Path | str) -> EmbeddingError | None:
    from chromadb.errors import ChromaError, InternalError, InvalidArgumentError, NotFoundError
    from httpx import TransportError

    what, said = f"the collection {name!r} in {place}", f"{type(error).__name__}: {error}"
    cause = _cause(error)
    if isinstance(error, TransportError):
        return ConnectionFailed(
            f"{place} cannot be reached ({said}): start it (chroma run), or check host and port"
        )
    # A panic of Chroma's Rust code is not an Exception.
    panic = type(error).__name__ == "PanicException"
    if not isinstance(error, ChromaError) and not panic:
        return None
    if isinstance(error, InvalidArgumentError):
        return ConfigurationError(f"Chroma does not take these arguments for {what}: {error}")
    if isinstance(error, NotFoundError):
        return CollectionError(f"{what} was deleted meanwhile ({error}): open() again")
    if isinstance(place, Path) and cause == "read-only":
        return _read_only(place)
    if isinstance(place, Path) and cause == "lost":
        return _lost(place, str(error))
    if cause == "full":
        return CollectionError(f"the disk is full, says Chroma of {what}: free some space")
    if cause == "busy":
        return CollectionLocked(
            f"another program has {what} open ({error}): close it, or share a Chroma server"
        )
    if panic or (isinstance(error, InternalError) and cause in (None, "lost")):
        return CollectionDamaged(f"Chroma failed on {what} ({said}); if it fails again, {RECREATE}")
    return CollectionError(f"Chroma failed on {what}: {said}")


def _cause(error: BaseException) -> str | None:
    found = set(re.findall(r"((?:code:|os error) \d+)\)", str(error)))
    return next((cause for cause, codes in _CAUSES.items() if codes & found), None)


def _read_only(folder: Path) -> CollectionError:
    return CollectionError(
        f"Chroma cannot open {folder}, which this user may not write to: copy the folder, or let "
        "its owner run a Chroma server (chroma run)"
    )


def _lost(folder: Path, reason: str) -> CollectionDamaged:
    return CollectionDamaged(
        f"Chroma cannot open {folder} ({reason}): move this folder away, start the program again "
        "and ingest the documents. Vectors in the embedding store, which by default is a file "
        "outside this folder, are not computed again"
    )
