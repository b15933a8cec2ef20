"""Chroma clients with telemetry off, and what their errors mean."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
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
# SQLite's result codes and the system's, as Chroma's messages have them.
_READ_ONLY = ("code: 8", "code: 14", "os error 13", "os error 30")
_NO_SPACE = ("code: 13", "os error 28")
_BUSY = ("code: 5", "code: 6")
_NOT_A_DATABASE = ("code: 11", "code: 26")


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


def folder_of(client: ClientAPI) -> Path | None:
    """The folder that a client writes to; None for a server's or an in-memory one."""
    settings = client.get_settings()
    return Path(settings.persist_directory) if settings.is_persistent else None


def address_of(client: ClientAPI) -> str:
    """Where a client's data are, for messages."""
    settings = client.get_settings()
    host = settings.chroma_server_host
    return f"the Chroma server at {host}:{settings.chroma_server_http_port}" if host else "memory"


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


def is_damage(error: BaseException) -> bool:
    """Whether an exception means that a collection's files are damaged."""
    from chromadb.errors import InternalError

    if isinstance(error, InternalError):
        return not _matches(error, _READ_ONLY + _NO_SPACE + _BUSY)
    # A panic of Chroma's Rust code, which is not an Exception.
    return isinstance(error, CollectionDamaged) or type(error).__name__ == "PanicException"


@contextmanager
def explained(name: str, place: Path | str) -> Iterator[None]:
    """Turn Chroma's errors into this package's.

    Args:
        name: The collection's.
        place: Its folder, or the server.
    """
    from chromadb.errors import ChromaError
    from httpx import TransportError

    try:
        yield
    except (ChromaError, TransportError) as error:
        raise _explanation(error, name, place) from error


def _explanation(error: Exception, name: str, place: Path | str) -> EmbeddingError:
    from chromadb.errors import ChromaError, InvalidArgumentError, NotFoundError

    what, said = f"the collection {name!r} in {place}", f"{type(error).__name__}: {error}"
    if not isinstance(error, ChromaError):
        return ConnectionFailed(
            f"{place} cannot be reached ({said}): start it (chroma run), or check host and port"
        )
    if isinstance(error, InvalidArgumentError):
        return ConfigurationError(f"Chroma does not take these arguments for {what}: {error}")
    if isinstance(error, NotFoundError):
        return CollectionError(f"{what} was deleted meanwhile ({error}): open() again")
    if isinstance(place, Path) and _matches(error, _READ_ONLY):
        return _read_only(place)
    if isinstance(place, Path) and _matches(error, _NOT_A_DATABASE):
        return _lost(place, str(error))
    if _matches(error, _NO_SPACE):
        return CollectionError(f"the disk is full, says Chroma of {what}: free some space")
    if _matches(error, _BUSY):
        return CollectionLocked(
            f"another program has {what} open ({error}): close it, or share a Chroma server"
        )
    if is_damage(error):
        return CollectionDamaged(f"Chroma failed on {what} ({said}); if it fails again, {RECREATE}")
    return CollectionError(f"Chroma failed on {what}: {said}")


RECREATE = (
    "call recreate(passages) with all the passages it was filled from; their vectors come from the "
    "embedding store, without the model"
)


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


def _matches(error: BaseException, marks: tuple[str, ...]) -> bool:
    found = re.findall(r"\(?((?:code:|os error) \d+)\)", str(error))
    return any(each in marks for each in found)
