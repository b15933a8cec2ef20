"""Where an error is: in LlamaIndex's lists, not in the batches that they were cut into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from llama_index.core.schema import BaseNode

from gemma_embed.errors import EmbeddingError
from gemma_embed.passages import Passage

_all_texts: ContextVar[list[str] | None] = ContextVar("all_texts", default=None)


@contextmanager
def counting_in(texts: list[str]) -> Iterator[None]:
    """Let errors name texts by their place in the complete list."""
    token = _all_texts.set(texts)
    try:
        yield
    finally:
        _all_texts.reset(token)


@contextmanager
def counted(batch: list[str]) -> Iterator[None]:
    """Translate an error's index from a batch to the list of ``counting_in``."""
    try:
        yield
    except EmbeddingError as error:
        texts = _all_texts.get()
        if texts is not None and error.index is not None:
            # Of equal texts the first is named, as the core does.
            error.index = texts.index(batch[error.index])
        raise


@contextmanager
def naming(nodes: Sequence[BaseNode]) -> Iterator[None]:
    """Let errors name the node at fault and the document that it is from."""
    try:
        yield
    except EmbeddingError as error:
        if error.index is not None:
            node = nodes[error.index]
            source = Passage("", metadata=node.metadata).source or node.ref_doc_id
            origin = "" if source is None else f" of {source}"
            error.args = (f"{error.args[0]} (node {node.node_id}{origin})",)
        raise
