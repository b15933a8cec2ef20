"""A collection's vectors beside the embedding store's, for no model work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma_embed.chroma.rows import Row, embedded, ids_of
from gemma_embed.embedder import Embedder
from gemma_embed.identity import Identity, fingerprint
from gemma_embed.passages import OWN
from gemma_embed.passport import SAME
from gemma_embed.prompts import Prompts
from gemma_embed.vectors import Vectors, cut

if TYPE_CHECKING:
    from chromadb import Collection


class Stored:
    """What the store holds for a collection, by the collection's own passport.

    Neither model nor server is asked, so this may be compared where there is none.
    """

    def __init__(self, metadata: Mapping[str, Any], embedder: Embedder) -> None:
        """Read the passport.

        Args:
            metadata: The collection's, with a passport.
            embedder: Has the store.
        """
        held = {name.removeprefix(OWN): value for name, value in metadata.items()}
        identity = Identity(**{each.name: held[each.name] for each in fields(Identity)})
        # As Embedder names what it keeps.
        self._space = fingerprint(identity, {"overlong": held["overlong"]})
        self._prompts = Prompts({}, held["prompt"], held["titled_prompt"] or None)
        self._store = embedder.store
        self._width = embedder.runtime.model.width

    def differing(
        self, texts: Sequence[str], titles: Sequence[str | None], vectors: Vectors
    ) -> list[int]:
        """Find vectors that are other texts' or another model's.

        Args:
            texts: What the vectors are said to be of.
            titles: The texts' titles, where they were embedded with one.
            vectors: float32, a row for each text.

        Returns:
            Positions of vectors that the store has otherwise; one that it lacks is not judged.

        Raises:
            StoreError: If the store cannot be used.
        """
        if self._store is None:
            return []
        titled = self._prompts.titled is not None
        places: dict[str, list[int]] = {}
        for place, (text, title) in enumerate(zip(texts, titles, strict=True)):
            prefix = self._prompts.prefix("document", title if titled else None)
            places.setdefault(prefix + text, []).append(place)
        known = list(places.values())
        rows, found = self._store.get(self._space, list(places), self._width)
        wrong: list[int] = []
        for row, vector in zip(rows, cut(found, vectors.shape[1]), strict=True):
            wrong += [place for place in known[row] if not vectors[place] @ vector >= SAME]
        return wrong


def differing_rows(collection: Collection, embedder: Embedder, title_key: str) -> Iterator[str]:
    """Ids of rows whose vectors the store has otherwise; the collection has a passport.

    Raises:
        CollectionDamaged: If it cannot be known what a row was embedded with.
        StoreError: If the store cannot be used.
    """
    stored = Stored(collection.metadata, embedder)
    for page in ids_of(collection):
        got = collection.get(ids=page, include=["documents", "metadatas", "embeddings"])
        documents, metadatas = got["documents"] or [], got["metadatas"] or []
        parts = [
            embedded(Row(row, document, dict(metadata or {})), embedder, title_key)
            for row, document, metadata in zip(got["ids"], documents, metadatas, strict=True)
        ]
        texts, titles = [text for text, _ in parts], [title for _, title in parts]
        vectors = np.asarray(got["embeddings"], dtype=np.float32)
        yield from (got["ids"][place] for place in stored.differing(texts, titles, vectors))
