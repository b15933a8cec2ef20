"""LangChain documents as passages of an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from langchain_core.documents import Document

from gemma_embed.passages import Passage


def passages(
    documents: Iterable[Document], *, document_key: str | None = None
) -> Iterator[Passage]:
    """Translate documents one by one, for ``gemma_embed.chroma.ChromaIndex.ingest``.

    Args:
        documents: Documents, or chunks of them; a LangChain id is the id of its row.
        document_key: The metadata key that names the document which a chunk belongs to; None for
            ``source``, else ``file_path``.
    """
    for document in documents:
        metadata = document.metadata
        name = None if document_key is None else metadata.get(document_key)
        source = None if name is None else str(name)
        yield Passage(document.page_content, document.id, source, metadata)
