"""Making a collection anew beside the old one, and changing places when it is whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_embed.chroma.health import examine
from gemma_embed.chroma.ingestion import write_rows
from gemma_embed.chroma.rows import Row, rows_in_folder, rows_of, title_of
from gemma_embed.embedder import Embedder
from gemma_embed.errors import CollectionDamaged
from gemma_embed.identity import Identity
from gemma_embed.models import Model
from gemma_embed.passport import passport
from gemma_embed.prompts import Prompts
from gemma_embed.runtimes.base import Batch, Runtime, TooLong

if TYPE_CHECKING:
    from chromadb import Collection
    from chromadb.api import ClientAPI

_ROWS_PER_WRITE = 256


def existing(client: ClientAPI, name: str) -> Collection | None:
    """The collection of that name, if there is one."""
    from chromadb.errors import NotFoundError

    try:
        return client.get_collection(name, embedding_function=None)
    except NotFoundError:
        return None


def created(
    client: ClientAPI, name: str, embedder: Embedder, hnsw: Mapping[str, Any]
) -> Collection:
    """Make a collection with its passport."""
    return client.create_collection(
        name,
        metadata=passport(embedder),
        configuration={"hnsw": dict(hnsw)},  # type: ignore[arg-type] # checked by Chroma
        embedding_function=None,
    )


def rebuild(
    client: ClientAPI,
    folder: Path | None,
    name: str,
    embedder: Embedder,
    *,
    hnsw: Mapping[str, Any],
    title_key: str,
    embed_missing: bool,
) -> int:
    """Do the work of ``ChromaIndex.rebuild``, which says what that is."""
    finish_swap(client, name)
    rows = _rows(client, folder, name)
    without = next((row.id for row in rows if row.document is None), None)
    if without is not None:
        raise CollectionDamaged(
            f"the row {without!r} of the collection {name!r} has no text to make its vector of: "
            "ingest the documents into another collection"
        )
    building = f"{name}.building"
    if existing(client, building) is not None:
        client.delete_collection(building)
    used = embedder if embed_missing else _stored_only(embedder)
    new = created(client, building, used, hnsw)
    for start in range(0, len(rows), _ROWS_PER_WRITE):
        page = rows[start : start + _ROWS_PER_WRITE]
        write_rows(
            new,
            used,
            [row.id for row in page],
            [row.document or "" for row in page],
            [title_of(row.metadata, title_key) for row in page],
            [row.metadata or None for row in page],
        )
    health = examine(new, embedder.dimensions)
    if health.rows != len(rows) or health.lost or health.unfound:
        raise CollectionDamaged(
            f"the rebuilt collection holds {health.rows} of {len(rows)} rows, "
            f"{len(health.lost)} without a vector, and a search misses {len(health.unfound)}: the "
            f"collection {name!r} is as it was; check the disk and rebuild again"
        )
    new.modify(name=_verified(name))
    finish_swap(client, name)
    return len(rows)


def finish_swap(client: ClientAPI, name: str) -> None:
    """Put a collection that was rebuilt and found whole in its place, if there is one.

    A rebuilding that is killed after its check is so finished by whoever comes next.
    """
    new = existing(client, _verified(name))
    if new is None:
        return
    if existing(client, name) is not None:
        client.delete_collection(name)
    new.modify(name=name)


def _verified(name: str) -> str:
    return f"{name}.verified"


def _rows(client: ClientAPI, folder: Path | None, name: str) -> list[Row]:
    from chromadb.errors import ChromaError

    try:
        collection = existing(client, name)
        if collection is None:
            raise CollectionDamaged(f"there is no collection {name!r}: ingest the documents")
        return list(rows_of(collection))
    except ChromaError:
        if folder is None:
            raise
        return rows_in_folder(folder, name)


def _stored_only(embedder: Embedder) -> Embedder:
    return Embedder(
        _StoredOnly(embedder.runtime),
        dimensions=embedder.dimensions,
        query_task=embedder.query_task,
        document_task=embedder.document_task,
        overlong=embedder.overlong,
        store=embedder.store,
    )


class _StoredOnly:
    """A runtime that says who it is and computes nothing."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @property
    def model(self) -> Model:
        return self._runtime.model

    @property
    def settings(self) -> dict[str, Any]:
        return self._runtime.settings

    @property
    def prompts(self) -> Prompts:
        return self._runtime.prompts

    @property
    def identity(self) -> Identity:
        return self._runtime.identity

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:  # noqa: ARG002 - the protocol's
        raise CollectionDamaged(
            f"the embedding store lacks the vectors of {len(texts)} rows: call "
            "rebuild(embed_missing=True) to have the model compute them"
        )
