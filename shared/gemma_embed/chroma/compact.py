"""The vectors of an index, packed, so that candidates are found without Chroma's own index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from gemma_embed.chroma.failures import explanation
from gemma_embed.chroma.index import ChromaIndex
from gemma_embed.chroma.stored import pages
from gemma_embed.compact import CompactVectors, Form, packed
from gemma_embed.errors import CollectionMismatch, ConfigurationError
from gemma_embed.vectors import Vectors

if TYPE_CHECKING:
    from chromadb import Collection

# Text and title of a row.
Parts = tuple[str, str | None]

# Bytes of what is kept of them.
_DIGEST = 8


@dataclass(frozen=True)
class _Loaded:
    """What one ``load`` has read: rows, their codes, and what each was made of."""

    collection: Collection
    fingerprint: str
    rows: list[str]
    places: dict[str, int]
    digests: bytes
    vectors: CompactVectors


class CompactIndex:
    """Packed vectors of a ``ChromaIndex``, in memory, for the first step of a search in two.

    With 768 numbers a vector, ``int8`` takes 772 bytes and ``binary`` 96, and a row's id some 160
    more, next to 3,072 and a graph in Chroma, whose index is then never read. Every vector is
    compared with the query.

    It is a copy as of ``load``. A search raises if the collection has another number of rows by
    then, or a candidate is gone or has another text or title. What it cannot see is a row that was
    added while another one was removed by some other process: load after each ingestion.

    Example:
        ```python
        index.ingest(passages(documents))
        compact = CompactIndex(index, "binary")
        compact.load()
        retriever = MatryoshkaRetriever(vectorstore, k=5, candidates=100, compact=compact)
        ```

    Attributes:
        index: Where rows are read from.
        form: ``int8`` or ``binary``.
    """

    def __init__(self, index: ChromaIndex, form: Form = "int8") -> None:
        """Check the options; nothing is read.

        Raises:
            ConfigurationError: If the form is unknown.
        """
        if form not in get_args(Form):
            raise ConfigurationError(f"unknown form {form!r}; use 'int8' or 'binary'")
        self.index = index
        self.form = form
        self._now: _Loaded | None = None

    def load(self) -> int:
        """Read all rows, and pack their vectors, which come from the index's embedding store.

        Returns:
            How many rows there are.

        Raises:
            CollectionMismatch: If the collection is of another space, or has a row that was not
                written by ``ingest``.
            CollectionError: As ``ChromaIndex.open``.
            EmbeddingError: If a vector is not in the store and cannot be computed.
        """
        collection = self.index.open()
        embedder = self.index.embedder.replaced(progress=False)
        rows: list[str] = []
        digests: list[bytes] = []
        codes: list[Any] = [packed(np.empty((0, embedder.dimensions), np.float32), self.form)]
        for page in pages(collection, embedder.dimensions, ("documents", "metadatas")):
            parts = []
            for row, held in page.items():
                if held.embedded is None:
                    raise CollectionMismatch(
                        f"the row {row!r} of the collection {collection.name!r} was not written by "
                        "ingest: ingest its document, or remove the row"
                    )
                parts.append(held.embedded)
            titles = [title for _, title in parts] if embedder.takes_titles else None
            vectors = embedder.embed([text for text, _ in parts], titles=titles)
            rows += page
            digests += map(_digest, parts)
            codes.append(packed(vectors, self.form))
        self._now = _Loaded(
            collection,
            embedder.fingerprint,
            rows,
            {row: place for place, row in enumerate(rows)},
            b"".join(digests),
            CompactVectors(np.concatenate(codes), self.form, embedder.dimensions),
        )
        return len(rows)

    @property
    def fingerprint(self) -> str:
        """The name of the loaded vectors' space; raises ConfigurationError before ``load``."""
        return self._loaded.fingerprint

    def nearest(self, query: Vectors, count: int) -> list[str]:
        """Return the ids of the rows that are most similar to a query, best first.

        Args:
            query: float32, shape (dimensions,), norm 1.
            count: Most rows.

        Raises:
            ConfigurationError: Before ``load``.
            CollectionMismatch: If the collection has more or fewer rows than when it was loaded.
            CollectionError: If Chroma cannot read it, or it was deleted.
        """
        now = self._loaded
        try:
            there = now.collection.count()
        except Exception as error:
            said = explanation(error, now.collection.name, "its place")
            if said is None:
                raise
            raise said from error
        if there != len(now.rows):
            raise _stale(f"has {there} rows instead of the {len(now.rows)} that it had")
        return [now.rows[place] for place in now.vectors.nearest(query, count)]

    def confirm(self, rows: Sequence[str], parts: Sequence[Parts]) -> None:
        """Refuse candidates that are not what was packed.

        Args:
            rows: Their ids, as ``nearest`` returned them.
            parts: Text and title of each row that a vector store returned for them, in any order.

        Raises:
            CollectionMismatch: If a row is gone or was embedded from other words.
        """
        now = self._loaded
        # Another thread may have loaded between the two steps of a search.
        places = [now.places[row] for row in rows if row in now.places]
        packed_then = sorted(now.digests[_DIGEST * at : _DIGEST * (at + 1)] for at in places)
        if packed_then != sorted(map(_digest, parts)):
            raise _stale("lacks a row that it had, or has other words in it than it had")

    @property
    def _loaded(self) -> _Loaded:
        if self._now is None:
            raise ConfigurationError("the compact index is empty: call load() first")
        return self._now


def _digest(parts: Parts) -> bytes:
    text, title = parts
    # No byte of UTF-8.
    return blake2b((title or "").encode() + b"\xff" + text.encode(), digest_size=_DIGEST).digest()


def _stale(said: str) -> CollectionMismatch:
    return CollectionMismatch(
        f"the collection {said} when its vectors were packed: call the compact index's load() "
        "after each ingestion"
    )
