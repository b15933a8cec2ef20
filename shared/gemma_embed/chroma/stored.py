"""What a collection holds, read page by page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gemma_embed.passages import embedded_parts
from gemma_embed.vectors import Vectors

if TYPE_CHECKING:
    from chromadb import Collection

PAGE = 1000
_NORM_TOLERANCE = 1e-3
_ALL: Any = ["documents", "metadatas", "embeddings"]


class Stored(NamedTuple):
    """A row as it is.

    Attributes:
        text: Its document; empty if it has none.
        metadata: Its own.
        vector: None if a search could not rely on it.
    """

    text: str
    metadata: Mapping[str, Any]
    vector: Vectors | None

    @property
    def embedded(self) -> tuple[str, str | None] | None:
        """Text and title that it was ingested with; None for a row that was written otherwise."""
        return embedded_parts(self.metadata, self.text)


def pages(collection: Collection, where: Any = None, include: Any = _ALL) -> Iterator[Any]:
    """All rows as Chroma gives them, page by page, or those that its filter lets through."""
    offset = 0
    while True:
        got = collection.get(limit=PAGE, offset=offset, where=where, include=include)
        if not got["ids"]:
            return
        yield got
        offset += len(got["ids"])


def by_id(got: Any, dimensions: int) -> dict[str, Stored]:
    """Rows as Chroma gave them, by their ids."""
    vectors = got["embeddings"] if got["embeddings"] is not None else []
    columns = zip(got["ids"], got["documents"], got["metadatas"], vectors, strict=True)
    return {
        row: Stored(text or "", metadata or {}, sound(vector, dimensions))
        for row, text, metadata, vector in columns
    }


def stored(collection: Collection, ids: Sequence[str], dimensions: int) -> dict[str, Stored]:
    """The rows of these ids, as far as they are there."""
    return by_id(collection.get(ids=list(ids), include=_ALL), dimensions)


def sound(vector: Any, dimensions: int) -> Vectors | None:
    """A vector of this width and norm 1, neither of them damaged; None for all else."""
    if vector is None or len(vector) != dimensions:
        return None
    numbers = np.asarray(vector, dtype=np.float32)
    # False of NaN, which would compare as like as any.
    return numbers if abs(float(np.linalg.norm(numbers)) - 1) < _NORM_TOLERANCE else None
