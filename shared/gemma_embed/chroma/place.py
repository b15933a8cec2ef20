"""Where an index's collections are: a folder, a server, or memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_embed.chroma.client import check_folder, explained, folder_client
from gemma_embed.chroma.lock import Writing, locked, mark_of, only_writer
from gemma_embed.errors import CollectionLocked, ConfigurationError
from gemma_embed.files import expanded

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

# Of chromadb.config; a folder's own client uses these.
_DEFAULT_PLACE = ("default_tenant", "default_database")

# Seconds that a creation may take: Chroma sets up its database.
CREATION = 10.0
# Says that Chroma's database is set up; the database itself is there before.
_CREATED = "gemma_embed.created"


class Place:
    """A folder that is opened when it is needed, or a client that was handed over.

    Attributes:
        folder: The client's folder as well; None for a server or memory.
    """

    def __init__(self, location: str | Path | ClientAPI) -> None:
        self.folder: Path | None = None
        self._client: ClientAPI | None = None
        self._own_client = isinstance(location, (str, Path))
        if isinstance(location, (str, Path)):
            self.folder = expanded(location)
        elif hasattr(location, "get_settings"):
            self._client = location
            settings = location.get_settings()
            if settings.is_persistent:
                self.folder = Path(settings.persist_directory)
        else:
            raise ConfigurationError(
                f"location is {type(location).__name__}: pass a folder or a Chroma client"
            )

    def __str__(self) -> str:
        if self.folder is not None:
            return str(self.folder)
        settings = self.client.get_settings()
        host, port = settings.chroma_server_host, settings.chroma_server_http_port
        return f"the Chroma server at {host}:{port}" if host else "memory"

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
        """
        if self._client is None and self.folder is not None:
            check_folder(self.folder)
            self._client = _opened(self.folder)
        return self.client

    def exists(self) -> bool:
        """Whether there is something to open."""
        return self.folder is None or self._client is not None or self.folder.exists()

    def explained(self, name: str) -> AbstractContextManager[None]:
        """Turn Chroma's errors about the collection of this name into this package's."""
        return explained(name, self.folder or str(self))

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

    def _mark(self, name: str) -> Path | None:
        if self.folder is None:
            return None
        client = self._client
        place = _DEFAULT_PLACE if client is None else (client.tenant, client.database)
        return mark_of(self.folder, *place, name)


def _opened(folder: Path) -> ClientAPI:
    database, created = folder / "chroma.sqlite3", folder / _CREATED
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
