"""Search in two steps: candidates by narrow vectors, order by full-width vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings
from fakes import FakeRuntime, vector_of
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.exceptions import ModelRateLimitError
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import QueryBundle, StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.vector_stores.chroma import ChromaVectorStore

import langchain_gemma_embed
import llamaindex_gemma_embed
from gemma_embed.chroma import ChromaIndex, CompactIndex, stored
from gemma_embed.compact import CompactVectors, Form, packed
from gemma_embed.errors import (
    CollectionError,
    CollectionMismatch,
    ConfigurationError,
    InvalidInput,
    ServerBusy,
)
from gemma_embed.testing import bundled_runtime
from langchain_gemma_embed import GemmaEmbeddings
from llamaindex_gemma_embed import GemmaEmbedding, GemmaTitles

TEXTS = [f"text {number}" for number in range(300)]
QUERY = "which one?"
QUERY_VECTOR = vector_of(f"task: search result | query: {QUERY}")
NOTES = Path(__file__).parent.parent / "examples"


def exact(prompted: list[str], width: int = 768) -> list[int]:
    """Rows by similarity, computed here."""
    rows = np.array([vector_of(text)[:width] for text in prompted])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.argsort(-(rows @ QUERY_VECTOR[:width])).tolist()


# Titles in metadata: YAML reads some as numbers and dates.
TITLES = {n: f"T{n}" for n in range(300)} | {7: 1984, 8: 3.5, 9: "", 10: True}


def documents(title_key: str) -> list[Document]:
    return [Document(text, metadata={title_key: TITLES[n], "n": n}) for n, text in enumerate(TEXTS)]


def prompted_as_ingested() -> list[str]:
    titles = [TITLES[n] or "none" for n in range(len(TEXTS))]
    return [f"title: {title} | text: {text}" for title, text in zip(titles, TEXTS, strict=True)]


PLAIN = [f"title: none | text: {text}" for text in TEXTS]
TITLED = [f"title: T{number} | text: {text}" for number, text in enumerate(TEXTS)]


class TestLangChain:
    @pytest.fixture
    def filled(self, fake: FakeRuntime, tmp_path: Path) -> InMemoryVectorStore:
        embeddings = GemmaEmbeddings(fake, dimensions=128, store=tmp_path / "vectors.sqlite")
        vectorstore = InMemoryVectorStore(embeddings)
        vectorstore.add_texts(TEXTS, [{"title": f"T{n}", "n": n} for n in range(len(TEXTS))])
        fake.texts.clear()
        return vectorstore

    async def test_results_are_in_full_width_order(
        self, filled: InMemoryVectorStore, fake: FakeRuntime
    ) -> None:
        retriever = langchain_gemma_embed.MatryoshkaRetriever(
            vectorstore=filled, k=10, candidates=len(TEXTS)
        )
        found = [document.metadata["n"] for document in retriever.invoke(QUERY)]
        assert found == exact(PLAIN)[:10]
        assert found != exact(PLAIN, 128)[:10]
        # Only the query, once: everything else was in the store.
        assert fake.texts == [f"task: search result | query: {QUERY}"]
        again = [document.metadata["n"] for document in await retriever.ainvoke(QUERY)]
        assert again == found

    def test_only_candidates_of_the_narrow_index_are_returned(
        self, filled: InMemoryVectorStore
    ) -> None:
        retriever = langchain_gemma_embed.MatryoshkaRetriever(
            vectorstore=filled, k=20, candidates=20
        )
        found = [document.metadata["n"] for document in retriever.invoke(QUERY)]
        narrow = exact(PLAIN, 128)[:20]
        assert found == [n for n in exact(PLAIN) if n in narrow]

    def test_a_filter_reaches_the_vector_store(self, filled: InMemoryVectorStore) -> None:
        retriever = langchain_gemma_embed.MatryoshkaRetriever(
            vectorstore=filled, k=3, search_kwargs={"filter": lambda row: row.metadata["n"] < 3}
        )
        found = [document.metadata["n"] for document in retriever.invoke(QUERY)]
        assert found == [n for n in exact(PLAIN) if n < 3]

    def test_a_cleared_store_is_refilled_once(
        self, filled: InMemoryVectorStore, fake: FakeRuntime
    ) -> None:
        retriever = langchain_gemma_embed.MatryoshkaRetriever(filled, k=5)
        expected = retriever.invoke(QUERY)
        filled.embeddings.embedder.store.clear()
        fake.texts.clear()
        assert retriever.invoke(QUERY) == expected
        assert len(fake.texts) == 1 + retriever.candidates
        assert retriever.invoke(QUERY) == expected
        assert len(fake.texts) == 2 + retriever.candidates

    @pytest.mark.parametrize("title_key", [None, "name"])
    def test_rows_of_an_index_have_their_titles(
        self, fake: FakeRuntime, tmp_path: Path, title_key: str | None
    ) -> None:
        embeddings = GemmaEmbeddings(fake, dimensions=256, store=tmp_path / "vectors.sqlite")
        with ChromaIndex(tmp_path / "db", "notes", embeddings, title_key=title_key) as index:
            index.ingest(langchain_gemma_embed.passages(documents(title_key or "title")))
            vectorstore = Chroma(
                collection_name=index.collection_name,
                embedding_function=embeddings,
                client=index.client,
            )
            retriever = langchain_gemma_embed.MatryoshkaRetriever(
                vectorstore=vectorstore, k=10, candidates=len(TEXTS)
            )
            fake.texts.clear()
            found = [document.metadata["n"] for document in retriever.invoke(QUERY)]
        assert found == exact(prompted_as_ingested())[:10]
        assert fake.texts == [f"task: search result | query: {QUERY}"]

    def test_titles_passed_separately_need_title_key(
        self, fake: FakeRuntime, tmp_path: Path
    ) -> None:
        embeddings = GemmaEmbeddings(fake, dimensions=256, store=tmp_path / "vectors.sqlite")
        embeddings.embed_documents(TEXTS, titles=[str(TITLES[n]) for n in range(len(TEXTS))])
        vectorstore = InMemoryVectorStore(embeddings)
        vectorstore.add_documents(documents("title"))
        retriever = langchain_gemma_embed.MatryoshkaRetriever(
            vectorstore=vectorstore, k=10, candidates=len(TEXTS), title_key="title"
        )
        fake.texts.clear()
        found = [document.metadata["n"] for document in retriever.invoke(QUERY)]
        assert found == exact(prompted_as_ingested())[:10]
        assert fake.texts == [f"task: search result | query: {QUERY}"]

    def test_errors_are_also_langchains(self, filled: InMemoryVectorStore) -> None:
        class Busy(FakeRuntime):
            def embed(self, texts: Any, *, truncate: bool = False) -> Any:
                raise ServerBusy("too many requests")
                yield

        retriever = langchain_gemma_embed.MatryoshkaRetriever(vectorstore=filled)
        filled.embedding = GemmaEmbeddings(
            Busy(), dimensions=128, store=filled.embeddings.embedder.store
        )
        with pytest.raises(ModelRateLimitError):
            retriever.invoke(QUERY)

    def test_wrong_arguments_are_errors_with_the_right_ones(
        self, fake: FakeRuntime, tmp_path: Path
    ) -> None:
        path = tmp_path / "vectors.sqlite"
        stores = {
            "pass store=": InMemoryVectorStore(GemmaEmbeddings(fake, dimensions=128)),
            "768 wide": InMemoryVectorStore(GemmaEmbeddings(fake, store=path)),
            "not GemmaEmbeddings": InMemoryVectorStore(DeterministicFakeEmbedding(size=128)),
        }
        for words, vectorstore in stores.items():
            with pytest.raises(ConfigurationError, match=words):
                langchain_gemma_embed.MatryoshkaRetriever(vectorstore)
        narrow = InMemoryVectorStore(GemmaEmbeddings(fake, dimensions=128, store=path))
        with pytest.raises(ConfigurationError, match="at least one"):
            langchain_gemma_embed.MatryoshkaRetriever(narrow, k=0)
        with pytest.raises(ConfigurationError, match="5 passages of 4 candidates"):
            langchain_gemma_embed.MatryoshkaRetriever(narrow, k=5, candidates=4)
        with pytest.raises(ValueError, match="typo"):
            langchain_gemma_embed.MatryoshkaRetriever(narrow, typo=1)


class TestLlamaIndex:
    @pytest.fixture
    def embed_model(self, fake: FakeRuntime, tmp_path: Path) -> GemmaEmbedding:
        return GemmaEmbedding(fake, dimensions=128, store=tmp_path / "vectors.sqlite")

    @pytest.fixture
    def nodes(self) -> list[TextNode]:
        return [
            TextNode(text=text, metadata={"title": f"T{n}", "n": n}) for n, text in enumerate(TEXTS)
        ]

    async def test_results_are_in_full_width_order(
        self, embed_model: GemmaEmbedding, nodes: list[TextNode], fake: FakeRuntime
    ) -> None:
        nodes = list(GemmaTitles()(nodes))
        index = VectorStoreIndex(nodes, embed_model=embed_model)
        fake.texts.clear()
        retriever = llamaindex_gemma_embed.MatryoshkaRetriever(
            index, embed_model, similarity_top_k=10, candidates=len(TEXTS)
        )
        found = retriever.retrieve(QUERY)
        assert [each.node.metadata["n"] for each in found] == exact(TITLED)[:10]
        for each in found:
            cosine = vector_of(TITLED[each.node.metadata["n"]]) @ QUERY_VECTOR
            assert each.score == pytest.approx(cosine, abs=1e-6)
        assert fake.texts == [f"task: search result | query: {QUERY}"]
        again = await retriever.aretrieve(QUERY)
        assert [each.node_id for each in again] == [each.node_id for each in found]

    @pytest.mark.parametrize("titled", [False, True])
    def test_nodes_read_from_chroma(
        self,
        embed_model: GemmaEmbedding,
        nodes: list[TextNode],
        fake: FakeRuntime,
        tmp_path: Path,
        titled: bool,
    ) -> None:
        # LlamaIndex's own form: all metadata, or only the title, are part of the text.
        nodes = list(GemmaTitles()(nodes)) if titled else nodes
        with chromadb.PersistentClient(
            str(tmp_path / "db"), Settings(anonymized_telemetry=False)
        ) as client:
            own = client.create_collection(
                "own", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
            )
            context = StorageContext.from_defaults(
                vector_store=ChromaVectorStore(chroma_collection=own)
            )
            stock = VectorStoreIndex(nodes, storage_context=context, embed_model=embed_model)
            retriever = llamaindex_gemma_embed.MatryoshkaRetriever(
                stock, embed_model, similarity_top_k=5, candidates=300
            )
            fake.texts.clear()
            found = [each.node.metadata["n"] for each in retriever.retrieve(QUERY)]
            assert fake.texts == [f"task: search result | query: {QUERY}"]
        assert not titled or found == exact(TITLED)[:5]

    @pytest.mark.parametrize("title_key", [None, "name"])
    @pytest.mark.parametrize("marked", [False, True])
    @pytest.mark.parametrize("through", ["llamaindex", "langchain"])
    def test_rows_of_an_index_have_their_titles(
        self,
        embed_model: GemmaEmbedding,
        fake: FakeRuntime,
        tmp_path: Path,
        title_key: str | None,
        marked: bool,
        through: str,
    ) -> None:
        rows = documents(title_key or "title")
        nodes = [TextNode(text=each.page_content, metadata=each.metadata) for each in rows]
        if marked:
            nodes = list(GemmaTitles(title_key=title_key or "title")(nodes))
        with ChromaIndex(tmp_path / "db", "notes", embed_model, title_key=title_key) as index:
            if through == "llamaindex":
                index.ingest(llamaindex_gemma_embed.passages(nodes))
            else:
                index.ingest(langchain_gemma_embed.passages(rows))
            opened = VectorStoreIndex.from_vector_store(
                ChromaVectorStore(chroma_collection=index.open()), embed_model=embed_model
            )
            retriever = llamaindex_gemma_embed.MatryoshkaRetriever(
                opened, embed_model, similarity_top_k=10, candidates=300
            )
            fake.texts.clear()
            found = [each.node.metadata["n"] for each in retriever.retrieve(QUERY)]
        assert found == exact(prompted_as_ingested())[:10]
        assert fake.texts == [f"task: search result | query: {QUERY}"]

    def test_a_filter_reaches_the_index(
        self, embed_model: GemmaEmbedding, nodes: list[TextNode]
    ) -> None:
        index = VectorStoreIndex(nodes, embed_model=embed_model)
        only = MetadataFilters(filters=[MetadataFilter(key="n", value=7)])
        retriever = llamaindex_gemma_embed.MatryoshkaRetriever(index, embed_model, filters=only)
        assert [each.node.metadata["n"] for each in retriever.retrieve(QUERY)] == [7]

    def test_a_query_with_an_embedding_is_refused(
        self, embed_model: GemmaEmbedding, nodes: list[TextNode]
    ) -> None:
        index = VectorStoreIndex(nodes, embed_model=embed_model)
        retriever = llamaindex_gemma_embed.MatryoshkaRetriever(index, embed_model)
        for bundle in (
            QueryBundle(QUERY, embedding=[1.0] * 128),
            QueryBundle(QUERY, custom_embedding_strs=["a made-up answer"]),
        ):
            with pytest.raises(InvalidInput, match="embeds the query itself"):
                retriever.retrieve(bundle)

    def test_wrong_arguments_are_errors_with_the_right_ones(
        self, fake: FakeRuntime, nodes: list[TextNode]
    ) -> None:
        embed_model = GemmaEmbedding(fake, dimensions=128)
        index = VectorStoreIndex(nodes, embed_model=embed_model)
        with pytest.raises(ConfigurationError, match="pass store="):
            llamaindex_gemma_embed.MatryoshkaRetriever(index, embed_model)


def retriever_of(through: str, index: ChromaIndex, model: Any, **options: Any) -> Any:
    """A framework's retriever on a ChromaIndex, as a function from a query to numbers."""
    if through == "langchain":
        vectorstore = Chroma(index.collection_name, model, client=index.client)
        langchain = langchain_gemma_embed.MatryoshkaRetriever(vectorstore, k=10, **options)
        return lambda query: [each.metadata["n"] for each in langchain.invoke(query)]
    opened = VectorStoreIndex.from_vector_store(
        ChromaVectorStore(chroma_collection=index.open()), embed_model=model
    )
    llamaindex = llamaindex_gemma_embed.MatryoshkaRetriever(
        opened, model, similarity_top_k=10, **options
    )
    return lambda query: [each.node.metadata["n"] for each in llamaindex.retrieve(query)]


MODELS = {"langchain": GemmaEmbeddings, "llamaindex": GemmaEmbedding}


@pytest.mark.parametrize("through", MODELS)
class TestCompact:
    @pytest.mark.parametrize("form", ["int8", "binary"])
    @pytest.mark.parametrize("width", [768, 128])
    def test_results_are_in_full_width_order(
        self, through: str, fake: FakeRuntime, tmp_path: Path, form: Form, width: int
    ) -> None:
        model = MODELS[through](fake, dimensions=width, store=tmp_path / "vectors.sqlite")
        with ChromaIndex(tmp_path / "db", "notes", model) as index:
            index.ingest(langchain_gemma_embed.passages(documents("title")))
            compact = CompactIndex(index, form)
            fake.texts.clear()
            assert compact.load() == len(TEXTS)
            # The index's fixed sentence, and no row.
            assert len(fake.texts) == 1
            every = retriever_of(through, index, model, compact=compact, candidates=len(TEXTS))
            fake.texts.clear()
            assert every(QUERY) == exact(prompted_as_ingested())[:10]
            assert fake.texts == [f"task: search result | query: {QUERY}"]
            # Candidates are those of the packed vectors.
            vectors = np.array([vector_of(text)[:width] for text in prompted_as_ingested()])
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            narrow = QUERY_VECTOR[:width] / np.linalg.norm(QUERY_VECTOR[:width])
            near = CompactVectors(packed(vectors, form), form, width).nearest(narrow, 15)
            some = retriever_of(through, index, model, compact=compact, candidates=15)
            assert some(QUERY) == [n for n in exact(prompted_as_ingested()) if n in near][:10]

    def test_a_collection_that_changed_is_refused_until_it_is_loaded_again(
        self, through: str, fake: FakeRuntime, tmp_path: Path
    ) -> None:
        model = MODELS[through](fake, store=tmp_path / "vectors.sqlite")
        rows = [
            {"text": text, "document": text, "metadata": {"n": n}} for n, text in enumerate(TEXTS)
        ]
        with ChromaIndex(tmp_path / "db", "notes", model) as index:
            index.ingest(rows)
            compact = CompactIndex(index)
            with pytest.raises(ConfigurationError, match="call load"):
                retriever_of(through, index, model, compact=compact)(QUERY)
            compact.load()
            search = retriever_of(through, index, model, compact=compact, candidates=10)
            best = search(QUERY)[0]
            changes: list[Any] = [
                lambda: index.ingest([{"text": "more", "document": "m", "metadata": {"n": 300}}]),
                lambda: index.remove([TEXTS[best]]),
                # As many rows as before: one that is no candidate for one that was.
                lambda: (
                    index.remove([TEXTS[search(QUERY)[0]]]),
                    index.ingest([{"text": "new", "document": "n", "metadata": {"n": 301}}]),
                ),
                # The same row with a title.
                lambda: index.ingest(
                    [
                        {
                            "text": TEXTS[(n := search(QUERY)[0])],
                            "document": TEXTS[n],
                            "metadata": {"n": n, "title": "T"},
                        }
                    ]
                ),
            ]
            for change in changes:
                change()
                with pytest.raises(CollectionMismatch, match=r"load\(\)"):
                    search(QUERY)
                compact.load()
                assert len(search(QUERY)) == 10
            # Another thread's load, between the two steps of a search.
            gone = compact.nearest(QUERY_VECTOR, 10)
            index.remove([TEXTS[search(QUERY)[0]]])
            compact.load()
            with pytest.raises(CollectionMismatch, match=r"load\(\)"):
                compact.confirm(gone, [("whatever was read for it", None)])
            index.recreate(rows)
            with pytest.raises(CollectionError, match="deleted"):
                search(QUERY)

    def test_no_row_is_skipped_when_others_are_removed_meanwhile(
        self,
        through: str,
        fake: FakeRuntime,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(stored, "PAGE", 10)
        model = MODELS[through](fake, store=tmp_path / "vectors.sqlite")
        with ChromaIndex(tmp_path / "db", "notes", model) as index:
            index.ingest([{"text": text, "document": text, "metadata": {}} for text in TEXTS])
            collection = index.open()
            order = collection.get(include=[])["ids"]
            gone = {2: order[0], 3: order[-1]}
            read = stored.read

            def removing(*arguments: Any, **options: Any) -> Any:
                if (page := gone.pop(len(pages), None)) is not None:
                    # As another process does it, behind the index's back.
                    collection.delete(ids=[page])
                pages.append(read(*arguments, **options))
                return pages[-1]

            pages: list[Any] = []
            monkeypatch.setattr(stored, "read", removing)
            compact = CompactIndex(index)
            assert compact.load() == len(TEXTS) - 1
            assert {row for page in pages for row in page} == set(order[:-1])
            # The row that was read before it was removed is noticed.
            with pytest.raises(CollectionMismatch, match=r"load\(\)"):
                compact.nearest(QUERY_VECTOR, 10)
            assert compact.load() == len(TEXTS) - 2
            assert len(compact.nearest(QUERY_VECTOR, 10)) == 10

    def test_an_empty_collection_has_no_answers(
        self, through: str, fake: FakeRuntime, tmp_path: Path
    ) -> None:
        model = MODELS[through](fake, store=tmp_path / "vectors.sqlite")
        with ChromaIndex(tmp_path / "db", "notes", model) as index:
            index.open()
            compact = CompactIndex(index, "binary")
            assert compact.load() == 0
            assert retriever_of(through, index, model, compact=compact)(QUERY) == []

    def test_rows_that_others_wrote_and_other_embedders_are_refused(
        self, through: str, fake: FakeRuntime, tmp_path: Path
    ) -> None:
        model = MODELS[through](fake, store=tmp_path / "vectors.sqlite")
        with ChromaIndex(tmp_path / "db", "notes", model) as index:
            index.ingest([{"text": "one", "metadata": {"n": 1}}])
            compact = CompactIndex(index)
            compact.load()
            task = MODELS[through](
                fake, document_task="clustering", store=tmp_path / "vectors.sqlite"
            )
            with pytest.raises(CollectionMismatch, match="one embedder"):
                retriever_of(through, index, task, compact=compact)(QUERY)
            index.open().add(ids=["x"], documents=["x"], embeddings=[vector_of("x")])
            with pytest.raises(CollectionMismatch, match=r"'x'.*not written by ingest"):
                compact.load()

    def test_what_it_cannot_obey_is_refused(
        self, through: str, fake: FakeRuntime, tmp_path: Path
    ) -> None:
        model = MODELS[through](fake, store=tmp_path / "vectors.sqlite")
        only: dict[str, Any] = {"search_kwargs": {"filter": {"n": 1}}}
        if through == "llamaindex":
            only = {"filters": MetadataFilters(filters=[MetadataFilter(key="n", value=7)])}
        wrong: Any = "float8"
        with ChromaIndex(tmp_path / "db", "notes", model) as index:
            index.open()
            with pytest.raises(ConfigurationError, match="cannot be obeyed"):
                retriever_of(through, index, model, compact=CompactIndex(index), **only)
            if through == "langchain":
                vectorstore = Chroma(index.collection_name, model, client=index.client)
                assigned = langchain_gemma_embed.MatryoshkaRetriever(
                    vectorstore, compact=CompactIndex(index)
                )
                assigned.search_kwargs = only["search_kwargs"]
                with pytest.raises(ConfigurationError, match="cannot be obeyed"):
                    assigned.invoke(QUERY)
            with pytest.raises(ConfigurationError, match="float8"):
                CompactIndex(index, wrong)


def test_two_steps_find_the_same_as_the_full_width(tmp_path: Path) -> None:
    """The bundled model on the example notes: as good as 768 wide, from an index of 128."""
    paths = sorted((NOTES / "notes").glob("*.md"))
    rows = [
        {"text": path.read_text(), "id": path.name, "metadata": {"file": path.name}}
        for path in paths
    ]
    questions = json.loads((NOTES / "questions.json").read_text())["questions"]
    store = tmp_path / "vectors.sqlite"
    embeddings = {
        width: GemmaEmbeddings(bundled_runtime(), dimensions=width, store=store)
        for width in (128, 768)
    }
    with (
        ChromaIndex(tmp_path / "narrow", "notes", embeddings[128]) as narrow,
        ChromaIndex(tmp_path / "full", "notes", embeddings[768]) as full,
    ):
        for index in (narrow, full):
            index.ingest(rows)
        two_steps = langchain_gemma_embed.MatryoshkaRetriever(
            vectorstore=Chroma(narrow.collection_name, embeddings[128], client=narrow.client),
            k=3,
            candidates=20,
        )
        exactly = Chroma(full.collection_name, embeddings[768], client=full.client)
        for question in questions:
            text = question["question"]
            expected = [each.id for each in exactly.similarity_search(text, k=3)]
            assert [each.id for each in two_steps.invoke(text)] == expected
