"""Titles from metadata, in the place that EmbeddingGemma's document prompt has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.schema import BaseNode, Document, TextNode, TransformComponent

from gemma_embed.models import EMBEDDINGGEMMA_300M


class GemmaTitles(TransformComponent):
    """Put each node's title where the model expects it, and keep other metadata out of vectors.

    By default LlamaIndex writes all metadata into the text that is embedded. Put this before
    ``GemmaEmbedding``, and after any splitter, in ``IngestionPipeline(transformations=[...])`` or
    ``VectorStoreIndex.from_documents(..., transformations=[...])``. The generator sees a titled
    node in the same form.

    Attributes:
        title_key: The metadata key that holds the title; nodes without it are embedded as
            ``title: none``.
    """

    title_key: str = "title"

    @classmethod
    def class_name(cls) -> str:
        """Name in serialised pipelines."""
        return "GemmaTitles"

    def __call__(
        self,
        nodes: Sequence[BaseNode],
        **kwargs: Any,  # noqa: ARG002 - the base class's signature
    ) -> Sequence[BaseNode]:
        """Set templates and exclusions; texts and metadata stay as they are."""
        prompts = EMBEDDINGGEMMA_300M.prompts
        for node in nodes:
            title = str(node.metadata.get(self.title_key) or "")
            others = [key for key in node.metadata if key != self.title_key or not title]
            node.excluded_embed_metadata_keys = others
            if title and isinstance(node, (TextNode, Document)):
                prefix = prompts.prefix("document", title)
                node.text_template = prefix.replace("{", "{{").replace("}", "}}") + "{content}"
        return nodes
