"""LangChain documents as passages of an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from langchain_core.documents import Document

from gemma_embed.errors import InvalidInput
from gemma_embed.passages import Passage


def passages(
    documents: Iterable[Document], *, document_key: str | None = None
) -> Iterator[Passage]:
    """Translate documents one by one, for ``gemma_embed.chroma.ChromaIndex.ingest``.

    Args:
        documents: Documents, or chunks of them; a LangChain id is the id of its row.
        document_key: The metadata key that names the document which a chunk belongs to; None for
            ``source``, else ``file_path``.

    Raises:
        InvalidInput: If one of them is not a ``Document``; ``index`` says which.
    """
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            raise InvalidInput(_instead_of(document), index=index)
        metadata = document.metadata
        name = None if document_key is None else metadata.get(document_key)
        source = None if name is None else str(name)
        yield Passage(document.page_content, document.id, source, metadata)


def _instead_of(given: object) -> str:
    what = f"a {type(given).__name__} is not a LangChain Document"
    if any(each.__module__.startswith("llama_index.") for each in type(given).__mro__):
        return f"{what}: translate LlamaIndex nodes with llamaindex_gemma_embed.passages"
    if isinstance(given, dict):
        return f"{what}: pass dictionaries to ingest() directly"
    return f"{what}: pass a list of Document(page_content=..., metadata=...)"
