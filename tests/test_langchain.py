"""The LangChain class: LangChain's own suites on both runtimes, and how it fares in LangChain."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeRuntime, vector_of
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.load import dumpd
from langchain_core.stores import InMemoryByteStore
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from ollama_server import OllamaServer

from gemma_embed.errors import ConfigurationError, InvalidInput
from gemma_embed.runtimes import OllamaRuntime, TransformersRuntime
from langchain_gemma_embed import GemmaEmbeddings

DOCUMENT = "title: none | text: "
QUERY = "task: search result | query: "


class TestUnit(EmbeddingsUnitTests):
    """LangChain's unit tests."""

    @property
    def embeddings_class(self) -> type[GemmaEmbeddings]:
        return GemmaEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"runtime": "ollama", "model": "embeddinggemma:300m", "dimensions": 256}


class TestTransformersIntegration(EmbeddingsIntegrationTests):
    """LangChain's integration tests, in process."""

    runtime: TransformersRuntime

    @pytest.fixture(autouse=True)
    def _local(self, local: TransformersRuntime) -> None:
        type(self).runtime = local

    @property
    def embeddings_class(self) -> type[GemmaEmbeddings]:
        return GemmaEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"runtime": self.runtime}


class TestOllamaIntegration(EmbeddingsIntegrationTests):
    """LangChain's integration tests, over a socket."""

    runtime: OllamaRuntime

    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        with OllamaServer() as server:
            type(self).runtime = OllamaRuntime(host=server.url)
            yield

    @property
    def embeddings_class(self) -> type[GemmaEmbeddings]:
        return GemmaEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"runtime": self.runtime, "dimensions": 128}


@pytest.fixture
def embeddings(fake: FakeRuntime) -> GemmaEmbeddings:
    return GemmaEmbeddings(fake)


def test_roles_have_their_prompts_and_text_stays(
    embeddings: GemmaEmbeddings, fake: FakeRuntime
) -> None:
    embeddings.embed_query("a\n b")
    embeddings.embed_documents([" {c}\r\n"])
    assert fake.texts == [QUERY + "a\n b", DOCUMENT + " {c}\r\n"]


def test_titles_and_tasks_are_keywords(embeddings: GemmaEmbeddings, fake: FakeRuntime) -> None:
    embeddings.embed_documents(["a", "b"], titles=["T", None])
    embeddings.embed_query("c", task="fact checking")
    embeddings.embed_documents(["d"], task="clustering")
    assert sorted(fake.texts) == sorted(
        [
            "title: T | text: a",
            DOCUMENT + "b",
            "task: fact checking | query: c",
            "task: clustering | query: d",
        ]
    )
    with pytest.raises(TypeError):
        embeddings.embed_documents(["a"], ["T"])


@pytest.mark.parametrize("dimensions", [768, 512, 256, 128])
def test_vectors_are_lists_of_unit_length(fake: FakeRuntime, dimensions: int) -> None:
    vectors = GemmaEmbeddings(fake, dimensions=dimensions).embed_documents(["a", "b"])
    assert type(vectors) is list
    assert type(vectors[0]) is list
    assert type(vectors[0][0]) is float
    assert {len(vector) for vector in vectors} == {dimensions}
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_no_texts_is_no_work(embeddings: GemmaEmbeddings, fake: FakeRuntime) -> None:
    assert embeddings.embed_documents([]) == []
    assert fake.calls == 0


def test_for_task_shares_the_model(embeddings: GemmaEmbeddings, fake: FakeRuntime) -> None:
    sibling = embeddings.for_task("question answering")
    sibling.embed_query("q")
    assert fake.texts == ["task: question answering | query: q"]
    assert sibling.embedder.runtime is fake
    assert embeddings.embedder.query_task == "query"


@pytest.mark.parametrize("options", [{"normalize": True}, {"task": "query"}])
def test_unknown_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        GemmaEmbeddings("ollama", **options)


def test_model_and_model_name_are_one_thing() -> None:
    for options in ({"model": "embeddinggemma:x"}, {"model_name": "embeddinggemma:x"}):
        runtime = GemmaEmbeddings("ollama", **options).embedder.runtime
        assert runtime.settings["model"] == "embeddinggemma:x"
    with pytest.raises(ConfigurationError, match="model_name"):
        GemmaEmbeddings("ollama", "a", model_name="b")


def test_secrets_are_nowhere_to_be_seen() -> None:
    runtime = OllamaRuntime(
        host="https://proxy.example", headers={"Authorization": "Bearer CANARY", "X-Key": "CANARY"}
    )
    embeddings = GemmaEmbeddings(runtime)
    for shown in (repr(embeddings), str(embeddings), json.dumps(dumpd(embeddings))):
        assert "CANARY" not in shown
        assert "proxy.example" in shown


def test_three_event_loops_in_a_row() -> None:
    with OllamaServer() as server:
        embeddings = GemmaEmbeddings(OllamaRuntime(host=server.url))
        first, _, third = [asyncio.run(embeddings.aembed_query("x")) for _ in range(3)]
        documents = asyncio.run(embeddings.aembed_documents(["x", "y"]))
    assert first == third == embeddings_of(server, QUERY + "x")
    assert len(documents) == 2


def embeddings_of(server: OllamaServer, prompted: str) -> list[float]:
    """What the served model makes of a prompted text."""
    with server, OllamaServer() as fresh:
        (batch,) = OllamaRuntime(host=fresh.url).embed([prompted])
        return [float(x) for x in batch.vectors[0]]


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))]
)
def test_copies_work(narrow: Path, again: Any) -> None:
    embeddings = GemmaEmbeddings(TransformersRuntime(narrow, device="cpu"), dimensions=128)
    expected = embeddings.embed_query("x")
    np.testing.assert_allclose(again(embeddings).embed_query("x"), expected, atol=1e-6)


def test_in_memory_vector_store(embeddings: GemmaEmbeddings) -> None:
    store = InMemoryVectorStore(embeddings)
    store.add_texts(["a", "b", "c"])
    found, score = store.similarity_search_with_score("b", k=3)[0]
    query, documents = vector_of(QUERY + "b"), {t: vector_of(DOCUMENT + t) for t in "abc"}
    assert found.page_content == max(documents, key=lambda text: query @ documents[text])
    assert score == pytest.approx(max(query @ vector for vector in documents.values()), abs=1e-6)


def test_cache_namespace_follows_the_vectors(fake: FakeRuntime) -> None:
    namespaces = {
        GemmaEmbeddings(fake).cache_namespace,
        GemmaEmbeddings(fake, dimensions=256).cache_namespace,
        GemmaEmbeddings(fake, document_task="clustering").cache_namespace,
        GemmaEmbeddings(FakeRuntime(max_tokens=99)).cache_namespace,
        GemmaEmbeddings(fake).query_cache_namespace,
    }
    assert len(namespaces) == 5
    assert GemmaEmbeddings(FakeRuntime()).cache_namespace in namespaces


def test_cache_backed_embeddings(fake: FakeRuntime) -> None:
    embeddings = GemmaEmbeddings(fake, dimensions=128)
    cached = CacheBackedEmbeddings.from_bytes_store(
        embeddings,
        InMemoryByteStore(),
        namespace=embeddings.cache_namespace,
        key_encoder="sha256",
    )
    first = cached.embed_documents(["a", "b"])
    calls = fake.calls
    assert cached.embed_documents(["b", "a"]) == first[::-1]
    assert fake.calls == calls
    assert cached.embed_query("a") == embeddings.embed_query("a") != first[0]


def test_index_embeds_again_when_the_model_changes(fake: FakeRuntime) -> None:
    documents = [Document(f"text {i}", metadata={"source": f"{i}"}) for i in range(5)]
    records = {}

    def ingest(embeddings: GemmaEmbeddings) -> tuple[int, int]:
        namespace = embeddings.cache_namespace
        manager = records.setdefault(namespace, InMemoryRecordManager(namespace))
        manager.create_schema()
        result = index(documents, manager, InMemoryVectorStore(embeddings), key_encoder="sha256")
        return result["num_added"], result["num_skipped"]

    assert ingest(GemmaEmbeddings(fake)) == (5, 0)
    assert ingest(GemmaEmbeddings(fake)) == (0, 5)
    assert ingest(GemmaEmbeddings(FakeRuntime(max_tokens=512))) == (5, 0)


def chroma(embeddings: GemmaEmbeddings, folder: Path) -> Any:
    import chromadb
    from langchain_chroma import Chroma

    return Chroma(
        "notes",
        embeddings,
        client=chromadb.PersistentClient(str(folder)),
        collection_configuration={"hnsw": {"space": "cosine"}},
    )


def test_chroma_with_mixed_metadata(embeddings: GemmaEmbeddings, tmp_path: Path) -> None:
    store = chroma(embeddings, tmp_path)
    store.add_documents(
        [Document("a", metadata={"k": 1}), Document("b"), Document("c", metadata={"j": 2})],
        ids=["1", "2", "3"],
    )
    assert len(store.get()["ids"]) == 3
    (found, score), *_ = store.similarity_search_with_relevance_scores("b", k=1)
    query = vector_of(QUERY + "b")
    best = max("abc", key=lambda text: query @ vector_of(DOCUMENT + text))
    assert found.page_content == best
    assert score == pytest.approx(query @ vector_of(DOCUMENT + best), abs=1e-5)


async def test_chroma_from_an_event_loop(embeddings: GemmaEmbeddings, tmp_path: Path) -> None:
    store = chroma(embeddings, tmp_path)
    await store.aadd_texts(["a", "b"], ids=["1", "2"])
    assert len(await store.asimilarity_search("a", k=2)) == 2


def test_errors_are_the_cores(embeddings: GemmaEmbeddings) -> None:
    with pytest.raises(InvalidInput, match=r"pass \[text\]"):
        embeddings.embed_documents("one text")
    with pytest.raises(InvalidInput, match="index 0"):
        embeddings.embed_query(None)
