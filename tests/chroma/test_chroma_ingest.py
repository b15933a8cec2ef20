"""What an ingestion refuses, keeps, and finds out about rows that others wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from notes import documents, everything

from gemma_embed import Embedder, EmbeddingStore
from gemma_embed.chroma import ChromaIndex, Passage
from gemma_embed.errors import CollectionDamaged, InvalidInput
from langchain_gemma_embed import GemmaEmbeddings, passages


@pytest.fixture
def index(fake: FakeRuntime, tmp_path: Path) -> Iterator[ChromaIndex]:
    with ChromaIndex(tmp_path / "db", "notes", Embedder(fake)) as opened:
        yield opened


# Vectors that are other texts'


def another_unit_vector(index: ChromaIndex) -> None:
    index.collection.update(ids=["id 4"], embeddings=np.array([vector_of("something else")]))


def another_models_upsert(index: ChromaIndex) -> None:
    class Other(FakeRuntime):
        def embed(self, texts: Any, *, truncate: bool = False) -> Any:
            for batch in super().embed(texts, truncate=truncate):
                yield replace(batch, vectors=np.roll(batch.vectors, 1, axis=1))

    # Chroma joins metadata, so the row keeps the digest that says that it is as it should be.
    Chroma("notes", GemmaEmbeddings(Other()), client=index.client).add_documents(
        [Document("text 4", id="id 4", metadata={"n": 4, "title": "T4"})]
    )


@pytest.mark.parametrize("harm", [another_unit_vector, another_models_upsert])
def test_a_row_with_anothers_vector_is_found_and_written_again(
    index: ChromaIndex, fake: FakeRuntime, harm: Callable[[ChromaIndex], None]
) -> None:
    index.ingest(documents())
    before = everything(index)
    harm(index)
    after = everything(index)
    assert after["id 4"][:2] == before["id 4"][:2]
    assert after["id 4"][2] != before["id 4"][2]
    fake.texts.clear()
    with pytest.raises(CollectionDamaged, match=r"1 of 60 rows.*other vectors.*'id 4'"):
        index.check()
    assert not fake.texts
    report = index.ingest(documents())
    assert (report.added, report.updated, report.unchanged) == (0, 1, 59)
    assert everything(index) == before
    assert index.check() == 60
    # The fixed sentences of the passport.
    assert len(set(fake.texts)) == 1


@pytest.mark.parametrize(
    "options",
    [{"dimensions": 128}, {"document_task": "clustering"}, {"overlong": "split"}],
)
def test_vectors_are_compared_as_they_were_made(
    fake: FakeRuntime, tmp_path: Path, options: dict[str, Any]
) -> None:
    with ChromaIndex(tmp_path, "notes", Embedder(fake, **options)) as index:
        index.ingest(documents())
        assert index.check() == 60
        index.collection.update(
            ids=["id 4"], embeddings=index.embedder.replaced(store=None).embed(["other"])
        )
        with pytest.raises(CollectionDamaged, match="'id 4'"):
            index.check()
        assert index.ingest(documents()).updated == 1


def test_what_the_store_lacks_is_not_judged(index: ChromaIndex, fake: FakeRuntime) -> None:
    index.ingest(documents())
    store = index.embedder.store
    assert isinstance(store, EmbeddingStore)
    store.clear()
    calls = fake.calls
    assert index.check() == 60
    assert fake.calls == calls
    assert index.ingest(documents()).unchanged == 60


# Clients of the user's


@pytest.mark.parametrize("handed_over", [False, True])
def test_a_vector_store_outlives_a_check(
    fake: FakeRuntime, tmp_path: Path, handed_over: bool
) -> None:
    embeddings = GemmaEmbeddings(fake, store=tmp_path / "s")
    place: Any = tmp_path / "db"
    if handed_over:
        place = chromadb.PersistentClient(str(place), Settings(anonymized_telemetry=False))
    index = ChromaIndex(place, "notes", embeddings)
    index.ingest(documents())
    search = Chroma("notes", embeddings, client=index.client)
    assert index.check() == 60
    (found,) = search.similarity_search("text 4", k=1)
    assert found.id
    search.add_texts(["late"], ids=["late"])
    assert index.check() == 61
    assert search.get(ids=["late"])["documents"] == ["late"]
    index.client.close()  # type: ignore[attr-defined]


def test_a_client_that_was_handed_over_is_not_risked(fake: FakeRuntime, tmp_path: Path) -> None:
    client = chromadb.PersistentClient(str(tmp_path / "db"), Settings(anonymized_telemetry=False))
    embedder = Embedder(fake, store=tmp_path / "s")
    index = ChromaIndex(client, "notes", embedder, hnsw={"sync_threshold": 100})
    index.ingest(documents(450), batch_size=75)
    # What the process holds in memory is whole; the next one's would not be.
    for path in (tmp_path / "db").glob("*/*.bin"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(CollectionDamaged, match=r"rebuild\(\)"):
        index.check()
    assert index.rebuild() == 450
    assert index.check() == 450
    client.close()


# What is refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"metadata": {"a": "\ud800"}}, "metadata 'a' has a lone surrogate"),
        ({"metadata": {"a": ["x", "\ud800"]}}, "metadata 'a' has a lone surrogate"),
        ({"metadata": {"\ud800": 1}}, "a metadata key has a lone surrogate"),
        ({"extra": {"a": "\ud800"}}, "metadata 'a' has a lone surrogate"),
        ({"id": "\ud800"}, "the id has a lone surrogate"),
        ({"metadata": {"a": [1, "x"]}}, "a list of one of these kinds"),
        ({"metadata": {"a": [1, 1.5]}}, "a list of one of these kinds"),
        ({"metadata": {"a": [True, 1]}}, "a list of one of these kinds"),
        ({"metadata": {"a": [None]}}, "a list of one of these kinds"),
        ({"metadata": {"a": []}}, "a list of one of these kinds"),
        ({"metadata": {"chroma:document": "x"}}, "'chroma:document' is reserved"),
        ({"metadata": {"#document": "x"}}, "'#document' is reserved"),
        ({"metadata": {"$and": 1}}, "reserved"),
        ({"metadata": {"": 1}}, "reserved or not a non-empty str"),
        ({"metadata": {5: 1}}, "reserved or not a non-empty str"),
        ({"metadata": {"a": float("nan")}}, "'a' is not a finite number"),
        ({"metadata": {"a": [float("inf")]}}, "'a' is not a finite number"),
        ({"metadata": {"a": 2**63}}, "'a' does not fit in 64 bits"),
    ],
)
def test_wrong_parts_are_named_before_the_model_works(
    index: ChromaIndex, fake: FakeRuntime, wrong: dict[str, Any], message: str
) -> None:
    _ = index.collection
    calls = fake.calls
    with pytest.raises(InvalidInput, match=message) as caught:
        index.ingest(iter([{"text": "secret", **wrong}]))
    assert caught.value.index == 0
    assert "secret" not in str(caught.value)
    # The fixed sentence.
    assert fake.calls == calls + 1


def test_metadata_at_the_limits_is_kept(index: ChromaIndex) -> None:
    metadata = {"least": -(2**63), "most": 2**63 - 1, "list": [True, False], "text": "\0 \u00fc"}
    index.ingest([{"text": "x", "id": "x", "metadata": metadata}])
    (held,) = index.collection.get()["metadatas"] or []
    assert {name: held[name] for name in metadata} == metadata


@pytest.mark.parametrize("wrong", [{"text": 5}, {"text": "x", "metadata": {"a": "\ud800"}}])
@pytest.mark.parametrize(("count", "batch_size"), [(35, 10), (30, 256), (30, 10), (0, 10)])
def test_all_before_a_wrong_passage_are_kept(
    index: ChromaIndex, wrong: dict[str, Any], count: int, batch_size: int
) -> None:
    with pytest.raises(InvalidInput) as caught:
        index.ingest([*documents(count), wrong, *documents(50)[count:]], batch_size=batch_size)
    assert caught.value.index == count
    assert index.collection.count() == count


def test_all_before_a_failure_of_the_source_are_kept(index: ChromaIndex) -> None:
    def source() -> Iterator[dict[str, Any]]:
        yield from documents(35)
        raise ConnectionError("the source is gone")

    with pytest.raises(ConnectionError):
        index.ingest(source(), batch_size=10)
    assert index.collection.count() == 35


def test_an_exhausted_generator_empties_nothing(index: ChromaIndex) -> None:
    rows = iter(documents(5))
    index.ingest(rows)
    with pytest.raises(InvalidInput, match=r"not one passage.*delete_collection\('notes'\)"):
        index.ingest(rows, remove_absent=True)
    assert index.collection.count() == 5
    index.client.delete_collection("notes")
    assert index.ingest([], remove_absent=True).removed == 0
    assert index.collection.count() == 0


# What was retrieved


@pytest.mark.parametrize("ids", [False, True])
def test_retrieved_documents_are_the_same_passages(
    fake: FakeRuntime, tmp_path: Path, ids: bool
) -> None:
    embeddings = GemmaEmbeddings(fake)
    with ChromaIndex(tmp_path, "notes", embeddings) as index:
        first = [Document(f"text {n}", metadata={"n": n, "title": f"T{n}"}) for n in range(5)]
        index.ingest(passages(first))
        found = Chroma("notes", embeddings, client=index.client).similarity_search("x", k=5)
        assert all("gemma_embed.digest" in each.metadata for each in found)
        again = [each if ids else each.model_copy(update={"id": None}) for each in found]
        assert index.ingest(passages(again)).unchanged == 5
        assert index.collection.count() == 5


def test_a_passage_of_ones_own_is_not_changed(index: ChromaIndex) -> None:
    metadata = {"gemma_embed.digest": "x", "n": 1, "none": None}
    assert index.ingest([Passage("x", "x", metadata)]).added == 1
    assert metadata == {"gemma_embed.digest": "x", "n": 1, "none": None}
    assert index.ingest([Passage("x", "x", {"n": 1})]).unchanged == 1
