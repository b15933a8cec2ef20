"""EmbeddingGemma for LangChain."""

from langchain_gemma_embed.embeddings import GemmaEmbeddings
from langchain_gemma_embed.passages import passages

__all__ = ["GemmaEmbeddings", "passages"]
