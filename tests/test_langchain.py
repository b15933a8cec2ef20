"""The LangChain class: LangChain's own suites on two runtimes, and its use in LangChain."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeRuntime, vector_of
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.storage import LocalFileStore
from langchain_core import exceptions as lc_exceptions
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.load import dumpd
from langchain_core.stores import InMemoryByteStore
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from llama_index.core.schema import TextNode
from ollama_server import OllamaServer

from gemma_embed import errors
from gemma_embed.errors import ConfigurationError, EmbeddingError, InvalidInput, TransientError
from gemma_embed.runtimes import OllamaRuntime, TransformersRuntime
from langchain_gemma_embed import GemmaEmbeddings, passages
from langchain_gemma_embed import errors as adapter_errors

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


def test_roles_have_their_prompts_and_texts_are_unchanged(
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


def test_an_empty_list_computes_nothing(embeddings: GemmaEmbeddings, fake: FakeRuntime) -> None:
    assert embeddings.embed_documents([]) == []
    assert fake.calls == 0


def test_for_task_shares_the_model(embeddings: GemmaEmbeddings, fake: FakeRuntime) -> None:
    sibling = embeddings.for_task("question answering")
    sibling.embed_query("q")
    assert fake.texts == ["task: question answering | query: q"]
    assert sibling.embedder.runtime is fake
    assert embeddings.embedder.query_task == "query"


@pytest.mark.parametrize(
    "name",
    ["model_kwargs", "encode_kwargs", "show_progress", "base_url", "device", "dtype", "precision"],
)
def test_unknown_options_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        GemmaEmbeddings("ollama", **{name: {}})


def test_model_and_model_name_are_the_same_option() -> None:
    for options in ({"model": "embeddinggemma:x"}, {"model_name": "embeddinggemma:x"}):
        runtime = GemmaEmbeddings("ollama", **options).embedder.runtime
        assert runtime.settings["model"] == "embeddinggemma:x"
    with pytest.raises(ConfigurationError, match="model_name"):
        GemmaEmbeddings("ollama", "a", model_name="b")


def test_the_names_that_langchain_applications_look_for(fake: FakeRuntime) -> None:
    assert GemmaEmbeddings("ollama").model == "embeddinggemma:300m"
    assert GemmaEmbeddings("ollama").dimensions == 768
    narrow = GemmaEmbeddings(fake, dimensions=128)
    assert (narrow.model, narrow.dimensions) == ("fake", 128)

    class Nameless(FakeRuntime):
        settings = {}

    assert GemmaEmbeddings(Nameless()).model == "embeddinggemma-300m"
    for name in ("model", "dimensions"):
        with pytest.raises(AttributeError):
            setattr(narrow, name, 128)


def test_secrets_are_not_shown() -> None:
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
    assert first == third
    assert first == pytest.approx(embeddings_of(server, QUERY + "x"), abs=1e-6)
    assert len(documents) == 2


def embeddings_of(server: OllamaServer, prompted: str) -> list[float]:
    """The served model's vector of a prompted text."""
    with server, OllamaServer() as fresh:
        (batch,) = OllamaRuntime(host=fresh.url).embed([prompted])
        vector = np.array(batch.vectors[0])
        return (vector / np.linalg.norm(vector)).tolist()


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


def test_queries_are_cached_as_the_docstring_says(fake: FakeRuntime, tmp_path: Path) -> None:
    def cached(embeddings: GemmaEmbeddings) -> CacheBackedEmbeddings:
        queries = LocalFileStore(tmp_path / embeddings.query_cache_namespace)
        return CacheBackedEmbeddings.from_bytes_store(
            embeddings,
            LocalFileStore(tmp_path / "documents"),
            namespace=embeddings.cache_namespace,
            query_embedding_cache=queries,
            key_encoder="sha256",
        )

    embeddings = GemmaEmbeddings(fake, dimensions=128)
    for each in (embeddings, embeddings.for_task("fact checking"), embeddings):
        expected = each.embed_query("a")
        assert cached(each).embed_documents(["a"]) == embeddings.embed_documents(["a"])
        assert cached(each).embed_query("a") == expected
        calls = fake.calls
        assert cached(each).embed_query("a") == expected
        assert fake.calls == calls


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


def test_errors_are_the_cores_errors(embeddings: GemmaEmbeddings) -> None:
    with pytest.raises(InvalidInput, match=r"pass \[text\]"):
        embeddings.embed_documents("one text")
    with pytest.raises(InvalidInput, match="index 0"):
        embeddings.embed_query(None)


def _errors_of(kind: type[EmbeddingError]) -> Iterator[type[EmbeddingError]]:
    yield kind
    for each in kind.__subclasses__():
        if each.__module__ == errors.__name__:
            yield from _errors_of(each)


class Failing(FakeRuntime):
    def __init__(self, error: EmbeddingError) -> None:
        super().__init__()
        self.error = error

    def embed(self, texts: Any, *, truncate: bool = False) -> Any:
        raise self.error
        yield


@pytest.mark.parametrize("kind", list(_errors_of(EmbeddingError)))
async def test_errors_are_also_langchains(kind: type[EmbeddingError]) -> None:
    error = kind("it broke", index=1)
    error.attempts = 3
    embeddings = GemmaEmbeddings(Failing(error))
    caught = []
    with pytest.raises(kind) as sync:
        embeddings.embed_documents(["a", "b"])
    caught.append(sync.value)
    with pytest.raises(kind) as asynchronous:
        await embeddings.aembed_query("a")
    caught.append(asynchronous.value)
    for each in caught:
        again = pickle.loads(pickle.dumps(each))
        assert (type(again), str(again), again.attempts) == (type(each), str(each), 3)
        assert type(each).__name__ == kind.__name__
        of_a_model = issubclass(kind, (errors.ModelError, errors.InputTooLong, TransientError))
        if of_a_model and not kind.__subclasses__():
            assert isinstance(each, lc_exceptions.ModelError)
        if isinstance(each, lc_exceptions.ModelError):
            assert each.is_retryable == isinstance(each, TransientError)


def test_langchain_retries_temporary_errors() -> None:
    from langchain_core.runnables import RunnableLambda

    class Busy(FakeRuntime):
        def embed(self, texts: Any, *, truncate: bool = False) -> Any:
            if self.calls < 2:
                self.calls += 1
                raise errors.ServerBusy("too many requests")
            return super().embed(texts, truncate=truncate)

    embeddings = GemmaEmbeddings(Busy())
    patient = RunnableLambda(embeddings.embed_query).with_retry(
        retry_if_exception_type=(lc_exceptions.ModelRateLimitError,),
        wait_exponential_jitter=False,
        stop_after_attempt=3,
    )
    assert patient.invoke("a") == GemmaEmbeddings(FakeRuntime()).embed_query("a")


def test_an_older_langchain_gets_the_cores_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    older = types.ModuleType("langchain_core.exceptions")
    monkeypatch.setattr(adapter_errors, "exceptions", older)
    monkeypatch.setattr(adapter_errors, "_CLASSES", adapter_errors._classes())
    with pytest.raises(errors.ServerBusy) as caught:
        GemmaEmbeddings(Failing(errors.ServerBusy("too many"))).embed_query("a")
    assert type(caught.value) is errors.ServerBusy


def test_a_missing_langchain_is_an_error_with_the_install_command() -> None:
    script = (
        "import sys; sys.modules['langchain_core'] = None\n"
        "from gemma_embed.errors import MissingDependency\n"
        "try: import langchain_gemma_embed\n"
        "except MissingDependency as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install 'gemma-embed[langchain]'" in ran.stdout


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ([TextNode(text="a canary")], "llamaindex_gemma_embed.passages"),
        ("a canary", r"pass a list of Document\("),
        (["a canary"], r"pass a list of Document\("),
        (Document("a canary"), r"pass a list of Document\("),
        ([{"text": "a canary"}], r"pass dictionaries to ingest\(\) directly"),
    ],
)
def test_passages_of_other_kinds_are_refused(given: Any, advice: str) -> None:
    with pytest.raises(InvalidInput, match=f"is not a LangChain Document: .*{advice}") as caught:
        list(passages(given))
    assert caught.value.index == 0
    assert "canary" not in str(caught.value)
