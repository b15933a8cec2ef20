"""What a collection holds, read page by page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma_embed.vectors import Vectors

if TYPE_CHECKING:
    from chromadb import Collection

PAGE = 1000
_NORM_TOLERANCE = 1e-3


def ids_of(collection: Collection, where: Any = None) -> Iterator[list[str]]:
    """All ids, page by page, or those of the rows that a filter of Chroma's lets through."""
    offset = 0
    while ids := collection.get(limit=PAGE, offset=offset, where=where, include=[])["ids"]:
        yield ids
        offset += len(ids)


def texts_of(
    collection: Collection, ids: Sequence[str]
) -> dict[str, tuple[str | None, Mapping[str, Any]]]:
    """The text and the metadata of rows by their ids, as far as they are there."""
    got = collection.get(ids=list(ids), include=["documents", "metadatas"])
    columns = zip(got["ids"], got["documents"] or [], got["metadatas"] or [], strict=True)
    return {row: (text, dict(metadata or {})) for row, text, metadata in columns}


def vectors_of(collection: Collection, ids: Sequence[str], dimensions: int) -> dict[str, Vectors]:
    """The vectors of rows by their ids, as far as a search could rely on them."""
    got = collection.get(ids=list(ids), include=["embeddings"])
    vectors: Any = got["embeddings"] if got["embeddings"] is not None else []
    return {
        row: np.asarray(vector, dtype=np.float32)
        for row, vector in zip(got["ids"], vectors, strict=True)
        if vector is not None
        and len(vector) == dimensions
        and abs(float(np.linalg.norm(vector)) - 1) < _NORM_TOLERANCE
    }
