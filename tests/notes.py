"""Passages for collections, and the rows of a collection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chromadb.config import Settings

from gemma_embed.chroma import ChromaIndex

QUIET = Settings(anonymized_telemetry=False)


def documents(count: int = 60, **changed: Any) -> list[dict[str, Any]]:
    return [
        {"text": f"text {i}", "id": f"id {i}", "metadata": {"n": i, "title": f"T{i}", **changed}}
        for i in range(count)
    ]


def file(name: str, *texts: str, **metadata: Any) -> list[dict[str, Any]]:
    """The passages of one document."""
    return [{"text": text, "metadata": {"source": name, **metadata}} for text in texts]


def current(index: ChromaIndex) -> Any:
    """The collection, without a check of its passport."""
    (generation,) = (each for each in index.generations() if each.current)
    return index.client.get_collection(generation.name, embedding_function=None)


def texts_of(index: ChromaIndex) -> list[str]:
    return sorted(current(index).get()["documents"])


def other(index: ChromaIndex, **options: Any) -> ChromaIndex:
    """The same name with another embedder."""
    return ChromaIndex(index.client, index.name, index.embedder.replaced(**options))


def everything(index: ChromaIndex) -> dict[str, Any]:
    got = current(index).get(include=["documents", "metadatas", "embeddings"])
    return {
        row: (document, metadata, vector.tobytes())
        for row, document, metadata, vector in zip(
            got["ids"], got["documents"], got["metadatas"], got["embeddings"], strict=True
        )
    }


def break_vectors(folder: Path) -> None:
    """Damage the vector files as a killed writer can."""
    for path in folder.glob("*/*.bin"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    for path in folder.glob("*/index_metadata.pickle"):
        path.write_bytes(b"")
