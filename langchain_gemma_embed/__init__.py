"""EmbeddingGemma for LangChain."""

from langchain_gemma_embed.embeddings import GemmaEmbeddings
from langchain_gemma_embed.passages import passages
from langchain_gemma_embed.retriever import MatryoshkaRetriever

__all__ = ["GemmaEmbeddings", "MatryoshkaRetriever", "passages"]
