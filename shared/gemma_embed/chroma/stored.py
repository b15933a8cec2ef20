"""What a collection holds, page by page, and whether it is what was ingested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gemma_embed.embedder import Embedder
from gemma_embed.passages import DOCUMENT, embedded_parts
from gemma_embed.passport import SAME, sound
from gemma_embed.path import Route, prompted
from gemma_embed.vectors import Vectors, cut

if TYPE_CHECKING:
    from chromadb import Collection

PAGE = 1000
# Documents that a look-up names at once.
_DOCUMENTS = 200
_COLUMNS = ("documents", "metadatas", "embeddings")


class Stored(NamedTuple):
    """A row as it is.

    Attributes:
        embedded: Text and title that it was ingested with; None for a row that others wrote.
        metadata: Its own.
        vector: None if a search could not rely on it.
    """

    embedded: tuple[str, str | None] | None = None
    metadata: Mapping[str, Any] = {}
    vector: Vectors | None = None


def read(
    collection: Collection, dimensions: int, columns: tuple[str, ...] = _COLUMNS, **which: Any
) -> dict[str, Stored]:
    """Read rows, by their ids; what is not among the columns is empty.

    Args:
        collection: To read from.
        dimensions: Width that vectors should have.
        columns: What to read of the rows.
        **which: As Chroma's ``get`` takes it.
    """
    got: Any = collection.get(include=list(columns), **which)  # type: ignore[arg-type]
    empty = [None] * len(got["ids"])
    parts = [empty if got[column] is None else got[column] for column in _COLUMNS]
    return {
        row: Stored(
            embedded_parts(metadata or {}, text or ""), metadata or {}, sound(vector, dimensions)
        )
        for row, text, metadata, vector in zip(got["ids"], *parts, strict=True)
    }


def pages(
    collection: Collection, dimensions: int, columns: tuple[str, ...] = _COLUMNS, where: Any = None
) -> Iterator[dict[str, Stored]]:
    """All rows, page by page, or those that Chroma's filter ``where`` lets through."""
    # By ids: an offset skips a row when another process removes one before it.
    rows = collection.get(where=where, include=[])["ids"]
    for start in range(0, len(rows), PAGE):
        if page := read(collection, dimensions, columns, ids=rows[start : start + PAGE]):
            yield page


def rows_of(
    collection: Collection, dimensions: int, documents: Sequence[str]
) -> Iterator[dict[str, Stored]]:
    """The rows of documents, page by page, with their metadata only."""
    for start in range(0, len(documents), _DOCUMENTS):
        where = {DOCUMENT: {"$in": list(documents[start : start + _DOCUMENTS])}}
        yield from pages(collection, dimensions, ("metadatas",), where)


def differing(embedder: Embedder, rows: Mapping[str, Stored]) -> set[str]:
    """Find ingested rows whose vectors are other texts' or another model's, without the model.

    Args:
        embedder: Has the store.
        rows: By their ids.

    Returns:
        Ids of rows without a usable vector, or with another one than the store's. One that the
        store lacks is not judged, nor one that others wrote: it may have been embedded in another
        form than it is stored in.
    """
    ingested = {row: parts for row, held in rows.items() if (parts := held.embedded)}
    runtime, store, dimensions = embedder.runtime, embedder.store, embedder.dimensions
    right: dict[str, Vectors] = {}
    items = prompted(
        [text for text, _ in ingested.values()],
        [title if embedder.takes_titles else None for _, title in ingested.values()],
        embedder.document_task,
        runtime.prompts,
    )
    if store is not None and items:
        space = Route(runtime, embedder.overlong, store, dimensions).space
        texts = list(dict.fromkeys(item.prompted for item in items))
        places, vectors = store.get(space, texts, runtime.model.width)
        known = zip(places, cut(vectors, dimensions), strict=True)
        right = {texts[place]: vector for place, vector in known}
    return {
        row
        for row, item in zip(ingested, items, strict=True)
        if (held := rows[row].vector) is None
        or (item.prompted in right and not held @ right[item.prompted] >= SAME)
    }
