"""Taking over a collection that was filled without a passport."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gemma_embed.chroma.rows import Row, embedded
from gemma_embed.embedder import Embedder
from gemma_embed.errors import CollectionMismatch
from gemma_embed.passport import SAME, passport, without_passport

if TYPE_CHECKING:
    from chromadb import Collection

_SAMPLE = 16


def require_cosine(collection: Collection) -> None:
    """Refuse a collection in another space than cosine.

    Raises:
        CollectionMismatch: If it is.
    """
    space = (collection.configuration.get("hnsw") or {}).get("space")
    if space != "cosine":
        raise CollectionMismatch(
            f"the collection {collection.name!r} measures {space!r}, not 'cosine', for which both "
            "frameworks' scores are made: rebuild() makes it anew"
        )


def users_metadata(collection: Collection) -> dict[str, Any]:
    """What a collection's metadata holds beside the passport and Chroma's own."""
    # Chroma refuses to be told again of a space, which it once kept here.
    return {k: v for k, v in without_passport(collection.metadata).items() if k[:5] != "hnsw:"}


def adopt(collection: Collection, embedder: Embedder, title_key: str) -> None:
    """Write an embedder's passport into a collection whose vectors it makes.

    Raises:
        CollectionMismatch: If some rows, embedded again, come out differently.
    """
    require_cosine(collection)
    got = collection.get(limit=_SAMPLE, include=["documents", "metadatas", "embeddings"])
    documents, metadatas = got["documents"] or [], got["metadatas"] or []
    if documents:
        parts = [
            embedded(Row(row, document, dict(metadata or {})), embedder, title_key)
            for row, document, metadata in zip(got["ids"], documents, metadatas, strict=True)
        ]
        texts, titles = [text for text, _ in parts], [title for _, title in parts]
        titled = embedder.takes_titles
        own = embedder.replaced(store=None).embed(texts, titles=titles if titled else None)
        held = np.asarray(got["embeddings"], dtype=np.float32)
        likeness = _cosines(held, own) if held.shape == own.shape else np.array([-1.0])
        if likeness.min() < SAME:
            raise CollectionMismatch(
                f"of {len(texts)} rows of the collection {collection.name!r}, embedded again, one "
                f"has a cosine of {likeness.min():.3f} to its vector: other weights, prompt or "
                "width; rebuild(embed_missing=True) makes it anew"
            )
    collection.modify(metadata=users_metadata(collection) | passport(embedder))


def _cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines: np.ndarray = np.sum(left * right, axis=1) / np.maximum(norms, 1e-12)
    return cosines
