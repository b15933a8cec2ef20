"""Collections in Chroma: opened, in generations, with titles, and in the frameworks."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings
from fakes import FakeRuntime
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.vector_stores.chroma import ChromaVectorStore
from notes import QUIET, current, documents, everything, other

import gemma_embed.chroma
import langchain_gemma_embed
import llamaindex_gemma_embed
from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex, check_collection
from gemma_embed.errors import (
    CollectionMismatch,
    ConfigurationError,
)
from gemma_embed.testing import bundled_runtime
from langchain_gemma_embed import GemmaEmbeddings
from llamaindex_gemma_embed import GemmaEmbedding

pytestmark = pytest.mark.usefixtures("examined_here")


# Opening


def test_a_collection_is_named_after_its_space(index: ChromaIndex) -> None:
    name = f"notes-{index.embedder.fingerprint[:8]}"
    assert index.open().name == index.collection_name == name
    assert index.open().configuration["hnsw"]["space"] == "cosine"


def test_nothing_is_opened_before_it_is_asked_for(
    index: ChromaIndex, fake: FakeRuntime, tmp_path: Path
) -> None:
    for attribute in ("client", "collection_name"):
        with pytest.raises(ConfigurationError, match=r"open\(\) first"):
            getattr(index, attribute)
    assert not list(tmp_path.iterdir())
    assert fake.calls == 0


def test_a_framework_cannot_create_a_collection_of_another_space(
    fake: FakeRuntime, tmp_path: Path
) -> None:
    client = chromadb.PersistentClient(str(tmp_path / "db"), QUIET)
    embeddings = GemmaEmbeddings(fake)
    index = ChromaIndex(client, "planets", embeddings)
    # Of the name alone LangChain makes a collection in another space, which stays its own.
    Chroma("planets", embeddings, client=client).add_texts(["theirs"])
    index.open()
    store = Chroma(index.collection_name, embeddings, client=index.client)
    store.add_texts(["ours"])
    assert index.namespace().endswith(embeddings.embedder.fingerprint)
    assert index.open().get()["documents"] == ["ours"]
    assert index.check() == 1


def test_the_default_store_lies_beside_the_folder(
    fake: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = chromadb.PersistentClient(str(tmp_path / "db"), QUIET)
    for location in (tmp_path / "db", str(tmp_path / "db"), client):
        store = ChromaIndex(location, "notes", Embedder(fake)).embedder.store
        assert store is not None
        assert store.path == tmp_path / "db.embeddings.sqlite"
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    store = ChromaIndex(".", "notes", Embedder(fake)).embedder.store
    assert store is not None
    assert store.path == tmp_path / "work.embeddings.sqlite"


def test_a_home_folder_is_expanded(
    fake: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with ChromaIndex("~/db", "notes", Embedder(fake)) as index:
        assert index.ingest(documents(1)).added == 1
    assert (tmp_path / "db" / "chroma.sqlite3").exists()
    assert (tmp_path / "db.embeddings.sqlite").exists()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("db", "notes", None), {}, "the embedder is NoneType"),
        (("db", "notes", DeterministicFakeEmbedding(size=8)), {}, "DeterministicFakeEmbedding"),
        (("db", "", FakeRuntime()), {}, "name ''"),
        (("db", 5, FakeRuntime()), {}, "name 5"),
        ((None, "notes", FakeRuntime()), {}, "location is NoneType"),
        (("db", "notes", FakeRuntime()), {"title_key": ""}, "title_key=''"),
        (("db", "notes", FakeRuntime()), {"hnsw": {"space": 1}}, "cosine"),
    ],
)
def test_options_are_checked_before_any_use(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    location, name, given = arguments
    embedder = Embedder(given) if isinstance(given, FakeRuntime) else given
    with pytest.raises(ConfigurationError, match=message):
        ChromaIndex(location, name, embedder, **options)


def test_a_folder_open_with_other_settings(fake: FakeRuntime, tmp_path: Path) -> None:
    with (
        chromadb.PersistentClient(str(tmp_path), Settings(allow_reset=True)),
        pytest.raises(ConfigurationError, match="client in place of the folder"),
    ):
        ChromaIndex(tmp_path, "notes", Embedder(fake)).open()


def test_a_name_that_chroma_does_not_take(fake: FakeRuntime, tmp_path: Path) -> None:
    with (
        ChromaIndex(tmp_path, "my notes", Embedder(fake)) as index,
        pytest.raises(ConfigurationError, match="'my notes-"),
    ):
        index.ingest(documents(1))


def test_an_index_in_memory_needs_a_store(fake: FakeRuntime, tmp_path: Path) -> None:
    client = chromadb.EphemeralClient(QUIET)
    with pytest.raises(ConfigurationError, match="store"):
        ChromaIndex(client, "notes", Embedder(fake))
    index = ChromaIndex(client, "in-memory", Embedder(fake, store=tmp_path / "s"))
    assert index.ingest(documents(4)).added == 4
    assert index.check() == 4
    assert index.recreate(documents(4)).added == 4
    index.drop(index.collection_name, current=True)


# Generations


def test_another_width_is_another_collection_and_costs_no_call(
    index: ChromaIndex, fake: FakeRuntime
) -> None:
    index.ingest(documents())
    before = everything(index)
    fake.texts.clear()
    narrow = other(index, dimensions=128)
    assert narrow.ingest(documents()).added == 60
    # The fixed sentence of the passport.
    assert len(set(fake.texts)) == 1
    assert narrow.check() == 60
    assert len(narrow.open().get(include=["embeddings"])["embeddings"][0]) == 128
    assert everything(index) == before
    assert index.check() == 60


def test_the_old_one_serves_until_it_is_dropped(index: ChromaIndex) -> None:
    index.ingest(documents(40))
    search = Chroma(
        client=index.client,
        collection_name=index.collection_name,
        embedding_function=GemmaEmbeddings(index.embedder.runtime),
    )

    class New(FakeRuntime):
        @property
        def identity(self) -> Any:
            return replace(super().identity, revision="2")

    new = ChromaIndex(index.client, "notes", Embedder(New(), store=index.embedder.store))

    def searching() -> Iterator[dict[str, Any]]:
        for row in documents(40):
            assert search.similarity_search("text 4", k=1)
            yield row

    assert new.ingest(searching(), batch_size=10).added == 40
    assert [(each.rows, each.current) for each in index.generations()].count((40, True)) == 1
    listed = {each.name: each for each in new.generations()}
    assert set(listed) == {index.collection_name, new.collection_name}
    assert listed[new.collection_name].current
    assert not listed[index.collection_name].current
    assert listed[new.collection_name].facts["revision"] == "2"
    assert listed[index.collection_name].facts["revision"] == "1"
    assert {each.rows for each in listed.values()} == {40}
    assert all("probe" not in each.facts for each in listed.values())
    new.drop(index.collection_name)
    assert [each.name for each in new.generations()] == [new.collection_name]
    assert new.check() == 40


def test_a_deleted_collection_leaves_no_vectors_on_the_disk(
    fake: FakeRuntime, tmp_path: Path
) -> None:
    folder, hnsw = tmp_path / "db", {"sync_threshold": 50, "batch_size": 50}

    def size() -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    with ChromaIndex(folder, "notes", Embedder(fake), hnsw=hnsw) as index:
        index.ingest(documents(120))
        embedder = index.embedder.replaced(dimensions=128)
        narrow = ChromaIndex(index.client, "notes", embedder, hnsw=hnsw)
        narrow.ingest(documents(60))
        before = size()
        assert len(list(folder.glob("*/data_level0.bin"))) == 2
        kept = narrow.open().get(include=["embeddings"])["embeddings"]
        for _ in range(3):
            index.recreate(documents(120))
        assert size() < 1.2 * before
        index.drop(index.collection_name, current=True)
    # Of the other generation all files stay, also after the client is closed.
    assert len(list(folder.glob("*/data_level0.bin"))) == 1
    with ChromaIndex(folder, "notes", embedder) as opened:
        np.testing.assert_array_equal(opened.open().get(include=["embeddings"])["embeddings"], kept)
        assert opened.check() == 60


def test_nothing_outside_the_folder_is_deleted(
    fake: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = tmp_path / "others"
    others.mkdir()
    with ChromaIndex(tmp_path / "db", "notes", Embedder(fake)) as index:
        index.ingest(documents(2))
        # As the database of a stranger might have it. Chroma 1.5 takes no such name, another might.
        with closing(sqlite3.connect(tmp_path / "db" / "chroma.sqlite3")) as database, database:
            database.execute("UPDATE segments SET id = '../others' WHERE scope = 'VECTOR'")
        monkeypatch.setattr(index.client, "delete_collection", lambda _: None)
        index.drop(index.collection_name, current=True)
    assert others.is_dir()


def test_only_generations_are_dropped(index: ChromaIndex) -> None:
    index.ingest(documents(2))
    index.client.create_collection("notes-abcdef01", embedding_function=None)
    index.client.create_collection("other", embedding_function=None)
    assert [each.name for each in index.generations()] == [index.collection_name]
    for name in ("notes-abcdef01", "other", "notes", "nothing"):
        with pytest.raises(ConfigurationError, match="not a generation"):
            index.drop(name)
    with pytest.raises(ConfigurationError, match="current=True"):
        index.drop(index.collection_name)
    index.drop(index.collection_name, current=True)
    assert index.generations() == []
    assert len(index.client.list_collections()) == 2
    assert index.ingest(documents(2)).added == 2


def test_names_that_begin_alike_are_apart(index: ChromaIndex, tmp_path: Path) -> None:
    longer = ChromaIndex(tmp_path / "db", "notes-old", index.embedder)
    with longer:
        longer.ingest(documents(3))
        index.ingest(documents(2))
        assert [each.rows for each in index.generations()] == [2]
        assert [each.rows for each in longer.generations()] == [3]


def test_the_example_in_the_docstring_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", gemma_embed.chroma.__doc__ or "", re.DOTALL)
    assert len(code) == 1
    notes = [
        {"text": "Bake the loaf at 230 degrees for half an hour."},
        {"text": "The train to Lyon leaves at nine."},
    ]
    names: dict[str, Any] = {"ChromaIndex": ChromaIndex, "Embedder": Embedder, "notes": notes}
    exec(code[0], names)
    assert names["answers"]["documents"][0][0].startswith("Bake")
    assert [each.current for each in names["new"].generations()] == [True]
    names["new"].close()
    names["old"].close()


def test_metadata_and_settings_of_a_new_collection(fake: FakeRuntime, tmp_path: Path) -> None:
    hnsw = {"ef_search": 333, "max_neighbors": 24}
    with ChromaIndex(tmp_path, "notes", Embedder(fake), hnsw=hnsw) as index:
        settings = index.open().configuration["hnsw"]
        assert (settings["ef_search"], settings["max_neighbors"]) == (333, 24)
        assert settings["space"] == "cosine"


def test_an_ingestion_that_is_refused_leaves_no_word_of_damage(
    fake: FakeRuntime, tmp_path: Path
) -> None:
    embedder, rows = Embedder(fake), [{"text": "one"}]
    with ChromaIndex(tmp_path, "notes", embedder) as first:
        first.ingest(rows)
    other = ChromaIndex(tmp_path, "notes", embedder, title_key="file_name")
    with other, pytest.raises(CollectionMismatch):
        other.ingest(rows)

    def fails() -> Iterator[dict[str, str]]:
        raise ValueError("unreadable")
        yield {}

    stopped = ChromaIndex(tmp_path, "notes", embedder)
    with stopped, pytest.raises(ValueError, match="unreadable"):
        stopped.ingest(fails())
    with ChromaIndex(tmp_path, "notes", embedder) as again:
        assert again.ingest(rows).unchanged == 1
        assert again.check() == 1


def test_settings_of_a_collection_that_exists_are_not_ignored(
    fake: FakeRuntime, tmp_path: Path
) -> None:
    with ChromaIndex(tmp_path, "notes", Embedder(fake)) as first:
        first.ingest([{"text": "one"}])
    embedder = Embedder(fake)
    with ChromaIndex(tmp_path, "notes", embedder, hnsw={"ef_search": 400}) as other:
        for use in (other.open, lambda: other.ingest([{"text": "two"}])):
            with pytest.raises(CollectionMismatch, match=r"'ef_search': 100.*400.*leave hnsw out"):
                use()
    with ChromaIndex(tmp_path, "notes", embedder) as changed:
        changed.open().modify(configuration={"hnsw": {"ef_search": 400}})
    with ChromaIndex(tmp_path, "notes", embedder, hnsw={"ef_search": 400}) as same:
        assert same.open().configuration["hnsw"]["ef_search"] == 400
    with ChromaIndex(tmp_path, "notes", embedder, hnsw={"max_neighbors": 24}) as new:
        new.recreate([{"text": "one"}])
        assert new.open().configuration["hnsw"]["max_neighbors"] == 24


# Titles


def test_the_collection_remembers_where_titles_come_from(fake: FakeRuntime, tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "metadata": {"file_name": f"F{n}"}} for n in range(5)]
    with ChromaIndex(tmp_path, "notes", Embedder(fake), title_key="file_name") as first:
        first.ingest(rows)
        assert gemma_embed.chroma.title_key_of(first.open().metadata) == "file_name"
    fake.texts.clear()
    with ChromaIndex(tmp_path, "notes", Embedder(fake)) as again:
        assert again.ingest(rows).unchanged == 5
        assert again.check() == 5
        assert not [text for text in fake.texts if "text: text" in text]
        # For a generation of its own as well as for one that is recreated.
        assert again.recreate(rows).added == 5
        assert gemma_embed.chroma.title_key_of(again.open().metadata) == "file_name"
    with ChromaIndex(tmp_path, "notes", Embedder(fake), title_key="title") as wrong:
        for act in (wrong.open, lambda: wrong.ingest(rows)):
            with pytest.raises(CollectionMismatch, match=r"'file_name'.*title_key='title'"):
                act()
        assert wrong.recreate(rows).added == 5
        assert gemma_embed.chroma.title_key_of(wrong.open().metadata) == "title"


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
        store = Chroma(index.collection_name, embeddings, client=index.client)
        (best,) = store.similarity_search("When does the train go?", k=1)
        assert best.metadata["title"] == "Travel"
        # Opening by LangChain's class leaves the passport where it is.
        check_collection(current(index), embeddings)


def test_llamaindex_nodes(tmp_path: Path) -> None:
    model = GemmaEmbedding(bundled_runtime(), dimensions=256)
    nodes = [
        TextNode(text="Bake the loaf at 230 degrees for half an hour.", metadata={"n": 1}),
        TextNode(text="The train to Lyon leaves at nine.", metadata={"title": "Travel"}),
    ]
    with ChromaIndex(tmp_path, "notes", model) as index:
        assert index.ingest(llamaindex_gemma_embed.passages(nodes)).added == 2
        assert index.ingest(llamaindex_gemma_embed.passages(nodes)).unchanged == 2
        store = ChromaVectorStore(chroma_collection=index.open())
        retriever = VectorStoreIndex.from_vector_store(store, embed_model=model).as_retriever(
            similarity_top_k=1
        )
        (best,) = retriever.retrieve("When does the train go?")
        assert best.node.metadata["title"] == "Travel"
        assert best.node.get_content() == "The train to Lyon leaves at nine."
        assert best.node.node_id == nodes[1].node_id


def test_llamaindex_nodes_with_ids_of_their_own(index: ChromaIndex) -> None:
    nodes = [TextNode(text="a", id_="mine")]
    index.ingest(llamaindex_gemma_embed.passages(nodes, ids="node"))
    assert index.open().get()["ids"] == ["mine"]
    with pytest.raises(ConfigurationError, match="ids"):
        llamaindex_gemma_embed.passages(nodes, ids="uuid")  # type: ignore[arg-type]
