"""LangChain documents as passages of an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from langchain_core.documents import Document

from gemma_embed.passages import Passage


def passages(documents: Iterable[Document]) -> Iterator[Passage]:
    """Translate documents one by one, for ``gemma_embed.chroma.ChromaIndex.ingest``.

    Args:
        documents: Documents; one without an id is named by its content.
    """
    for document in documents:
        yield Passage(document.page_content, document.id, document.metadata)
