"""Collections in Chroma: whose vectors they hold, what survives, how they are made anew."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings
from fakes import FakeRuntime, vector_of
from langchain_chroma import Chroma
from langchain_core.documents import Document
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.vector_stores.chroma import ChromaVectorStore
from notes import documents, everything

import langchain_gemma_embed
import llamaindex_gemma_embed
from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex, Passage, verify
from gemma_embed.chroma.rows import rows_in_folder, rows_of
from gemma_embed.errors import (
    CollectionDamaged,
    CollectionIncomplete,
    CollectionLocked,
    CollectionMismatch,
    ConfigurationError,
    InvalidInput,
    ServerFailed,
)
from gemma_embed.testing import bundled_runtime
from langchain_gemma_embed import GemmaEmbeddings
from llamaindex_gemma_embed import GemmaEmbedding


@pytest.fixture
def index(fake: FakeRuntime, tmp_path: Path) -> Iterator[ChromaIndex]:
    with ChromaIndex(tmp_path / "db", "notes", Embedder(fake)) as opened:
        yield opened


def other(index: ChromaIndex, **options: Any) -> ChromaIndex:
    """The same collection with another embedder."""
    return ChromaIndex(index.client, index.name, index.embedder.replaced(**options))


# Ingestion


def test_rows_hold_text_title_and_metadata(index: ChromaIndex) -> None:
    report = index.ingest(documents(5))
    assert (report.added, report.unchanged, report.missing) == (5, 0, ())
    got = index.collection.get(ids=["id 3"], include=["documents", "metadatas", "embeddings"])
    assert got["documents"] == ["text 3"]
    assert got["metadatas"][0]["n"] == 3
    np.testing.assert_allclose(
        got["embeddings"][0], vector_of("title: T3 | text: text 3"), atol=1e-6
    )
    assert index.collection.configuration["hnsw"]["space"] == "cosine"


def test_a_second_run_does_nothing(index: ChromaIndex, fake: FakeRuntime) -> None:
    index.ingest(documents())
    before = len(fake.texts)
    report = index.ingest(documents())
    assert (report.added, report.unchanged, report.updated, report.removed) == (0, 60, 0, 0)
    # The fixed sentence that shows whose vectors they are.
    assert len(fake.texts) == before + 1


def test_changes_are_found_in_the_collection_itself(index: ChromaIndex, fake: FakeRuntime) -> None:
    index.ingest(documents())
    index.collection.delete(ids=["id 7"])
    index.collection.update(ids=["id 8"], documents=["tampered"], embeddings=[[1.0] * 768])
    changed = documents()
    changed[9]["text"] = "new text"
    changed[10]["metadata"]["title"] = "new title"
    fake.texts.clear()
    report = index.ingest(changed)
    assert (report.added, report.updated, report.unchanged) == (1, 3, 56)
    assert {"title: T9 | text: new text", "title: new title | text: text 10"} < set(fake.texts)
    got = index.collection.get(ids=["id 8"], include=["documents", "embeddings"])
    assert got["documents"] == ["text 8"]
    np.testing.assert_allclose(
        got["embeddings"][0], vector_of("title: T8 | text: text 8"), atol=1e-6
    )


def test_metadata_that_went_is_gone(index: ChromaIndex) -> None:
    rows = documents(2)
    rows[0]["metadata"] |= {"old": 1, "list": ["a", "b"]}
    index.ingest(rows)
    index.ingest(documents(2))
    (metadata,) = index.collection.get(ids=["id 0"])["metadatas"] or []
    assert set(metadata) == {"n", "title", "gemma_embed.digest"}


def test_absent_rows_go_only_on_request(index: ChromaIndex) -> None:
    index.ingest(documents(20))
    assert index.ingest(documents(15)).removed == 0
    assert index.collection.count() == 20
    assert index.ingest(documents(15), remove_absent=True).removed == 5
    assert sorted(index.collection.get()["ids"]) == sorted(f"id {i}" for i in range(15))


def test_ids_come_from_the_content(index: ChromaIndex) -> None:
    texts = [{"text": "a"}, {"text": "b"}, {"text": "a"}, Passage("a", metadata={"n": 1})]
    assert index.ingest(texts).added == 3
    assert index.ingest(reversed(texts)).unchanged == 3


def test_a_generator_is_taken_batch_by_batch(index: ChromaIndex) -> None:
    taken = 0
    ahead: list[int] = []

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for row in documents(200):
            taken += 1
            yield row

    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        ahead.append(taken - done)
        seen.append((done, total))

    assert index.ingest(endless(), batch_size=32, progress=progress).added == 200
    assert max(ahead) == 0
    assert seen[0] == (32, 0)
    assert seen[-1] == (200, 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"id": "x"}, "has no text"),
        ({"text": "x", "page": 3}, "unknown fields"),
        ({"text": None}, "text is NoneType"),
        ({"text": "x", "id": ""}, "id ''"),
        ({"text": "x", "metadata": {"a": {"b": 1}}}, "metadata 'a' is dict"),
        ({"text": "x", "metadata": {"title": 5}}, "title"),
        ({"text": "\ud800"}, "surrogate"),
        ({"text": "other", "id": "id 1"}, "same id"),
        ("text", "expected a Passage"),
    ],
)
def test_wrong_passages_are_named_and_the_rest_is_kept(
    index: ChromaIndex, wrong: Any, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        index.ingest([*documents(30), wrong], batch_size=10)
    assert caught.value.index == 30
    assert index.collection.count() == 30


def test_a_failure_keeps_what_was_finished(tmp_path: Path) -> None:
    class Failing(FakeRuntime):
        def embed(self, texts: Any, *, truncate: bool = False) -> Any:
            if len(self.texts) > 25:
                raise ServerFailed("the server died", index=2)
            return super().embed(texts, truncate=truncate)

    runtime = Failing()
    index = ChromaIndex(tmp_path / "db", "notes", Embedder(runtime))
    with pytest.raises(ServerFailed, match="index 32"):
        index.ingest(documents(), batch_size=10)
    held = index.client.get_collection("notes", embedding_function=None)
    assert held.count() == 30
    healthy = FakeRuntime()
    again = ChromaIndex(index.client, "notes", Embedder(healthy, store=index.embedder.store))
    assert again.ingest(documents()).added == 30
    assert len(healthy.texts) == 31
    index.close()


def test_what_is_missing_in_the_end_is_an_error(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lossy:
        def __init__(self, collection: chromadb.Collection) -> None:
            self._collection = collection

        def upsert(self, ids: list[str], **rest: Any) -> None:
            kept = [n for n, row in enumerate(ids) if row != "id 4"]
            columns = {name: [values[n] for n in kept] for name, values in rest.items()}
            self._collection.upsert(ids=[ids[n] for n in kept], **columns)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._collection, name)

    collection = index.collection
    monkeypatch.setattr(ChromaIndex, "_opened", lambda *_: Lossy(collection))
    with pytest.raises(CollectionIncomplete, match=r"1 of 60.*'id 4'") as caught:
        index.ingest(documents())
    report: Any = caught.value.report
    assert report.missing == ("id 4",)


def test_a_second_writer_is_refused(index: ChromaIndex) -> None:
    index.ingest(documents(3))
    script = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from fakes import FakeRuntime\n"
        "from gemma_embed import Embedder\n"
        "from gemma_embed.chroma import ChromaIndex\n"
        "index = ChromaIndex(sys.argv[1], 'notes', Embedder(FakeRuntime()))\n"
        "index.ingest([])\n"
    )
    command = [sys.executable, "-c", script, str(index._folder), str(Path(__file__).parent)]

    def slow() -> Iterator[dict[str, Any]]:
        yield from documents(2)
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "CollectionLocked" in second.stderr
        assert "another process is writing" in second.stderr
        yield from documents(5)[2:]

    assert index.ingest(slow(), batch_size=1).added == 2
    index.close()
    assert subprocess.run(command, check=False).returncode == 0


def test_a_killed_writer_leaves_no_lock(index: ChromaIndex) -> None:
    folder = index._folder
    assert folder is not None
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from gemma_embed.chroma.lock import only_writer\n"
        "with only_writer(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", script, folder / "mark"]
    assert subprocess.run(command, check=False).returncode == -9
    assert index.ingest(documents(3)).added == 3


def test_threads_do_not_write_at_once(index: ChromaIndex) -> None:
    def nested() -> Iterator[dict[str, Any]]:
        with pytest.raises(CollectionLocked):
            index.ingest([])
        yield from documents(1)

    assert index.ingest(nested()).added == 1


# Passport


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"dimensions": 256}, "dimensions is 768 there and 256 here"),
        ({"document_task": "clustering"}, "prompt is 'title: none | text: ' there"),
        ({"overlong": "truncate"}, "overlong is 'error' there and 'truncate' here"),
    ],
)
def test_another_embedder_is_refused(
    index: ChromaIndex, options: dict[str, Any], field: str
) -> None:
    index.ingest(documents(3))
    wrong = other(index, **options)
    for act in (lambda: wrong.collection, lambda: wrong.ingest(documents(3))):
        with pytest.raises(CollectionMismatch) as caught:
            act()
        assert field in str(caught.value)
        assert "rebuild()" in str(caught.value)
    with pytest.raises(CollectionMismatch):
        verify(index.collection, wrong.embedder)
    assert index.collection.count() == 3


@pytest.mark.parametrize("change", [{"revision": "2"}, {"precision": "int8"}, {"runtime": "new"}])
def test_other_weights_are_refused(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    index.ingest(documents(3))
    own = index.embedder.runtime.identity
    monkeypatch.setattr(FakeRuntime, "identity", property(lambda _: replace(own, **change)))
    ((field, value),) = change.items()
    with pytest.raises(CollectionMismatch, match=f"{field} is '.*' there and '{value}' here"):
        _ = index.collection


def test_weights_that_changed_under_their_name_are_found_out(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.ingest(documents(3))
    monkeypatch.setattr("fakes.vector_of", lambda text: vector_of(text + "!"))
    with pytest.raises(CollectionMismatch, match="same sentence has another vector"):
        _ = index.collection


def test_another_place_of_the_same_weights_is_welcome(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.ingest(documents(3))
    own = index.embedder.runtime.identity
    moved = replace(own, source="elsewhere")
    monkeypatch.setattr(FakeRuntime, "identity", property(lambda _: moved))
    assert index.collection.count() == 3


def test_a_collection_without_passport_is_adopted_on_request(
    fake: FakeRuntime, tmp_path: Path
) -> None:
    client = chromadb.PersistentClient(str(tmp_path), Settings(anonymized_telemetry=False))
    embeddings = GemmaEmbeddings(fake, store=tmp_path / "store")
    store = Chroma(
        "notes",
        embeddings,
        client=client,
        collection_configuration={"hnsw": {"space": "cosine"}},
        collection_metadata={"owner": "me"},
    )
    store.add_texts(["a", "b"], metadatas=[{"title": "T"}, {"title": "U"}])
    index = ChromaIndex(client, "notes", embeddings)
    with pytest.raises(CollectionMismatch, match="adopt"):
        _ = index.collection
    index.adopt()
    assert index.collection.metadata["owner"] == "me"
    verify(client.get_collection("notes", embedding_function=None), embeddings)
    fake.texts.clear()
    # Rows that others wrote were embedded without their titles; so they are rebuilt.
    assert index.rebuild() == 2
    assert not fake.texts
    assert index.check() == 2


def test_a_collection_of_other_vectors_is_not_adopted(fake: FakeRuntime, tmp_path: Path) -> None:
    client = chromadb.PersistentClient(str(tmp_path), Settings(anonymized_telemetry=False))
    held = client.create_collection(
        "notes", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
    )
    held.add(ids=["a"], documents=["text"], embeddings=[vector_of("something else")])
    with pytest.raises(CollectionMismatch, match="embedded again"):
        ChromaIndex(client, "notes", Embedder(fake)).adopt()
    assert not held.metadata


def test_only_cosine(fake: FakeRuntime, tmp_path: Path) -> None:
    client = chromadb.PersistentClient(str(tmp_path), Settings(anonymized_telemetry=False))
    client.create_collection("notes", embedding_function=None)
    with pytest.raises(CollectionMismatch, match="'l2', not 'cosine'"):
        ChromaIndex(client, "notes", Embedder(fake)).adopt()
    with pytest.raises(ConfigurationError, match="cosine"):
        ChromaIndex(client, "notes", Embedder(fake), hnsw={"space": 1})


def test_a_folder_open_with_other_settings(fake: FakeRuntime, tmp_path: Path) -> None:
    with (
        chromadb.PersistentClient(str(tmp_path), Settings(allow_reset=True)),
        pytest.raises(ConfigurationError, match="client in place of the folder"),
    ):
        _ = ChromaIndex(tmp_path, "notes", Embedder(fake)).client


def test_a_name_that_chroma_does_not_take(fake: FakeRuntime, tmp_path: Path) -> None:
    with (
        ChromaIndex(tmp_path, "my notes", Embedder(fake)) as index,
        pytest.raises(ConfigurationError, match="'my notes'"),
    ):
        index.ingest(documents(1))


def test_an_index_in_memory_needs_a_store(fake: FakeRuntime, tmp_path: Path) -> None:
    client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
    with pytest.raises(ConfigurationError, match="store"):
        ChromaIndex(client, "notes", Embedder(fake))
    index = ChromaIndex(client, "in-memory", Embedder(fake, store=tmp_path / "s"))
    assert index.ingest(documents(4)).added == 4
    assert index.check() == 4
    assert index.rebuild() == 4
    client.delete_collection("in-memory")


# Damage and rebuilding


def test_a_rebuilt_collection_is_the_same(index: ChromaIndex, fake: FakeRuntime) -> None:
    rows = documents(300)
    rows[0]["metadata"] |= {"list": [1, 2], "flag": True, "share": 0.5}
    index.ingest(rows)
    before = everything(index)
    calls = fake.calls
    assert index.rebuild() == 300
    assert fake.calls == calls
    assert everything(index) == before
    assert [each.name for each in index.client.list_collections()] == ["notes"]


def test_another_width_costs_no_call(index: ChromaIndex, fake: FakeRuntime) -> None:
    index.ingest(documents())
    calls = fake.calls
    narrow = other(index, dimensions=128)
    assert narrow.rebuild() == 60
    assert fake.calls == calls
    assert narrow.check() == 60
    assert len(narrow.collection.get(include=["embeddings"])["embeddings"][0]) == 128


def test_another_model_is_computed_only_on_request(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch, fake: FakeRuntime
) -> None:
    index.ingest(documents())
    own = fake.identity
    monkeypatch.setattr(FakeRuntime, "identity", property(lambda _: replace(own, revision="2")))
    before = everything(index)
    with pytest.raises(CollectionDamaged, match="embed_missing=True"):
        index.rebuild()
    assert everything(index) == before
    assert index.rebuild(embed_missing=True) == 60
    assert index.check() == 60


def break_vectors(folder: Path) -> None:
    """Make the vector files what a killed writer can make of them."""
    for path in folder.glob("*/*.bin"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    for path in folder.glob("*/index_metadata.pickle"):
        path.write_bytes(b"")


def test_a_dead_collection_is_named_and_rebuilt_without_the_model(
    tmp_path: Path, fake: FakeRuntime
) -> None:
    index = ChromaIndex(tmp_path / "db", "notes", Embedder(fake), hnsw={"sync_threshold": 100})
    rows = documents(450)
    rows[0]["metadata"] |= {"list": ["x", "y"], "flag": False, "share": 0.25}
    index.ingest(rows, batch_size=75)
    before = everything(index)
    index.close()
    break_vectors(tmp_path / "db")
    with pytest.raises(CollectionDamaged, match=r"rebuild\(\)"):
        index.check()
    # A fresh process, as a user's next run would be.
    index = ChromaIndex(tmp_path / "db", "notes", Embedder(fake))
    with pytest.raises(CollectionDamaged, match=r"rebuild\(\)"):
        index.ingest(rows)
    calls = fake.calls
    assert index.rebuild() == 450
    assert fake.calls == calls
    assert everything(index) == before
    assert index.check() == 450
    assert index.ingest(rows).unchanged == 450
    index.close()


def test_a_collection_that_lost_its_vectors_silently(tmp_path: Path, fake: FakeRuntime) -> None:
    index = ChromaIndex(tmp_path / "db", "notes", Embedder(fake), hnsw={"sync_threshold": 100})
    index.ingest(documents(450), batch_size=75)
    index.close()
    for path in (tmp_path / "db").glob("*/header.bin"):
        shutil.rmtree(path.parent)
    with pytest.raises(CollectionDamaged):
        index.check()
    assert index.rebuild() == 450
    assert index.check() == 450
    index.close()


def test_rows_are_read_from_the_file_as_chroma_gives_them(
    index: ChromaIndex, tmp_path: Path
) -> None:
    rows = documents(40)
    rows[3]["metadata"] |= {"list": [1.5, 2.5], "flag": True, "none": None, "share": 0.1}
    index.ingest(rows)
    rows[4]["metadata"] = {"only": "this"}
    index.ingest(rows, batch_size=7)
    index.collection.delete(ids=["id 5"])
    expected = {row.id: row for page in rows_of(index.collection) for row in page}
    pages = rows_in_folder(tmp_path / "db", index.collection)
    assert {row.id: row for page in pages for row in page} == expected


def test_a_file_that_is_damaged_too(index: ChromaIndex, tmp_path: Path) -> None:
    index.ingest(documents(1))
    (tmp_path / "chroma.sqlite3").write_bytes(b"no database" * 100)
    with pytest.raises(CollectionDamaged, match="move"):
        list(rows_in_folder(tmp_path, index.collection))
    with pytest.raises(CollectionDamaged) as caught:
        list(rows_in_folder(tmp_path / "nowhere", index.collection))
    assert isinstance(caught.value.__cause__, sqlite3.Error)


def test_nothing_to_rebuild(index: ChromaIndex) -> None:
    with pytest.raises(CollectionDamaged, match="there is no collection"):
        index.rebuild()


# Frameworks


def test_langchain_documents(tmp_path: Path) -> None:
    embeddings = GemmaEmbeddings(bundled_runtime(), dimensions=256)
    held = [
        Document("Bake the loaf at 230 degrees for half an hour.", metadata={"title": "Bread"}),
        Document("The train to Lyon leaves at nine.", metadata={"title": "Travel"}),
    ]
    with ChromaIndex(tmp_path, "notes", embeddings) as index:
        assert index.ingest(langchain_gemma_embed.passages(held)).added == 2
        assert index.ingest(langchain_gemma_embed.passages(held)).unchanged == 2
        _ = index.collection
        store = Chroma("notes", embeddings, client=index.client)
        (best,) = store.similarity_search("When does the train go?", k=1)
        assert best.metadata["title"] == "Travel"
        # Opening by LangChain's class leaves the passport where it is.
        verify(index.client.get_collection("notes", embedding_function=None), embeddings)


def test_llamaindex_nodes(tmp_path: Path) -> None:
    model = GemmaEmbedding(bundled_runtime(), dimensions=256)

    def nodes() -> list[TextNode]:
        return [
            TextNode(text="Bake the loaf at 230 degrees for half an hour.", metadata={"n": 1}),
            TextNode(text="The train to Lyon leaves at nine.", metadata={"title": "Travel"}),
        ]

    with ChromaIndex(tmp_path, "notes", model) as index:
        assert index.ingest(llamaindex_gemma_embed.passages(nodes())).added == 2
        # Each run draws new node ids; rows are named by their content.
        assert index.ingest(llamaindex_gemma_embed.passages(nodes())).unchanged == 2
        store = ChromaVectorStore(chroma_collection=index.collection)
        retriever = VectorStoreIndex.from_vector_store(store, embed_model=model).as_retriever(
            similarity_top_k=1
        )
        (best,) = retriever.retrieve("When does the train go?")
        assert best.node.metadata["title"] == "Travel"
        assert best.node.get_content() == "The train to Lyon leaves at nine."
        assert best.node.node_id in index.collection.get()["ids"]


def test_llamaindex_nodes_with_ids_of_their_own(index: ChromaIndex) -> None:
    nodes = [TextNode(text="a", id_="mine")]
    index.ingest(llamaindex_gemma_embed.passages(nodes, ids="node"))
    assert index.collection.get()["ids"] == ["mine"]
    with pytest.raises(ConfigurationError, match="ids"):
        llamaindex_gemma_embed.passages(nodes, ids="uuid")  # type: ignore[arg-type]
