"""Full-width vectors in one SQLite file."""

from gemma_embed.store.embedding_store import EmbeddingStore, StoreStats, open_store

__all__ = ["EmbeddingStore", "StoreStats", "open_store"]
