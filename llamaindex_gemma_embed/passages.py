"""LlamaIndex nodes as passages of an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, get_args

from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.utils import node_to_metadata_dict

from gemma_embed.errors import ConfigurationError
from gemma_embed.passages import Passage

Ids = Literal["content", "node"]


def passages(nodes: Iterable[BaseNode], *, ids: Ids = "content") -> Iterator[Passage]:
    """Translate nodes one by one, for ``gemma_embed.chroma.ChromaIndex.ingest``.

    A node's bare text is embedded, with its title where the model expects it; other metadata is
    kept beside it, in the form that ``ChromaVectorStore`` makes nodes of again.

    Args:
        nodes: Nodes or documents.
        ids: ``content`` names each row by its text and metadata, since LlamaIndex draws new node
            ids in each run; ``node`` takes the nodes' own, for those who set them.

    Raises:
        ConfigurationError: If ``ids`` is neither.
    """
    if ids not in get_args(Ids):
        raise ConfigurationError(f"unknown ids={ids!r}; use 'content' or 'node'")
    return (_passage(node, ids) for node in nodes)


def _passage(node: BaseNode, ids: Ids) -> Passage:
    text = node.get_content(MetadataMode.NONE)
    bare = Passage(text, node.node_id if ids == "node" else None, node.metadata)
    named = node.model_copy(update={"id_": bare.row_id})
    written = node_to_metadata_dict(named, remove_text=True)
    extra = {name: value for name, value in written.items() if name not in node.metadata}
    return Passage(text, bare.row_id, node.metadata, extra)
