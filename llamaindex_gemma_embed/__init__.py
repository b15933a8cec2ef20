"""EmbeddingGemma for LlamaIndex."""

from llamaindex_gemma_embed.embedding import GemmaEmbedding
from llamaindex_gemma_embed.passages import passages
from llamaindex_gemma_embed.retriever import MatryoshkaRetriever
from llamaindex_gemma_embed.titles import GemmaTitles

__all__ = ["GemmaEmbedding", "GemmaTitles", "MatryoshkaRetriever", "passages"]
