"""Passages for collections, and what a collection holds of them."""

from __future__ import annotations

from typing import Any

from gemma_embed.chroma import ChromaIndex


def documents(count: int = 60, **changed: Any) -> list[dict[str, Any]]:
    return [
        {"text": f"text {i}", "id": f"id {i}", "metadata": {"n": i, "title": f"T{i}", **changed}}
        for i in range(count)
    ]


def everything(index: ChromaIndex) -> dict[str, Any]:
    held = index.client.get_collection(index.name, embedding_function=None)
    got = held.get(include=["documents", "metadatas", "embeddings"])
    return {
        row: (document, metadata, vector.tobytes())
        for row, document, metadata, vector in zip(
            got["ids"], got["documents"], got["metadatas"], got["embeddings"], strict=True
        )
    }
