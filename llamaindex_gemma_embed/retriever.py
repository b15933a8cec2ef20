"""A LlamaIndex retriever over a small index, with full-width vectors for the last word."""

from __future__ import annotations

from collections.abc import Mapping

from llama_index.core import QueryBundle, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import MetadataMode, NodeWithScore
from llama_index.core.vector_stores import MetadataFilters

from gemma_embed.background import in_background
from gemma_embed.errors import ConfigurationError, InvalidInput
from gemma_embed.matryoshka import Candidates, TwoStepSearch, parts_of
from gemma_embed.passages import split_title, title_key_of
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
        compact: Candidates | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        """Check the options.

        Args:
            index: An index of narrow vectors (``dimensions=128`` or ``256``).
            embed_model: The one that it was filled with, whose ``store`` has had the full-width
                vectors since then.
            similarity_top_k: Nodes returned.
            candidates: Nodes that the index is asked for.
            title_key: The metadata key of titles, where nodes were embedded with them by other
                means than ``GemmaTitles`` or ``ChromaIndex.ingest``, which say it themselves.
            filters: LlamaIndex's own.
            compact: A ``CompactIndex``, loaded, of the ``ChromaIndex`` that the index was opened
                on: it finds the candidates, among all rows and in little memory. The embed model
                may have the full width then.
            callback_manager: LlamaIndex's own.

        Raises:
            ConfigurationError: If they cannot work.
        """
        if compact is not None and filters is not None:
            raise ConfigurationError(
                "the filters cannot be obeyed: a compact index searches all rows; leave out one of "
                "both"
            )
        self._steps = TwoStepSearch(embed_model.embedder, similarity_top_k, candidates, compact)
        self._title_key = title_key
        self._vector_store = index.vector_store
        self._narrow = index.as_retriever(similarity_top_k=candidates, filters=filters)
        super().__init__(callback_manager=callback_manager)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        full, narrow = self._steps.query(_text_of(query_bundle))
        rows = self._steps.nearest(narrow)
        if rows is not None:
            found = self._read(rows)
        else:
            found = self._narrow.retrieve(QueryBundle(query_bundle.query_str, embedding=narrow))
        return self._ordered(full, found, rows)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        full, narrow = await in_background(self._steps.query, _text_of(query_bundle))
        bundle = QueryBundle(query_bundle.query_str, embedding=narrow)
        rows = await in_background(self._steps.nearest, narrow)
        if rows is not None:
            found = await in_background(self._read, rows)
        else:
            found = await self._narrow.aretrieve(bundle)
        return await in_background(self._ordered, full, found, rows)

    def _read(self, rows: list[str]) -> list[NodeWithScore]:
        # Asked for none, it returns all.
        nodes = self._vector_store.get_nodes(rows) if rows else []
        return [NodeWithScore(node=node) for node in nodes]

    def _ordered(
        self, query: Vectors, found: list[NodeWithScore], rows: list[str] | None
    ) -> list[NodeWithScore]:
        stated = _stated_title_key(self._vector_store)
        parts = []
        for each in found:
            text = each.node.get_content(MetadataMode.NONE)
            own = parts_of(each.node.metadata, text, self._title_key, stated)
            parts.append(own or split_title(each.node.get_content(MetadataMode.EMBED)))
        return [
            NodeWithScore(node=found[place].node, score=score)
            for place, score in self._steps.best(query, parts, rows)
        ]


def _stated_title_key(vector_store: object) -> str | None:
    # Chroma's collection, if it is one of ChromaIndex; other clients say nothing there.
    metadata = getattr(getattr(vector_store, "client", None), "metadata", None)
    return title_key_of(metadata) if isinstance(metadata, Mapping) else None


def _text_of(query: QueryBundle) -> str:
    if query.embedding is not None or query.custom_embedding_strs:
        raise InvalidInput(
            "a search in two steps embeds the query itself, at two widths: leave out the query "
            "bundle's embedding and custom_embedding_strs"
        )
    return query.query_str
