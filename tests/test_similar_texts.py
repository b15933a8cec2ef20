"""The frameworks' own chunkers and filters with the task that suits them, as docs/frameworks.md."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from langchain_core.documents import Document
from llama_index.core import Document as LlamaDocument
from llama_index.core.node_parser import SemanticSplitterNodeParser

from gemma_embed.testing import bundled_runtime
from langchain_gemma_embed import GemmaEmbeddings
from llamaindex_gemma_embed import GemmaEmbedding

BREAD = "Bread needs flour, water and salt. The dough rises overnight. Bake the loaf until brown."
ORBIT = "Mars is a planet near Earth. Its orbit takes two years. The planet has two moons."


def imported(module: str) -> Any:
    """Import a package that says at import that nobody maintains it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return pytest.importorskip(module, reason="run: pip install langchain-experimental")


@pytest.fixture(scope="module")
def embeddings() -> GemmaEmbeddings:
    return GemmaEmbeddings(bundled_runtime())


def test_langchains_chunker_cuts_where_the_subject_changes(embeddings: GemmaEmbeddings) -> None:
    splitter = imported("langchain_experimental.text_splitter")
    chunker = splitter.SemanticChunker(embeddings.for_task("sentence similarity"), buffer_size=0)
    assert chunker.split_text(f"{BREAD} {ORBIT}") == [BREAD, ORBIT]


def test_llamaindexs_splitter_cuts_there_too() -> None:
    splitter = SemanticSplitterNodeParser(
        embed_model=GemmaEmbedding(bundled_runtime()).for_task("sentence similarity"),
        buffer_size=0,
    )
    nodes = splitter.get_nodes_from_documents([LlamaDocument(text=f"{BREAD} {ORBIT}")])
    assert [node.get_content().strip() for node in nodes] == [BREAD, ORBIT]


def test_langchains_filter_drops_what_says_the_same(embeddings: GemmaEmbeddings) -> None:
    transformers = imported("langchain_community.document_transformers")
    texts = ["The meeting is moved to Thursday.", "The meeting was moved to Thursday.", ORBIT]
    kept = transformers.EmbeddingsRedundantFilter(
        embeddings=embeddings.for_task("sentence similarity"), similarity_threshold=0.9
    ).transform_documents([Document(text) for text in texts])
    # Of two alike it keeps the later one.
    assert [document.page_content for document in kept] == texts[1:]
