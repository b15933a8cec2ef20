"""The frameworks' own ways to fill an index, over a store: a re-run costs what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import chromadb
import pytest
from chromadb.config import Settings
from fakes import FakeRuntime
from langchain_chroma import Chroma
from langchain_classic.indexes import SQLRecordManager
from langchain_core.documents import Document
from langchain_core.indexing import index
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.schema import Document as LlamaDocument
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.vector_stores.chroma import ChromaVectorStore

from gemma_embed.chroma import ChromaIndex
from gemma_embed.errors import ServerFailed
from gemma_embed.runtimes import Batch, TooLong
from langchain_gemma_embed import GemmaEmbeddings
from llamaindex_gemma_embed import GemmaEmbedding, GemmaTitles

COUNT = 60
# Where a run breaks down, and how many documents LangChain writes at a time.
AFTER, AT_ONCE = 35, 20
DOCUMENTS = [Document(f"text {n}", metadata={"n": n}) for n in range(COUNT)]


class Failing(FakeRuntime):
    """Breaks down after so many texts, until it is reset."""

    after: int | None = None

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        for outcome in super().embed(texts, truncate=truncate):
            if self.after is not None and len(self.texts) > self.after:
                raise ServerFailed("broken down")
            yield outcome

    @property
    def documents(self) -> int:
        """Documents computed; a fixed sentence is a query."""
        return sum("title: none | text: text " in text for text in self.texts)


@pytest.fixture
def runtime() -> Failing:
    return Failing()


class TestLangChainIndex:
    def run(
        self, folder: Path, runtime: FakeRuntime, dimensions: int = 256, wiped: bool = False
    ) -> tuple[int, int, int]:
        """One run of a program: added, skipped, and rows in the end."""
        embeddings = GemmaEmbeddings(runtime, dimensions=dimensions, store=folder / "vectors")
        with ChromaIndex(folder / "db", "notes", embeddings) as opened:
            if wiped:
                opened.open()
                opened.drop(opened.collection_name, current=True)
            records = SQLRecordManager(opened.namespace(), db_url=f"sqlite:///{folder}/records.db")
            records.create_schema()
            result = index(
                DOCUMENTS,
                records,
                Chroma(opened.collection_name, embeddings, client=opened.client),
                key_encoder="sha256",
                batch_size=AT_ONCE,
            )
            records.engine.dispose()
            return result["num_added"], result["num_skipped"], opened.open().count()

    def test_a_second_run_does_nothing(self, tmp_path: Path, runtime: Failing) -> None:
        assert self.run(tmp_path, runtime) == (COUNT, 0, COUNT)
        assert self.run(tmp_path, runtime) == (0, COUNT, COUNT)
        assert runtime.documents == COUNT

    def test_after_a_failure_only_what_is_missing(self, tmp_path: Path, runtime: Failing) -> None:
        runtime.after = AFTER
        with pytest.raises(ServerFailed):
            self.run(tmp_path, runtime)
        runtime.after = None
        assert sum(self.run(tmp_path, runtime)[:2]) == COUNT
        # LangChain goes on after its last full batch, the store after the last batch of three.
        assert COUNT < runtime.documents <= COUNT + 3

    def test_a_wiped_collection_is_filled_again_from_the_store(
        self, tmp_path: Path, runtime: Failing
    ) -> None:
        self.run(tmp_path, runtime)
        assert self.run(tmp_path, runtime, wiped=True) == (COUNT, 0, COUNT)
        assert runtime.documents == COUNT

    def test_a_wiped_store_costs_nothing_until_it_is_needed(
        self, tmp_path: Path, runtime: Failing
    ) -> None:
        self.run(tmp_path, runtime)
        (tmp_path / "vectors").unlink()
        assert self.run(tmp_path, runtime) == (0, COUNT, COUNT)
        assert runtime.documents == COUNT
        assert self.run(tmp_path, runtime, wiped=True) == (COUNT, 0, COUNT)
        assert runtime.documents == 2 * COUNT

    def test_another_model_fills_its_own_and_leaves_the_first(
        self, tmp_path: Path, runtime: Failing
    ) -> None:
        self.run(tmp_path, runtime)
        other = Failing(max_tokens=512)
        assert self.run(tmp_path, other) == (COUNT, 0, COUNT)
        assert (other.documents, runtime.documents) == (COUNT, COUNT)
        for each in (runtime, other):
            assert self.run(tmp_path, each) == (0, COUNT, COUNT)

    def test_another_width_needs_no_model(self, tmp_path: Path, runtime: Failing) -> None:
        self.run(tmp_path, runtime)
        assert self.run(tmp_path, runtime, dimensions=128) == (COUNT, 0, COUNT)
        assert runtime.documents == COUNT


class TestCacheNamespace:
    """The record manager and the collection named by ``cache_namespace``, Chroma opened alone."""

    def run(self, folder: Path, runtime: FakeRuntime, wiped: bool = False) -> tuple[int, int, int]:
        """One run of a program: added, skipped, and rows in the end."""
        embeddings = GemmaEmbeddings(runtime, dimensions=256, store=folder / "vectors")
        name = embeddings.cache_namespace
        with chromadb.PersistentClient(
            str(folder / "db"), Settings(anonymized_telemetry=False)
        ) as client:
            if wiped:
                client.delete_collection(name)
            store = Chroma(name, embeddings, client=client)
            records = SQLRecordManager(name, db_url=f"sqlite:///{folder}/records.db")
            records.create_schema()
            result = index(DOCUMENTS, records, store, key_encoder="sha256")
            records.engine.dispose()
            return result["num_added"], result["num_skipped"], len(store.get()["ids"])

    def test_a_second_run_does_nothing(self, tmp_path: Path, runtime: Failing) -> None:
        assert self.run(tmp_path, runtime) == (COUNT, 0, COUNT)
        assert self.run(tmp_path, runtime) == (0, COUNT, COUNT)
        assert runtime.documents == COUNT

    def test_another_model_fills_its_own_and_leaves_the_first(
        self, tmp_path: Path, runtime: Failing
    ) -> None:
        self.run(tmp_path, runtime)
        other = Failing(max_tokens=512)
        assert self.run(tmp_path, other) == (COUNT, 0, COUNT)
        assert (other.documents, runtime.documents) == (COUNT, COUNT)
        for each in (runtime, other):
            assert self.run(tmp_path, each) == (0, COUNT, COUNT)

    def test_a_wiped_store_costs_nothing(self, tmp_path: Path, runtime: Failing) -> None:
        self.run(tmp_path, runtime)
        (tmp_path / "vectors").unlink()
        assert self.run(tmp_path, runtime) == (0, COUNT, COUNT)
        assert runtime.documents == COUNT

    def test_a_wiped_collection_is_what_it_cannot_know(
        self, tmp_path: Path, runtime: Failing
    ) -> None:
        self.run(tmp_path, runtime)
        # The record manager's namespace is the same, so it skips what is no longer there.
        # ``ChromaIndex.namespace`` changes with the collection: see the class above.
        assert self.run(tmp_path, runtime, wiped=True) == (0, COUNT, 0)

    def test_the_indexs_namespace_changes_whenever_it_does(
        self, tmp_path: Path, runtime: Failing
    ) -> None:
        for place, embeddings in enumerate(
            [
                GemmaEmbeddings(runtime),
                GemmaEmbeddings(runtime, dimensions=128),
                GemmaEmbeddings(runtime, overlong="split"),
                GemmaEmbeddings(Failing(max_tokens=512)),
            ]
        ):
            fingerprint = embeddings.cache_namespace.removeprefix("gemma-embed-")
            with ChromaIndex(tmp_path / str(place), "notes", embeddings) as opened:
                assert opened.namespace().endswith(fingerprint)


class TestIngestionPipeline:
    def run(
        self,
        folder: Path,
        runtime: FakeRuntime,
        texts: Sequence[str],
        docstore: SimpleDocumentStore | None = None,
    ) -> int:
        """One run of a program; rows in the end."""
        embed_model = GemmaEmbedding(runtime, dimensions=256, store=folder / "vectors")
        documents = [LlamaDocument(text=text, id_=f"id {n}") for n, text in enumerate(texts)]
        with ChromaIndex(folder / "db", "notes", embed_model) as opened:
            pipeline = IngestionPipeline(
                transformations=[GemmaTitles(), embed_model],
                vector_store=ChromaVectorStore(chroma_collection=opened.open()),
                docstore=docstore,
                docstore_strategy=DocstoreStrategy.UPSERTS,
            )
            pipeline.run(documents=documents)
            return opened.open().count()

    TEXTS = [document.page_content for document in DOCUMENTS]

    def test_a_new_program_finds_what_the_last_one_computed(
        self, tmp_path: Path, runtime: Failing
    ) -> None:
        # No docstore and no cache: nothing but the store and Chroma outlives the first.
        assert self.run(tmp_path, runtime, self.TEXTS) == COUNT
        assert self.run(tmp_path, runtime, self.TEXTS) == COUNT
        assert runtime.documents == COUNT

    def test_after_a_failure_only_what_is_missing(self, tmp_path: Path, runtime: Failing) -> None:
        runtime.after = AFTER
        with pytest.raises(ServerFailed):
            self.run(tmp_path, runtime, self.TEXTS)
        runtime.after = None
        assert self.run(tmp_path, runtime, self.TEXTS) == COUNT
        assert COUNT < runtime.documents <= COUNT + 3

    def test_a_changed_document_is_one_call(self, tmp_path: Path, runtime: Failing) -> None:
        docstore = SimpleDocumentStore()
        self.run(tmp_path, runtime, self.TEXTS, docstore)
        changed = ["text changed", *self.TEXTS[1:]]
        assert self.run(tmp_path, runtime, changed, docstore) == COUNT
        assert runtime.documents == COUNT + 1
