"""EmbeddingGemma for LangChain."""

from gemma_embed.errors import MissingDependency

try:
    from langchain_gemma_embed.embeddings import GemmaEmbeddings
    from langchain_gemma_embed.passages import passages
    from langchain_gemma_embed.retriever import MatryoshkaRetriever
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "langchain_core":
        raise
    raise MissingDependency(
        "langchain_gemma_embed needs langchain-core: pip install 'gemma-embed[langchain]'"
    ) from error

__all__ = ["GemmaEmbeddings", "MatryoshkaRetriever", "passages"]
