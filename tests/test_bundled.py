"""Tests of meaning with the bundled model: it must find the passage for a question."""

from __future__ import annotations

from pathlib import Path

import chromadb
import numpy as np
import pytest
from langchain_chroma import Chroma
from langchain_core.documents import Document
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.vector_stores.chroma import ChromaVectorStore
from sentence_transformers import SentenceTransformer

import gemma_embed
from gemma_embed import Embedder
from gemma_embed.errors import ConfigurationError
from gemma_embed.runtimes import TransformersRuntime
from gemma_embed.testing import bundled_runtime
from langchain_gemma_embed import GemmaEmbeddings
from llamaindex_gemma_embed import GemmaEmbedding, GemmaTitles

FOLDER = Path(gemma_embed.__file__).parent / "bundled"
COSINE = {"hnsw": {"space": "cosine"}}

PASSAGES = {
    "Mars": "The fourth planet from the sun looks rusty because of iron oxide in its dust.",
    "Bread": "Let the dough rise in a warm place until it has doubled, then bake it.",
    "Passwords": "A manager program keeps long random login codes, so you need to recall only one.",
    "Burns": "Hold the scalded skin under cool running water for twenty minutes.",
    "Branches": "Commit your work on a separate line of development before you merge it.",
    "Visas": "Apply at the embassy for permission to enter the country weeks before you travel.",
    "Roses": "Cut back the shrub in late winter, just above a bud that faces outwards.",
    "Taxes": "The revenue office charges interest on whatever is paid after the deadline.",
}
QUESTIONS = {
    "Which world is red?": "Mars",
    "How do I make a loaf?": "Bread",
    "How can I keep my accounts secure without remembering everything?": "Passwords",
    "I spilled boiling tea on my hand": "Burns",
    "How do I work with git without breaking the main version?": "Branches",
    "What papers do I need to go abroad?": "Visas",
    "When should I prune my garden flowers?": "Roses",
    "What happens if I file my income return late?": "Taxes",
}


@pytest.fixture(scope="module")
def runtime() -> TransformersRuntime:
    return bundled_runtime()


def test_sentence_transformers_loads_the_same_model(runtime: TransformersRuntime) -> None:
    reference = SentenceTransformer(str(FOLDER), device="cpu", local_files_only=True)
    texts = [*PASSAGES.values(), *QUESTIONS]
    embedder = Embedder(runtime)
    for ours, theirs in (
        (embedder.embed_documents(texts), reference.encode_document(texts)),
        (embedder.embed(texts, "query"), reference.encode_query(texts)),
    ):
        assert (ours * theirs).sum(1).min() >= 0.999999
        assert np.abs(ours - theirs).max() <= 1e-5


def test_it_is_never_mistaken_for_another_model(runtime: TransformersRuntime) -> None:
    assert runtime.model.name != TransformersRuntime().model.name
    assert runtime.identity.model == "gemma-embed-bundled"


@pytest.mark.parametrize("dimensions", [768, 512, 256, 128])
def test_every_width_finds_the_passage(runtime: TransformersRuntime, dimensions: int) -> None:
    embedder = Embedder(runtime, dimensions=dimensions)
    documents = embedder.embed_documents(PASSAGES.values())
    found = (embedder.embed(list(QUESTIONS), "query") @ documents.T).argmax(1)
    right = [list(PASSAGES)[row] == QUESTIONS[q] for row, q in zip(found, QUESTIONS, strict=True)]
    assert sum(right) >= len(QUESTIONS) - 1


def test_langchain_on_chroma_finds_the_passage(
    runtime: TransformersRuntime, tmp_path: Path
) -> None:
    store = Chroma(
        "passages",
        GemmaEmbeddings(runtime, dimensions=256),
        client=chromadb.PersistentClient(str(tmp_path)),
        collection_configuration=COSINE,
    )
    store.add_documents(
        [Document(text, metadata={"name": name}) for name, text in PASSAGES.items()],
        ids=list(PASSAGES),
    )
    found = [store.similarity_search(q, k=1)[0].metadata["name"] for q in QUESTIONS]
    assert sum(a == b for a, b in zip(found, QUESTIONS.values(), strict=True)) >= 7


def test_llamaindex_on_chroma_finds_the_passage(
    runtime: TransformersRuntime, tmp_path: Path
) -> None:
    collection = chromadb.PersistentClient(str(tmp_path)).create_collection(
        "passages", configuration=COSINE, embedding_function=None
    )
    nodes = [
        TextNode(id_=name, text=text, metadata={"title": name}) for name, text in PASSAGES.items()
    ]
    index = VectorStoreIndex(
        GemmaTitles()(nodes),
        storage_context=StorageContext.from_defaults(
            vector_store=ChromaVectorStore.from_collection(collection)
        ),
        embed_model=GemmaEmbedding(runtime, dimensions=256),
    )
    retriever = index.as_retriever(similarity_top_k=1)
    found = [retriever.retrieve(question)[0].node_id for question in QUESTIONS]
    assert sum(a == b for a, b in zip(found, QUESTIONS.values(), strict=True)) >= 7


def test_two_step_search_finds_the_best(runtime: TransformersRuntime) -> None:
    full, narrow = Embedder(runtime), Embedder(runtime, dimensions=128)
    documents, queries = (
        full.embed_documents(PASSAGES.values()),
        full.embed(list(QUESTIONS), "query"),
    )
    first = narrow.embed(list(QUESTIONS), "query") @ narrow.embed_documents(PASSAGES.values()).T
    exact = (queries @ documents.T).argmax(1)
    for row, candidates in enumerate(np.argsort(-first, axis=1)[:, :3]):
        rescored = candidates[(documents[candidates] @ queries[row]).argmax()]
        assert rescored == exact[row]


def test_classification_by_the_nearest_label(runtime: TransformersRuntime) -> None:
    embedder = Embedder(runtime).for_task("classification")
    labels = ["cooking", "computers", "medicine", "gardening"]
    texts = {
        "Fry the onions in butter until they are golden": "cooking",
        "The compiler reports a syntax error in this program": "computers",
        "The patient has a fever and takes antibiotics": "medicine",
        "Water the tomato plants and pull out the weeds": "gardening",
    }
    similarity = embedder.embed_documents(list(texts)) @ embedder.embed_documents(labels).T
    assert [labels[row] for row in similarity.argmax(1)] == list(texts.values())


def test_the_fixtures_runtime_is_loaded_once() -> None:
    assert bundled_runtime() is bundled_runtime()


def test_a_server_does_not_run_the_bundled_model() -> None:
    with pytest.raises(ConfigurationError, match="runtime='ollama' must be 'onnx' or 'trans"):
        bundled_runtime("ollama")  # type: ignore[arg-type]
