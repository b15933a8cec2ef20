"""A LlamaIndex retriever over a narrow index, with full-width vectors for the last word."""

from __future__ import annotations

from llama_index.core import QueryBundle, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import MetadataMode, NodeWithScore
from llama_index.core.vector_stores import MetadataFilters

from gemma_embed.background import in_background
from gemma_embed.errors import InvalidInput
from gemma_embed.matryoshka import TwoStepSearch
from gemma_embed.vectors import Vectors
from llamaindex_gemma_embed.embedding import GemmaEmbedding


class MatryoshkaRetriever(BaseRetriever):
    """Search a narrow index, and put the best nodes in order by full-width vectors.

    Scores are full-width cosine similarities.

    Example:
        ```python
        embed_model = GemmaEmbedding("ollama", dimensions=128, store="vectors.sqlite")
        index = VectorStoreIndex.from_documents(documents, embed_model=embed_model)
        retriever = MatryoshkaRetriever(index, embed_model, similarity_top_k=5, candidates=100)
        ```
    """

    def __init__(
        self,
        index: VectorStoreIndex,
        embed_model: GemmaEmbedding,
        *,
        similarity_top_k: int = 4,
        candidates: int = 100,
        title_key: str | None = None,
        filters: MetadataFilters | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        """Check the options.

        Args:
            index: An index of narrow vectors (``dimensions=128`` or ``256``).
            embed_model: The one that it was filled with, whose ``store`` has held the full-width
                vectors since then.
            similarity_top_k: Nodes returned.
            candidates: Nodes that the index is asked for.
            title_key: The metadata key of titles, for what ``ChromaIndex.ingest`` wrote; None for
                nodes that LlamaIndex embedded, ``GemmaTitles`` or not.
            filters: LlamaIndex's own.
            callback_manager: LlamaIndex's own.

        Raises:
            ConfigurationError: If they cannot work.
        """
        self._steps = TwoStepSearch(embed_model.embedder, similarity_top_k, candidates)
        self._embed_model = embed_model
        self._title_key = title_key
        self._narrow = index.as_retriever(similarity_top_k=candidates, filters=filters)
        super().__init__(callback_manager=callback_manager)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        full, narrow = self._steps.query(_text_of(query_bundle))
        found = self._narrow.retrieve(QueryBundle(query_bundle.query_str, embedding=narrow))
        return self._ordered(full, found)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        full, narrow = await in_background(self._steps.query, _text_of(query_bundle))
        bundle = QueryBundle(query_bundle.query_str, embedding=narrow)
        found = await self._narrow.aretrieve(bundle)
        return await in_background(self._ordered, full, found)

    def _ordered(self, query: Vectors, found: list[NodeWithScore]) -> list[NodeWithScore]:
        nodes = [each.node for each in found]
        if self._title_key is None:
            texts = [node.get_content(MetadataMode.EMBED) for node in nodes]
            bare, titles = self._embed_model.texts_and_titles(texts)
        else:
            bare = [node.get_content(MetadataMode.NONE) for node in nodes]
            titles = [node.metadata.get(self._title_key) for node in nodes]
        best = self._steps.best(query, bare, titles)
        return [NodeWithScore(node=nodes[place], score=score) for place, score in best]


def _text_of(query: QueryBundle) -> str:
    if query.embedding is not None or query.custom_embedding_strs:
        raise InvalidInput(
            "a search in two steps embeds the query itself, at two widths: leave out the query "
            "bundle's embedding and custom_embedding_strs"
        )
    return query.query_str
