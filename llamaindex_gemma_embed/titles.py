"""Titles from metadata, in the place that the model's document prompt has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Never

from llama_index.core.schema import (
    DEFAULT_METADATA_TMPL,
    DEFAULT_TEXT_NODE_TMPL,
    BaseNode,
    Node,
    TextNode,
    TransformComponent,
)

from gemma_embed.errors import ConfigurationError
from gemma_embed.passages import TITLE, title_of
from gemma_embed.runtimes import reject_unknown


class GemmaTitles(TransformComponent):
    """Mark each node's title for ``GemmaEmbedding``, and leave other metadata out of vectors.

    By default LlamaIndex writes all metadata into the text that is embedded. Put this before
    ``GemmaEmbedding``, and before or after any splitter, in
    ``IngestionPipeline(transformations=[...])`` or
    ``VectorStoreIndex.from_documents(..., transformations=[...])``. What the generator sees stays
    as it is, except that a titled node's own templates are replaced by LlamaIndex's defaults.

    Attributes:
        title_key: The metadata key of the title: a text, a number or a date. Nodes without it are
            embedded without a title.
    """

    title_key: str = "title"

    def __init__(
        self, title_key: str = "title", *, class_name: str | None = None, **unknown: Never
    ) -> None:
        """Check the options.

        Args:
            title_key: See the class.
            class_name: What ``model_dump`` writes, for ``model_validate``.
            **unknown: Refused.

        Raises:
            ConfigurationError: If an option is unknown.
        """
        if unknown:
            instead = {"title": "a title is in each node's metadata; say title_key= for its key"}
            reject_unknown(unknown, self.class_name(), GemmaTitles, instead)
        if class_name not in (None, self.class_name()):
            raise ConfigurationError(f"these are settings of {class_name}, not GemmaTitles")
        super().__init__(title_key=title_key)  # type: ignore[call-arg]

    @classmethod
    def class_name(cls) -> str:
        """Name in serialised pipelines."""
        return "GemmaTitles"

    def __call__(
        self,
        nodes: Sequence[BaseNode],
        **kwargs: Any,  # noqa: ARG002 - the base class's signature
    ) -> Sequence[BaseNode]:
        """Mark nodes in place; texts and metadata stay as they are, but for the mark."""
        for node in nodes:
            node.metadata.pop(TITLE, None)
            node.excluded_embed_metadata_keys = list(node.metadata)
            title = " ".join((title_of(node.metadata, self.title_key) or "").split())
            if title and isinstance(node, (Node, TextNode)):
                node.metadata[TITLE] = title
                hidden = {*node.excluded_llm_metadata_keys, TITLE}
                node.excluded_llm_metadata_keys = sorted(hidden)
                # ``split_title`` reads what these make of the mark.
                node.metadata_template = DEFAULT_METADATA_TMPL
                node.text_template = DEFAULT_TEXT_NODE_TMPL
        return nodes
