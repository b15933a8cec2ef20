"""A LangChain retriever over a small index, with full-width vectors for the last word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from pydantic import ConfigDict, Field

from gemma_embed.background import in_background
from gemma_embed.errors import ConfigurationError
from gemma_embed.matryoshka import Candidates, TwoStepSearch, parts_of
from gemma_embed.vectors import Vectors
from langchain_gemma_embed.embeddings import GemmaEmbeddings
from langchain_gemma_embed.errors import langchain_errors


class MatryoshkaRetriever(BaseRetriever):
    """Search a narrow vector store, and put the best in order by full-width vectors.

    The vector store's own ``GemmaEmbeddings`` must be narrow (``dimensions=128`` or ``256``) and
    have a ``store``, which holds the full-width vectors since the documents were added.

    Example:
        ```python
        embeddings = GemmaEmbeddings("ollama", dimensions=128, store="vectors.sqlite")
        index = Chroma("notes", embeddings, collection_metadata={"hnsw:space": "cosine"})
        retriever = MatryoshkaRetriever(index, k=5, candidates=100)
        ```

    Attributes:
        vectorstore: Any that can ``similarity_search_by_vector``.
        k: Documents returned.
        candidates: Documents that the vector store is asked for.
        title_key: The metadata key of titles, where documents were embedded with them by other
            means than ``ChromaIndex.ingest``, whose rows say it themselves.
        search_kwargs: More arguments of the vector store's search, a filter say.
        compact: A ``CompactIndex``, loaded, of the ``ChromaIndex`` that the vector store was opened
            on: it finds the candidates, among all rows and in little memory. The embeddings may
            have the full width then.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    vectorstore: VectorStore
    k: int = 4
    candidates: int = 100
    title_key: str | None = None
    search_kwargs: dict[str, Any] = Field(default_factory=dict)
    compact: Any = None

    def __init__(
        self,
        vectorstore: VectorStore,
        *,
        k: int = 4,
        candidates: int = 100,
        title_key: str | None = None,
        search_kwargs: Mapping[str, Any] | None = None,
        compact: Candidates | None = None,
        **others: Any,
    ) -> None:
        """Check the options, which the class describes; ``others`` are LangChain's own.

        Raises:
            ConfigurationError: If they cannot work, or the vector store has other embeddings.
        """
        fields: dict[str, Any] = {
            "vectorstore": vectorstore,
            "k": k,
            "candidates": candidates,
            "title_key": title_key,
            "search_kwargs": dict(search_kwargs or {}),
            "compact": compact,
        }
        super().__init__(**fields, **others)
        _ = self._steps

    @property
    def _steps(self) -> TwoStepSearch:
        # Each time, since both can be assigned.
        if self.compact is not None and self.search_kwargs:
            raise ConfigurationError(
                f"search_kwargs {sorted(self.search_kwargs)} cannot be obeyed: a compact index "
                "searches all rows; leave out one of both"
            )
        embeddings = self.vectorstore.embeddings
        if not isinstance(embeddings, GemmaEmbeddings):
            raise ConfigurationError(
                f"the vector store's embeddings are {type(embeddings).__name__}, not "
                "GemmaEmbeddings: pass GemmaEmbeddings when you open it"
            )
        return TwoStepSearch(embeddings.embedder, self.k, self.candidates, self.compact)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        del run_manager
        steps = self._steps
        with langchain_errors():
            full, narrow = steps.query(query)
            rows = steps.nearest(narrow)
            if rows is not None:
                found = self.vectorstore.get_by_ids(rows) if rows else []
            else:
                found = self.vectorstore.similarity_search_by_vector(
                    narrow, k=self.candidates, **self.search_kwargs
                )
            return self._ordered(steps, full, found, rows)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Document]:
        del run_manager
        steps = self._steps
        with langchain_errors():
            full, narrow = await in_background(steps.query, query)
            rows = await in_background(steps.nearest, narrow)
            if rows is not None:
                found = await self.vectorstore.aget_by_ids(rows) if rows else []
            else:
                found = await self.vectorstore.asimilarity_search_by_vector(
                    narrow, k=self.candidates, **self.search_kwargs
                )
            return await in_background(self._ordered, steps, full, found, rows)

    def _ordered(
        self, steps: TwoStepSearch, query: Vectors, found: list[Document], rows: list[str] | None
    ) -> list[Document]:
        parts = [
            parts_of(each.metadata, each.page_content, self.title_key) or (each.page_content, None)
            for each in found
        ]
        return [found[place] for place, _ in steps.best(query, parts, rows)]
