"""LlamaIndex nodes as passages of an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args
from uuid import UUID

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore
from llama_index.core.vector_stores.utils import node_to_metadata_dict

from gemma_embed.errors import ConfigurationError, InvalidInput
from gemma_embed.passages import DOCUMENT, OWN, Passage, plain

Ids = Literal["content", "node"]


def passages(
    nodes: Iterable[BaseNode], *, ids: Ids = "content", document_key: str | None = None
) -> Iterator[Passage]:
    """Translate nodes one by one, for ``gemma_embed.chroma.ChromaIndex.ingest``.

    A node's bare text is embedded, with its title where the model expects it; other metadata and
    the node itself are stored with it, in the form that ``ChromaVectorStore`` makes nodes from.

    LlamaIndex draws new node ids in each run, so a retrieved node has the id and the relations of
    the last run, and its row an id made from the document and the text. Remove nodes by
    ``delete_ref_doc`` or by ingesting their document again.

    Args:
        nodes: Nodes or documents.
        ids: ``content`` makes the rows' ids from the document and the text; ``node`` takes the
            nodes' own, for those who set them.
        document_key: The metadata key that names the document which a node belongs to; None for
            ``source``, else ``file_path``, else ``ref_doc_id`` unless LlamaIndex drew it.

    Raises:
        ConfigurationError: If ``ids`` is neither.
        InvalidInput: While they are read, if one is not a node; ``index`` says which.
    """
    if ids not in get_args(Ids):
        raise ConfigurationError(f"unknown ids={ids!r}; use 'content' or 'node'")
    return (_passage(node, index, ids, document_key) for index, node in enumerate(nodes))


def _passage(node: BaseNode, index: int, ids: Ids, document_key: str | None) -> Passage:
    if not isinstance(node, BaseNode):
        raise InvalidInput(_instead_of(node), index=index)
    text = node.get_content(MetadataMode.NONE)
    metadata = {name: plain(value) for name, value in node.metadata.items()}
    row = node.node_id if ids == "node" else None
    name = None if document_key is None else metadata.get(document_key)
    passage = Passage(text, row, None if name is None else str(name), metadata)
    if passage.source is None and node.ref_doc_id and not _drawn(node.ref_doc_id):
        passage = Passage(text, row, node.ref_doc_id, metadata)
    return Passage(text, row, passage.document, metadata, _written(node, passage))


def _written(node: BaseNode, passage: Passage) -> dict[str, Any]:
    """What ``ChromaVectorStore`` makes the node from; the mark says who embedded it."""
    kept = {name: value for name, value in passage.metadata.items() if not name.startswith(OWN)}
    marked = node.model_copy(
        update={
            "metadata": kept | {DOCUMENT: passage.source or ""},
            "excluded_llm_metadata_keys": sorted({*node.excluded_llm_metadata_keys, DOCUMENT}),
            "excluded_embed_metadata_keys": sorted({*node.excluded_embed_metadata_keys, DOCUMENT}),
        }
    )
    try:
        written = node_to_metadata_dict(marked, remove_text=True)
    except (TypeError, ValueError):
        # Metadata without a JSON form, which ``ingest`` refuses with this passage's index.
        return {}
    return {name: value for name, value in written.items() if kept.get(name) != value}


def _drawn(identifier: str) -> bool:
    try:
        return UUID(identifier).version == 4
    except ValueError:
        return False


def _instead_of(given: object) -> str:
    what = f"a {type(given).__name__} is not a LlamaIndex node"
    if any(each.__module__.startswith("langchain_core.") for each in type(given).__mro__):
        return f"{what}: translate LangChain documents with langchain_gemma_embed.passages"
    if isinstance(given, NodeWithScore):
        return f"{what}: pass its .node"
    if isinstance(given, dict):
        return f"{what}: pass dictionaries to ingest() directly"
    return f"{what}: pass a list of Document(text=..., metadata=...) or of nodes"
