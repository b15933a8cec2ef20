"""Whether a collection holds an embedder's vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gemma_embed.chroma.nodes import embedded_content
from gemma_embed.embedder import Embedder
from gemma_embed.errors import CollectionMismatch
from gemma_embed.passages import embedded_parts, split_title
from gemma_embed.passport import SAME, HasEmbedder, compare_facts, embedder_of, stated_facts

if TYPE_CHECKING:
    from chromadb import Collection

_SAMPLE = 16
_SAME_DIRECTION = 1e-3


def check_collection(collection: Collection, embedder: Embedder | HasEmbedder) -> None:
    """Refuse a collection that an embedder does not belong to.

    For collections that were opened or filled by LangChain's, LlamaIndex's or Chroma's classes,
    too. Embeds one sentence past any store, so other weights under an old name are found out. Of
    a collection without a passport up to 16 rows are embedded again and compared.

    Raises:
        CollectionMismatch: If it holds vectors of another space, or its distance is not cosine.
    """
    own = embedder_of(embedder)
    space = _space(collection)
    if space != "cosine":
        raise CollectionMismatch(
            f"the collection {collection.name!r} measures {space!r}, not 'cosine', which both "
            "frameworks' scores are made for: create it with configuration="
            "{'hnsw': {'space': 'cosine'}}, or let ChromaIndex create it"
        )
    if "fingerprint" in stated_facts(collection.metadata):
        compare_facts(f"the collection {collection.name!r}", collection.metadata, own)
    else:
        # Settings first: two tasks of a small model may be closer than two devices.
        from gemma_embed.chroma.function import GemmaEmbeddingFunction

        function = collection.configuration.get("embedding_function")
        if isinstance(function, GemmaEmbeddingFunction):
            here = GemmaEmbeddingFunction(own)
            here.validate_config_update(function.get_config(), here.get_config())
        _compare_rows(collection, own)


def _space(collection: Collection) -> str | None:
    configured = (collection.configuration.get("hnsw") or {}).get("space")
    # Chroma 0.4 to 0.6 wrote it here. A later Chroma may search by it and report a default.
    stated = (collection.metadata or {}).get("hnsw:space")
    if stated in (None, configured):
        return configured
    one = collection.get(limit=1, include=["embeddings"])["embeddings"]
    if one is None or not len(one):
        return str(stated)
    longer = 3 * np.asarray(one)
    near = collection.query(query_embeddings=longer, n_results=1, include=["distances"])
    distance = (near["distances"] or [[np.inf]])[0][0]
    return "cosine" if abs(distance) < _SAME_DIRECTION else f"{stated} or {configured}"


def _compare_rows(collection: Collection, embedder: Embedder) -> None:
    got: Any = collection.get(limit=_SAMPLE, include=["documents", "metadatas", "embeddings"])
    if not got["ids"]:
        return
    parts = [
        embedded_parts(metadata or {}, text or "")
        # As the LlamaIndex adapter does with a title that GemmaTitles put there.
        or split_title(embedded_content(row, metadata or {}, text or ""))
        for row, text, metadata in zip(got["ids"], got["documents"], got["metadatas"], strict=True)
    ]
    texts, titles = [text for text, _ in parts], [title for _, title in parts]
    ours = embedder.replaced(store=None).embed(
        texts, titles=titles if embedder.takes_titles else None
    )
    theirs = np.asarray(got["embeddings"], dtype=np.float32)
    likeness = -1.0
    if theirs.shape == ours.shape:
        norms = np.maximum(np.linalg.norm(theirs, axis=1), 1e-12)
        likeness = float((np.sum(theirs * ours, axis=1) / norms).min())
    if not likeness >= SAME:
        raise CollectionMismatch(
            f"the collection {collection.name!r} does not say whose vectors it holds, and of "
            f"{len(texts)} rows, embedded again, one has a cosine of {likeness:.3f} to its vector: "
            "other weights, prompt or width; ingest the documents into a ChromaIndex"
        )
