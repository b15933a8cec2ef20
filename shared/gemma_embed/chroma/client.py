"""Chroma clients that tell nobody, and what their errors mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_embed.errors import CollectionDamaged, ConfigurationError, MissingDependency

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.config import System

# Tenant and database, of chromadb.config.
DEFAULT_PLACE = ("default_tenant", "default_database")


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
            'collections need chromadb: pip install "gemma-embed[chroma]"'
        ) from error
    try:
        # Not inferred from a .env file in the working directory: it could switch things on.
        return chromadb.PersistentClient(str(folder), Settings(anonymized_telemetry=False))
    except ValueError as error:
        raise ConfigurationError(
            f"{folder} is open in this process with other settings ({error}): hand over that "
            "client in place of the folder"
        ) from error


def folder_of(client: ClientAPI) -> Path | None:
    """The folder that a client writes to; None for a server's or an in-memory one."""
    settings = client.get_settings()
    return Path(settings.persist_directory) if settings.is_persistent else None


@contextmanager
def paused(client: ClientAPI) -> Iterator[None]:
    """Close what a folder's clients in this process have open; open it again for all afterwards.

    Closing a client instead would end the use of every vector store that was made of it.
    """
    system: System = client._system  # type: ignore[attr-defined] # of Client; there is no other way
    system.stop()
    try:
        yield
    finally:
        system.start()


@contextmanager
def damage_named(name: str) -> Iterator[None]:
    """Say what an error of Chroma's means for the collection."""
    from chromadb.errors import ChromaError, InvalidArgumentError

    try:
        yield
    except InvalidArgumentError as error:
        raise ConfigurationError(
            f"Chroma takes no such arguments for the collection {name!r}: {error}"
        ) from error
    except ChromaError as error:
        raise CollectionDamaged(
            f"Chroma failed on the collection {name!r}: {type(error).__name__}: {error}; if it "
            "fails again, rebuild() makes it anew from the embedding store"
        ) from error
