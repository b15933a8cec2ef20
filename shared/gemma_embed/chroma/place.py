"""Where an index's collections are: a folder, a server, or memory."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from gemma_embed.chroma.failures import explanation, lost, read_only
from gemma_embed.chroma.lock import MARK, Writing, locked, only_writer
from gemma_embed.errors import (
    CollectionError,
    CollectionLocked,
    ConfigurationError,
    MissingDependency,
)
from gemma_embed.files import expanded

if TYPE_CHECKING:
    from chromadb import Collection
    from chromadb.api import ClientAPI
    from chromadb.config import System

# Seconds that a creation may take: Chroma sets up its database.
CREATION = 10.0
_DATABASE = "chroma.sqlite3"
# Says that Chroma's database is set up; the database itself is there before.
_CREATED = "gemma_embed.created"
# The folder of a segment's files has its name.
_SEGMENTS = "SELECT id FROM segments WHERE collection = ?"


class Place:
    """A folder that is opened when it is needed, or a client that was handed over.

    Attributes:
        folder: The client's folder as well; None for a server or memory.
    """

    def __init__(self, location: str | Path | ClientAPI) -> None:
        self.folder: Path | None = None
        self._client: ClientAPI | None = None
        self._name = "memory"
        if isinstance(location, (str, Path)):
            self.folder = expanded(location)
        elif hasattr(location, "get_settings"):
            self._client, settings = location, location.get_settings()
            if settings.is_persistent:
                # As Chroma took it: without replacing "~".
                self.folder = Path(settings.persist_directory).absolute()
            elif host := settings.chroma_server_host:
                self._name = f"the Chroma server at {host}:{settings.chroma_server_http_port}"
        else:
            raise ConfigurationError(
                f"location is {type(location).__name__}: pass a folder or a Chroma client"
            )
        self._own_client = self._client is None

    def __str__(self) -> str:
        return str(self.folder or self._name)

    @property
    def client(self) -> ClientAPI:
        """The client; raises ConfigurationError before a folder was opened."""
        if self._client is None:
            raise ConfigurationError("the index is not open: call open() first")
        return self._client

    def open(self) -> ClientAPI:
        """Open the folder, or create it.

        Raises:
            CollectionLocked: If it is to be created, and another process is at work in it.
            CollectionDamaged: If its database was removed while this process had it open.
        """
        if self._client is None and self.folder is not None:
            _check(self.folder)
            self._client = _opened(self.folder)
        # Chroma goes on with the files that it has open, and all it writes is lost with them.
        if self.folder is not None and not (self.folder / _DATABASE).exists():
            raise lost(self.folder, f"{_DATABASE} is not there any more")
        return self.client

    def delete(self, collection: Collection) -> None:
        """Delete a collection with its vector files, which Chroma 1.5 leaves on the disk for good.

        See https://github.com/chroma-core/chroma/issues/5259. A file that is open, which Windows
        does not delete, stays.
        """
        files: list[Path] = []
        if self.folder is not None:
            # A later Chroma may have other tables, and delete its files by itself. A name that is
            # no UUID may lead out of the folder.
            with suppress(sqlite3.Error, ValueError), closing(_connected(self.folder)) as opened:
                found = opened.execute(_SEGMENTS, (str(collection.id),))
                files = [self.folder / str(UUID(str(name))) for (name,) in found]
        self.client.delete_collection(collection.name)
        for segment in files:
            shutil.rmtree(segment, ignore_errors=True)

    def close(self) -> None:
        """Close the folder's client; one that was handed over stays open."""
        if self._own_client and self._client is not None:
            self._client.close()  # type: ignore[attr-defined] # Client has it, ClientAPI does not
            self._client = None

    def writing(self, name: str, wait: float = 0) -> AbstractContextManager[Writing]:
        """Be the only writer, to the collection of this name; wait seconds for another one."""
        return only_writer(self._mark(name), wait)

    def is_marked(self, name: str) -> bool:
        """Whether a writer is at work on a collection, or was killed."""
        mark = self._mark(name)
        return mark is not None and mark.exists()

    @contextmanager
    def explained(self, name: str) -> Iterator[None]:
        """Turn Chroma's errors about the collection of this name into this package's."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, AttributeError) and self._client is None:
                # Chroma's closed client lacks its attributes.
                raise CollectionError(
                    f"{self} was closed while a call was at work in it: close it after the call, "
                    "and repeat the call; what was finished is stored"
                ) from error
            explained = explanation(error, name, self.folder or self._name)
            if explained is None:
                raise
            raise explained from error

    def _mark(self, name: str) -> Path | None:
        if self.folder is None:
            return None
        # Hashed, since a collection's name may be longer than file names.
        place = repr((self.client.tenant, self.client.database, name)).encode()
        return self.folder / f"gemma_embed.{sha256(place).hexdigest()[:16]}{MARK}"


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


def _check(folder: Path) -> None:
    """Refuse what Chroma would fail on with an error that says nothing of the cause."""
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"{folder} is a file; Chroma needs a folder: pass another path")
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise read_only(folder)
    try:
        with closing(_connected(folder)) as opened:
            tables = {name for (name,) in opened.execute("SELECT name FROM sqlite_master")}
    except sqlite3.OperationalError:
        # There is none, or it is locked: Chroma says more of it.
        return
    except sqlite3.DatabaseError as error:
        raise lost(folder, f"{_DATABASE}: {error}") from error
    # Chroma's first one.
    if tables and "migrations" not in tables:
        raise lost(folder, f"{_DATABASE} is another program's database")


def _connected(folder: Path) -> sqlite3.Connection:
    """Open Chroma's database for reading."""
    return sqlite3.connect(f"{(folder / _DATABASE).resolve().as_uri()}?mode=ro", uri=True)


def _opened(folder: Path) -> ClientAPI:
    database, created = folder / _DATABASE, folder / _CREATED
    if not (database.exists() and created.exists()):
        # Two that set up one database at once disturb each other.
        with suppress(CollectionLocked), locked(folder, CREATION):
            client = folder_client(folder)
            created.touch()
            return client
        if not database.exists():
            raise CollectionLocked(
                f"another process or thread has been creating {folder} for {CREATION:g} s: wait "
                "for it, or end it"
            )
    # A writer that has taken this long is past the creation.
    return folder_client(folder)
