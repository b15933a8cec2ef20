"""EmbeddingGemma for LlamaIndex."""

from gemma_embed.errors import MissingDependency

try:
    from llamaindex_gemma_embed.embedding import GemmaEmbedding
    from llamaindex_gemma_embed.passages import passages
    from llamaindex_gemma_embed.retriever import MatryoshkaRetriever
    from llamaindex_gemma_embed.titles import GemmaTitles
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "llama_index":
        raise
    raise MissingDependency(
        "llamaindex_gemma_embed needs llama-index-core: pip install 'gemma-embed[llamaindex]'"
    ) from error

__all__ = ["GemmaEmbedding", "GemmaTitles", "MatryoshkaRetriever", "passages"]
