"""The text that LlamaIndex embedded, from what it stores of a node with it.

LlamaIndex embeds a node's text and metadata in one (``MetadataMode.EMBED``), and a vector store
gets the bare text, with the node's settings as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gemma_embed.errors import CollectionMismatch

_NODE = "_node_content"


def embedded_content(row: str, metadata: Mapping[str, Any], text: str) -> str:
    """Return what was embedded in place of a bare text: that itself, if LlamaIndex wrote no node.

    Args:
        row: A row's id.
        metadata: Its metadata.
        text: Its document.

    Raises:
        CollectionMismatch: If the node cannot be read.
    """
    if _NODE not in metadata:
        return text
    try:
        node = json.loads(metadata[_NODE])
        hidden = node["excluded_embed_metadata_keys"]
        lines = [
            node["metadata_template"].format(key=key, value=str(value))
            for key, value in node["metadata"].items()
            if key not in hidden
        ]
        # Under its older name in nodes that an older LlamaIndex wrote.
        separator = node.get("metadata_separator", node.get("metadata_seperator", "\n"))
        written = separator.join(lines)
        if "image_resource" not in node:
            # A TextNode; other nodes keep space at the ends of metadata.
            written = written.strip()
        if not written:
            return text
        return str(node["text_template"].format(content=text, metadata_str=written).strip())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CollectionMismatch(
            f"the metadata {_NODE!r} of the row {row!r} is not as LlamaIndex writes it "
            f"({type(error).__name__}), so the text that was embedded is not known: run the "
            "pipeline again on another collection"
        ) from error
