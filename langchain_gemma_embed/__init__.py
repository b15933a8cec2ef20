"""EmbeddingGemma for LangChain."""

from langchain_gemma_embed.embeddings import GemmaEmbeddings

__all__ = ["GemmaEmbeddings"]
