"""What an ingestion writes, replaces, refuses and finds out about rows that others wrote."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from chromadb.errors import InternalError, NotFoundError
from fakes import FakeRuntime, vector_of
from langchain_chroma import Chroma
from langchain_core.documents import Document
from llama_index.core.schema import TextNode
from notes import current, documents, everything

from gemma_embed import Embedder, EmbeddingStore
from gemma_embed.chroma import ChromaIndex, Passage, embedded_parts
from gemma_embed.chroma import ingestion as ingestion_module
from gemma_embed.chroma import stored as stored_module
from gemma_embed.errors import (
    BadResponse,
    CollectionDamaged,
    CollectionIncomplete,
    ConfigurationError,
    ConnectionFailed,
    EmbeddingError,
    InputTooLong,
    InvalidInput,
    OutOfMemory,
    ServerFailed,
    ServerRefused,
    StoreError,
)
from gemma_embed.runtimes import TooLong
from langchain_gemma_embed import GemmaEmbeddings, passages

pytestmark = pytest.mark.usefixtures("examined_here")


@pytest.fixture
def index(fake: FakeRuntime, tmp_path: Path) -> Iterator[ChromaIndex]:
    with ChromaIndex(tmp_path / "db", "notes", Embedder(fake)) as opened:
        yield opened


def texts_of(index: ChromaIndex) -> list[str]:
    return sorted(current(index).get()["documents"])


# Rows


def test_rows_hold_text_title_and_metadata(index: ChromaIndex) -> None:
    report = index.ingest(documents(5))
    assert (report.added, report.unchanged, report.missing, report.failed) == (5, 0, (), ())
    got = current(index).get(ids=["id 3"], include=["documents", "metadatas", "embeddings"])
    assert got["documents"] == ["text 3"]
    assert got["metadatas"][0]["n"] == 3
    np.testing.assert_allclose(
        got["embeddings"][0], vector_of("title: T3 | text: text 3"), atol=1e-6
    )


def test_a_second_run_does_nothing(index: ChromaIndex, fake: FakeRuntime) -> None:
    index.ingest(documents())
    before = len(fake.texts)
    report = index.ingest(documents())
    assert (report.added, report.unchanged, report.updated, report.removed) == (0, 60, 0, 0)
    # The fixed sentence that shows whose vectors they are.
    assert len(fake.texts) == before + 1


def test_changes_are_found_in_the_collection_itself(index: ChromaIndex, fake: FakeRuntime) -> None:
    index.ingest(documents())
    held = current(index)
    held.delete(ids=["id 7"])
    held.update(ids=["id 8"], documents=["tampered"], embeddings=[[1.0] * 768])
    changed = documents()
    changed[9]["text"] = "new text"
    changed[10]["metadata"]["title"] = "new title"
    fake.texts.clear()
    report = index.ingest(changed)
    assert (report.added, report.updated, report.unchanged) == (1, 3, 56)
    assert {"title: T9 | text: new text", "title: new title | text: text 10"} < set(fake.texts)
    got = held.get(ids=["id 8"], include=["documents", "embeddings"])
    assert got["documents"] == ["text 8"]
    np.testing.assert_allclose(
        got["embeddings"][0], vector_of("title: T8 | text: text 8"), atol=1e-6
    )


def test_metadata_that_changed_is_written_without_the_model(
    index: ChromaIndex, fake: FakeRuntime
) -> None:
    rows = documents(20)
    index.ingest([Passage(**row, extra={"node": "first"}) for row in rows])
    vectors = {row: vector for row, (_, _, vector) in everything(index).items()}
    fake.texts.clear()
    rows[3]["metadata"]["n"] = 33
    again = [Passage(**row, extra={"node": "first"}) for row in rows]
    again[4] = replace(again[4], extra={"node": "second"})
    report = index.ingest(again)
    assert (report.added, report.updated, report.unchanged) == (0, 2, 18)
    assert len(set(fake.texts)) == 1
    held = current(index).get(ids=["id 3", "id 4"])["metadatas"]
    assert (held[0]["n"], held[1]["node"]) == (33, "second")
    assert {row: vector for row, (_, _, vector) in everything(index).items()} == vectors


@pytest.mark.parametrize(("before", "after"), [(1, True), (1, 1.0), (0.5, "0.5"), ([1], [True])])
def test_a_kind_that_changed_is_a_change(index: ChromaIndex, before: Any, after: Any) -> None:
    index.ingest([{"text": "x", "id": "x", "metadata": {"a": before}}])
    report = index.ingest([{"text": "x", "id": "x", "metadata": {"a": after}}])
    assert report.updated == 1
    held = current(index).get()["metadatas"][0]["a"]
    assert (held, type(held)) == (after, type(after))


def test_metadata_that_went_is_gone(index: ChromaIndex, fake: FakeRuntime) -> None:
    rows = documents(2)
    rows[0]["metadata"] |= {"old": 1, "list": ["a", "b"]}
    index.ingest(rows)
    fake.texts.clear()
    assert index.ingest(documents(2)).updated == 1
    assert len(set(fake.texts)) == 1
    (metadata,) = current(index).get(ids=["id 0"])["metadatas"]
    assert set(metadata) == {"n", "title", "gemma_embed.document", "gemma_embed.title"}


def test_absent_rows_go_only_on_request(index: ChromaIndex) -> None:
    index.ingest(documents(20))
    report = index.ingest(documents(15))
    assert (report.removed, report.absent) == (0, 5)
    assert current(index).count() == 20
    report = index.ingest(documents(15), remove_absent=True)
    assert (report.removed, report.absent) == (5, 0)
    assert sorted(current(index).get()["ids"]) == sorted(f"id {i}" for i in range(15))


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
    index.ingest(documents(40), batch_size=32, progress=progress)
    assert seen[-2:] == [(32, 40), (40, 40)]


def test_progress_may_be_a_bar(index: ChromaIndex, capsys: pytest.CaptureFixture[str]) -> None:
    index.ingest(documents(5), progress=True)
    assert "5/5" in capsys.readouterr().err


# Documents


def file(name: str, *texts: str, **metadata: Any) -> list[dict[str, Any]]:
    return [{"text": text, "metadata": {"source": name, **metadata}} for text in texts]


def test_an_edited_document_leaves_no_double_and_no_old_text(
    index: ChromaIndex, fake: FakeRuntime
) -> None:
    door = "The door code is {}."
    notes = file("a.md", *(f"passage {n}" for n in range(36)), size=100, date="2024-01-01")
    index.ingest([*notes, *file("door.md", door.format(1234), date="2024-01-01")])
    fake.texts.clear()
    # One passage more, and size and date of the file with it.
    notes = file("a.md", *(f"passage {n}" for n in range(37)), size=120, date="2024-02-02")
    report = index.ingest([*notes, *file("door.md", door.format(9876), date="2024-02-02")])
    assert (report.added, report.updated, report.unchanged, report.removed) == (2, 36, 0, 1)
    assert len([text for text in fake.texts if "passage" in text]) == 1
    held = texts_of(index)
    assert len(held) == len(set(held)) == 38
    assert [text for text in held if "door" in text] == [door.format(9876)]
    # The date alone: nothing is embedded, nothing is doubled.
    fake.texts.clear()
    report = index.ingest(file("door.md", door.format(9876), date="2024-03-03"))
    assert (report.added, report.updated, report.removed, report.absent) == (0, 1, 0, 37)
    assert len(set(fake.texts)) == 1
    assert texts_of(index) == held


def test_other_documents_stay(index: ChromaIndex) -> None:
    index.ingest([*file("a.md", "a1", "a2"), *file("b.md", "b1")])
    report = index.ingest(file("a.md", "a2", "a3"))
    assert (report.added, report.unchanged, report.removed, report.absent) == (1, 1, 1, 1)
    assert texts_of(index) == ["a2", "a3", "b1"]


def test_passages_of_a_document_may_come_apart(index: ChromaIndex) -> None:
    first = [*file("a.md", "a1"), *file("b.md", "b1"), *file("a.md", "a2"), *file("b.md", "b2")]
    index.ingest(first, batch_size=1)
    assert index.ingest(first, batch_size=1).unchanged == 4
    assert index.ingest(reversed(first), batch_size=3).unchanged == 4
    assert index.ingest([first[0], first[3]], batch_size=1).removed == 2
    assert texts_of(index) == ["a1", "b2"]


def test_two_documents_with_an_equal_passage_are_two_rows(
    index: ChromaIndex, fake: FakeRuntime
) -> None:
    report = index.ingest([*file("a.md", "same", "a"), *file("b.md", "same")])
    assert report.added == 3
    assert fake.texts.count("title: none | text: same") == 1
    assert index.ingest(file("a.md", "a")).removed == 1
    assert texts_of(index) == ["a", "same"]
    assert index.check() == 2


def test_a_text_may_come_twice_in_a_document(index: ChromaIndex) -> None:
    rows = [*file("a.md", "***", page=1), *file("a.md", "x", page=2), *file("a.md", "***", page=3)]
    assert index.ingest(rows).added == 3
    assert index.ingest(rows).unchanged == 3
    assert index.ingest(rows[:2]).removed == 1
    assert texts_of(index) == ["***", "x"]


def test_a_document_is_named_by_its_field_first(index: ChromaIndex) -> None:
    metadata = {"source": "s", "file_path": "f"}
    rows = [
        Passage("1", document="d", metadata=metadata),
        Passage("2", metadata=metadata),
        Passage("3", metadata={"file_path": "f"}),
        Passage("4", metadata={"source": 7}),
        Passage("5", metadata={"page": 1}),
    ]
    index.ingest(rows)
    got = current(index).get()
    named = dict(zip(got["documents"], got["metadatas"], strict=True))
    assert [named[text]["gemma_embed.document"] for text in "12345"] == ["d", "s", "f", "7", ""]
    assert index.ingest([Passage("new", document="d")]).removed == 1


def test_passages_without_a_document_are_told_apart_by_what_they_hold(index: ChromaIndex) -> None:
    texts = [{"text": "a"}, {"text": "b"}, {"text": "a"}, Passage("a", metadata={"n": 1})]
    assert index.ingest(texts).added == 3
    assert index.ingest(texts).unchanged == 3
    # None of them replaces another one.
    assert index.ingest([{"text": "c"}]).removed == 0
    assert texts_of(index) == ["a", "a", "b", "c"]


def test_passages_without_a_document_stay_whichever_call_brings_them(index: ChromaIndex) -> None:
    said = [Passage("Yes.", metadata={"author": each}) for each in ("Ann", "Bob")]
    for each in said:
        assert index.ingest([each]).added == 1
    assert index.ingest(said).unchanged == 2
    assert index.ingest(reversed(said)).unchanged == 2
    # What a framework draws again at each run does not make another passage.
    assert index.ingest([replace(said[0], extra={"node": "new"})]).updated == 1
    assert texts_of(index) == ["Yes.", "Yes."]


@pytest.mark.parametrize("document", ["B", None])
def test_an_id_takes_no_row_from_another_document(index: ChromaIndex, document: str | None) -> None:
    index.ingest([Passage("A1", "1", "A"), Passage("A2", "2", "A")])
    theirs = [Passage("B1", "1", document), Passage("B3", "3", document)]
    report = index.ingest(theirs)
    (failure,) = report.failed
    assert (report.added, report.updated, failure.index) == (1, 0, 0)
    assert "'1' belongs to the document 'A'" in failure.reason
    assert texts_of(index) == ["A1", "A2", "B3"]
    with pytest.raises(InvalidInput, match="belongs to the document 'A'"):
        index.ingest(theirs, on_error="raise")
    # Documents that are replaced, or go, give their ids away.
    assert index.ingest([Passage("A2", "2", "A"), *theirs]).updated == 1
    assert texts_of(index) == ["A2", "B1", "B3"]
    report = index.ingest([Passage("C", "2", "C")], remove_absent=True)
    assert (report.failed, texts_of(index)) == ((), ["C"])


def test_an_id_of_ones_own_keeps_its_row(index: ChromaIndex) -> None:
    index.ingest([Passage("old", "mine", "d"), Passage("b", "other", "d")])
    report = index.ingest([Passage("new", "mine", "d")])
    assert (report.updated, report.removed) == (1, 1)
    assert current(index).get()["ids"] == ["mine"]
    assert texts_of(index) == ["new"]


def test_many_documents_are_replaced_together(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_module, "_DOCUMENTS", 7)
    monkeypatch.setattr(stored_module, "PAGE", 5)
    monkeypatch.setattr(ingestion_module, "PAGE", 5)
    names = [f"{n}.md" for n in range(30)]
    index.ingest([row for name in names for row in file(name, f"old {name}", f"same {name}")])
    again = [row for name in names for row in file(name, f"same {name}")]
    report = index.ingest(again)
    assert (report.unchanged, report.removed, report.absent) == (30, 30, 0)
    report = index.ingest(again[:20], remove_absent=True)
    assert (report.unchanged, report.removed, report.absent) == (20, 10, 0)


# Vectors that are other texts'


def another_unit_vector(index: ChromaIndex) -> None:
    current(index).update(ids=["id 4"], embeddings=np.array([vector_of("something else")]))


def another_models_upsert(index: ChromaIndex) -> None:
    class Other(FakeRuntime):
        def embed(self, texts: Any, *, truncate: bool = False) -> Any:
            for batch in super().embed(texts, truncate=truncate):
                yield replace(batch, vectors=np.roll(batch.vectors, 1, axis=1))

    # Chroma joins metadata, so the row keeps what says that it is as it should be.
    Chroma(index.collection_name, GemmaEmbeddings(Other()), client=index.client).add_documents(
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
        current(index).update(
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


def test_rows_of_others_are_not_judged_by_another_form(
    index: ChromaIndex, fake: FakeRuntime
) -> None:
    index.ingest(documents(3))
    # The store has both forms, and the row was embedded in the one that is not its text.
    embeddings = GemmaEmbeddings(fake, store=index.embedder.store)
    embeddings.embed_documents(["bare", "n: 1\n\nbare"])
    current(index).add(
        ids=["node"],
        documents=["bare"],
        embeddings=[vector_of("title: none | text: n: 1\n\nbare")],
        metadatas=[{"n": 1}],
    )
    assert index.check() == 4
    assert index.ingest(documents(3)).absent == 1


def test_a_row_of_others_under_a_passages_id_is_written_again(index: ChromaIndex) -> None:
    index.open()
    # Of the same text, and embedded in another form.
    current(index).add(
        ids=["x"],
        documents=["bare"],
        embeddings=[vector_of("title: none | text: n: 1\n\nbare")],
        metadatas=[{"n": 1}],
    )
    assert index.ingest([{"text": "bare", "id": "x", "metadata": {"n": 1}}]).updated == 1
    (vector,) = current(index).get(include=["embeddings"])["embeddings"]
    np.testing.assert_allclose(vector, vector_of("title: none | text: bare"), atol=1e-6)


# What is refused

WRONG: list[tuple[Any, str]] = [
    ({"id": "x"}, "has no text"),
    ({"text": "x", "page": 3}, "unknown fields"),
    ({"text": None}, "text is NoneType"),
    ({"text": "x", "id": ""}, "id ''"),
    ({"text": "x", "id": 5}, "id 5"),
    ({"text": "x", "document": ""}, "document ''"),
    ({"text": "x", "metadata": ["a"]}, "metadata is list, not a mapping"),
    ({"text": "\ud800"}, "surrogate"),
    ({"text": "other", "id": "id 1"}, "same id"),
    ("text", "expected a Passage"),
    ({"text": "x", "metadata": {"a": "\ud800"}}, "metadata 'a' has a lone surrogate"),
    ({"text": "x", "metadata": {"a": ["x", "\ud800"]}}, "metadata 'a' has a lone surrogate"),
    ({"text": "x", "metadata": {"\ud800": 1}}, "a metadata key has a lone surrogate"),
    ({"text": "x", "extra": {"a": "\ud800"}}, "metadata 'a' has a lone surrogate"),
    ({"text": "x", "id": "\ud800"}, "the id has a lone surrogate"),
    ({"text": "x", "document": "\ud800"}, "the document has a lone surrogate"),
    ({"text": "x", "metadata": {"a": {"b": 1}}}, "'a' is dict; use .*json.dumps"),
    ({"text": "x", "metadata": {"a": [{"b": 1}]}}, "'a' is a list of dict; use"),
    ({"text": "x", "metadata": {"a": [1, "x"]}}, "'a' is a list of int and str; use"),
    ({"text": "x", "metadata": {"a": [1, 1.5]}}, "'a' is a list of float and int; use"),
    ({"text": "x", "metadata": {"a": [True, 1]}}, "'a' is a list of bool and int; use"),
    ({"text": "x", "metadata": {"a": ["a", None]}}, "'a' is a list of NoneType and str; use"),
    ({"text": "x", "metadata": {"a": b"x"}}, "'a' is bytes; use"),
    ({"text": "x", "metadata": {"a": Decimal(1)}}, "'a' is decimal.Decimal; use .*str"),
    ({"text": "x", "metadata": {"a": np.ones(2)}}, "'a' is numpy.ndarray; use"),
    ({"text": "x", "metadata": {"chroma:document": "x"}}, "'chroma:document' is reserved"),
    ({"text": "x", "metadata": {"#document": "x"}}, "'#document' is reserved"),
    ({"text": "x", "metadata": {"$and": 1}}, "reserved"),
    ({"text": "x", "metadata": {"": 1}}, "reserved or not a non-empty str"),
    ({"text": "x", "metadata": {5: 1}}, "reserved or not a non-empty str"),
    ({"text": "x", "metadata": {"a": float("nan")}}, "'a' is not a finite number"),
    ({"text": "x", "metadata": {"a": [float("inf")]}}, "'a' is not a finite number"),
    ({"text": "x", "metadata": {"a": 2**63}}, "'a' does not fit in 64 bits"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaIndex]:
    """An index for refusals, which change nothing."""
    folder = tmp_path_factory.mktemp("shared")
    with ChromaIndex(folder / "db", "notes", Embedder(FakeRuntime())) as opened:
        opened.ingest(documents(30))
        yield opened


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_a_wrong_passage_is_reported_and_stops_nothing(
    shared: ChromaIndex, wrong: Any, message: str
) -> None:
    rows = [*documents(30)[:10], wrong, *documents(30)[10:]]
    report = shared.ingest(rows, batch_size=10)
    assert (report.unchanged, report.added, report.removed) == (30, 0, 0)
    (failure,) = report.failed
    assert failure.index == 10
    assert re.search(message, failure.reason)
    with pytest.raises(InvalidInput, match=message) as caught:
        shared.ingest(rows, on_error="raise")
    assert caught.value.index == 10
    assert str(caught.value) == f"text at index 10: {failure.reason}"


@pytest.mark.parametrize(
    ("names", "source"),
    [
        ({"id": "the id"}, "the id"),
        ({"metadata": {"source": "a.md", "tags": [1, "x"]}, "id": "the id"}, "a.md"),
        ({"metadata": {"file_path": "b.md", "tags": [1, "x"]}}, "b.md"),
        ({"document": "c.md", "metadata": {"source": "a.md", "tags": [1, "x"]}}, "c.md"),
        ({"metadata": {"source": "bad \ud800"}}, "bad ?"),
        ({}, None),
    ],
)
def test_a_failure_names_the_source_and_never_the_text(
    shared: ChromaIndex, names: dict[str, Any], source: str | None
) -> None:
    wrong = {"text": "secret", "extra": {"$and": 1}, **names}
    if "metadata" not in names:
        wrong["metadata"] = {"$and": 1}
    for item in (wrong, Passage(**wrong)):
        (failure,) = shared.ingest([item]).failed
        assert failure.source == source
        assert "secret" not in failure.reason
        with pytest.raises(InvalidInput) as caught:
            shared.ingest([item], on_error="raise")
        assert source is None or source in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.5}, "batch_size must be int, not float"),
        ({"batch_size": True}, "batch_size must be int, not bool"),
        ({"batch_size": "9"}, "batch_size must be int, not str"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"progress": 5}, "progress=5"),
        ({"progress": None}, "progress=None"),
    ],
)
def test_wrong_options_are_refused(
    fake: FakeRuntime, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    index = ChromaIndex(tmp_path / "db", "notes", Embedder(fake))
    with pytest.raises(ConfigurationError, match=message):
        index.ingest([], **options)
    assert not (tmp_path / "db").exists()


@pytest.mark.parametrize("wrong", [None, "abc", b"abc", {"text": "a"}, 5, Passage("a")])
def test_what_is_no_list_of_passages_is_refused(
    fake: FakeRuntime, tmp_path: Path, wrong: Any
) -> None:
    index = ChromaIndex(tmp_path / "db", "notes", Embedder(fake))
    for act in (index.ingest, index.recreate):
        with pytest.raises(InvalidInput, match=f"list of passages, got {type(wrong).__name__}"):
            act(wrong)
    assert not (tmp_path / "db").exists()


@pytest.mark.parametrize("zero", [-0.0, np.float32(-0.0), [-0.0, 1.0]])
def test_a_negative_zero_is_a_zero(index: ChromaIndex, zero: Any) -> None:
    rows = [{"text": "x", "id": "x", "metadata": {"a": zero}}]
    index.ingest(rows)
    assert index.ingest(rows).unchanged == 1


def test_one_warning_where_titles_have_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Embedder, "takes_titles", False)
    with ChromaIndex(tmp_path / "db", "notes", Embedder(FakeRuntime())) as index:
        index.ingest(file("a.md", "a", "b"))
        assert caplog.records == []
        index.ingest(documents(9), batch_size=3)
        assert ["no place for a title" in each.message for each in caplog.records] == [True]


def test_metadata_that_other_programs_write_is_taken(index: ChromaIndex) -> None:
    metadata = {
        "none": None,
        "empty": [],
        "date": date(2024, 1, 5),
        "time": datetime(2024, 1, 5, 6, 7, tzinfo=UTC),
        "dates": [date(2024, 1, 5), date(2024, 1, 6)],
        "bool": np.bool_(True),
        "int": np.int64(5),
        "float": np.float32(0.5),
        "str": np.str_("x"),
        "tuple": ("a", "b"),
        "least": -(2**63),
        "most": 2**63 - 1,
        "list": [True, False],
        "text": "\0 \u00fc",
    }
    rows = [
        {"text": "x", "id": "x", "metadata": metadata},
        {"text": "y", "id": "y", "metadata": None},
        {"text": "z", "id": "z", "metadata": {}, "extra": None},
    ]
    assert index.ingest(rows).added == 3
    assert index.ingest(rows).unchanged == 3
    got = current(index).get(ids=["x"])
    (held,) = got["metadatas"]
    assert {name: value for name, value in held.items() if "gemma_embed" not in name} == {
        "date": "2024-01-05",
        "time": "2024-01-05T06:07:00+00:00",
        "dates": ["2024-01-05", "2024-01-06"],
        "bool": True,
        "int": 5,
        "float": 0.5,
        "str": "x",
        "tuple": ["a", "b"],
        "least": -(2**63),
        "most": 2**63 - 1,
        "list": [True, False],
        "text": "\0 \u00fc",
    }


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        (1984, "1984"),
        (0, "0"),
        (2.5, "2.5"),
        (np.int64(7), "7"),
        (date(2024, 1, 5), "2024-01-05"),
        ("a title", "a title"),
        ("", None),
        (None, None),
        (["a"], None),
    ],
)
def test_a_title_is_written_out_alike_everywhere(
    shared: ChromaIndex, title: Any, shown: str | None
) -> None:
    fake = shared.embedder.runtime
    assert isinstance(fake, FakeRuntime)
    row = {"text": f"a text {title!r}", "id": "titled", "metadata": {"title": title}}
    assert shared.ingest([row]).failed == ()
    assert fake.texts[-1].startswith(f"title: {shown or 'none'} | text: a text")
    got = current(shared).get(ids=["titled"])
    (metadata,), (text,) = got["metadatas"], got["documents"]
    assert embedded_parts(metadata, text) == (text, shown)
    current(shared).delete(ids=["titled"])


def test_who_embedded_a_row_is_known_from_it() -> None:
    assert embedded_parts({"title": "T"}, "text") is None
    assert embedded_parts({"gemma_embed.document": "", "title": "T"}, "text") == ("text", None)
    ours = {"gemma_embed.document": "", "title": 5}
    assert embedded_parts(ours, "text", "title") == ("text", "5")
    assert embedded_parts(ours | {"gemma_embed.title": "T"}, "text") == ("text", "T")


def test_a_text_that_is_too_long_is_reported(tmp_path: Path) -> None:
    index = ChromaIndex(tmp_path / "db", "notes", Embedder(FakeRuntime(max_tokens=100)))
    rows = file("a.md", *(f"short {n}" for n in range(20)))
    rows[7] = {"text": "secret " * 30, "metadata": {"source": "long.csv"}}
    rows[9] = {"text": "secret " * 31, "metadata": {"source": "long.csv"}}
    report = index.ingest(rows, batch_size=6)
    assert report.added == 18
    assert [(each.index, each.source) for each in report.failed] == [
        (7, "long.csv"),
        (9, "long.csv"),
    ]
    assert "the model reads 100" in report.failed[0].reason
    assert "secret" not in report.failed[0].reason
    with pytest.raises(InputTooLong) as caught:
        index.ingest(rows, on_error="raise")
    assert caught.value.index == 7
    assert "in 'long.csv'" in str(caught.value)
    assert index.check() == 18
    index.close()


# What fails takes nothing away


def test_a_document_with_a_failed_passage_keeps_its_old_rows(index: ChromaIndex) -> None:
    index.ingest([*file("a.md", "a1", "a2"), *file("b.md", "b1", "b2")])
    wrong = file("a.md", "a2", tags=[1, "x"])
    for remove_absent in (False, True):
        report = index.ingest(
            [*file("a.md", "a3"), *wrong, *file("b.md", "b1")], remove_absent=remove_absent
        )
        assert len(report.failed) == 1
        assert texts_of(index) == ["a1", "a2", "a3", "b1"]
    assert index.ingest([*file("a.md", "a2"), *file("b.md", "b1")]).removed == 2


def test_a_failed_passage_of_no_document_keeps_all_that_is_absent(index: ChromaIndex) -> None:
    index.ingest([{"text": "a"}, {"text": "b"}, *file("b.md", "b1", "b2")])
    wrong = {"text": "a", "metadata": {"tags": [1, "x"]}}
    report = index.ingest([wrong, *file("b.md", "b1")], remove_absent=True)
    assert texts_of(index) == ["a", "b", "b1"]
    assert report.absent == 2
    assert index.ingest(file("b.md", "b1"), remove_absent=True).removed == 2


def test_an_id_that_was_made_for_another_text_is_reported(index: ChromaIndex) -> None:
    index.ingest([{"text": "a"}])
    (made,) = current(index).get()["ids"]
    report = index.ingest([{"text": "b", "id": made}, {"text": "a"}])
    assert report.updated == 1
    (failure,) = report.failed
    assert "same id" in failure.reason


def test_a_failed_id_keeps_its_row(index: ChromaIndex) -> None:
    index.ingest([{"text": "a", "id": "a"}, {"text": "b", "id": "b"}])
    wrong = {"text": "a", "id": "a", "metadata": {"tags": [1, "x"]}}
    report = index.ingest([wrong, {"text": "c", "id": "c"}], remove_absent=True)
    assert (report.added, report.removed) == (1, 1)
    assert texts_of(index) == ["a", "c"]


def test_all_failed_removes_nothing(index: ChromaIndex) -> None:
    index.ingest(documents(3))
    report = index.ingest([{"text": None}], remove_absent=True)
    assert len(report.failed) == 1
    assert current(index).count() == 3


@pytest.mark.parametrize("wrong", [{"text": 5}, {"text": "x", "metadata": {"a": "\ud800"}}])
@pytest.mark.parametrize(("count", "batch_size"), [(35, 10), (30, 256), (30, 10), (0, 10)])
def test_all_before_a_wrong_passage_are_kept(
    index: ChromaIndex, wrong: dict[str, Any], count: int, batch_size: int
) -> None:
    rows = [*documents(count), wrong, *documents(50)[count:]]
    with pytest.raises(InvalidInput) as caught:
        index.ingest(rows, batch_size=batch_size, on_error="raise")
    assert caught.value.index == count
    assert index.open().count() == count


def test_all_before_a_failure_of_the_source_are_kept(index: ChromaIndex) -> None:
    def source() -> Iterator[dict[str, Any]]:
        yield from documents(35)
        raise ConnectionError("the source is gone")

    for _ in range(2):
        with pytest.raises(ConnectionError):
            index.ingest(source(), batch_size=10, remove_absent=True)
        assert current(index).count() == 35


def test_a_failure_keeps_what_was_finished(tmp_path: Path) -> None:
    class Failing(FakeRuntime):
        def embed(self, texts: Any, *, truncate: bool = False) -> Any:
            if len(self.texts) > 25:
                raise ServerFailed("the server died", index=2)
            return super().embed(texts, truncate=truncate)

    runtime = Failing()
    index = ChromaIndex(tmp_path / "db", "notes", Embedder(runtime))
    with pytest.raises(ServerFailed, match="index 35"):
        index.ingest(documents(), batch_size=10)
    assert index.client.get_collection(index.collection_name).count() == 30
    healthy = FakeRuntime()
    again = ChromaIndex(index.client, "notes", Embedder(healthy, store=index.embedder.store))
    assert again.ingest(documents()).added == 30
    assert len(healthy.texts) == 31
    index.close()


class Failing(FakeRuntime):
    """Fails on some texts, and on these alone, as a runtime after its bisection."""

    def __init__(self, error: EmbeddingError | None, texts: set[str]) -> None:
        super().__init__()
        self.error, self.bad = error, texts

    def embed(self, texts: Any, *, truncate: bool = False) -> Any:
        bad = {row for row, text in enumerate(texts) if text.split("text: ")[-1] in self.bad}
        for batch in super().embed(texts, truncate=truncate):
            if isinstance(batch, TooLong):
                yield batch
                continue
            zeros = [float("nan") if row in bad else 1.0 for row in batch.rows]
            if bad and self.error is not None:
                raise type(self.error)(self.error.args[0], index=min(bad))
            yield replace(batch, vectors=batch.vectors * np.array(zeros)[:, None])


FAULTS = [None, ServerFailed("the server crashed"), OutOfMemory("not enough"), BadResponse("no")]


@pytest.mark.parametrize("error", FAULTS, ids=["NaN", "crash", "memory", "response"])
def test_texts_that_a_runtime_fails_on_are_reported(
    tmp_path: Path, error: EmbeddingError | None
) -> None:
    runtime = Failing(error, {"text 3", "text 17", "text 18"})
    rows = [row | {"document": f"d{n}"} for n, row in enumerate(documents(20))]
    with ChromaIndex(tmp_path / "db", "notes", Embedder(runtime)) as index:
        for added in (17, 0):
            report = index.ingest([*rows, {"text": None}, rows[0]], batch_size=7)
            assert report.added == added
            assert [each.index for each in report.failed] == [3, 17, 18, 20]
            assert [each.source for each in report.failed[:3]] == ["d3", "d17", "d18"]
        with pytest.raises(EmbeddingError, match=r"index 3: .*\(in 'd3'\)"):
            index.ingest(rows, on_error="raise")


@pytest.mark.parametrize("error", FAULTS[:2], ids=["NaN", "crash"])
def test_a_runtime_that_fails_on_many_texts_stops_the_ingestion(
    tmp_path: Path, error: EmbeddingError | None
) -> None:
    runtime = Failing(error, {f"text {n}" for n in range(4, 20)})
    rows = [row | {"document": f"d{n}"} for n, row in enumerate(documents(20))]
    with (
        ChromaIndex(tmp_path / "db", "notes", Embedder(runtime)) as index,
        pytest.raises((BadResponse, ServerFailed), match=r"index (\d+): .*\(in 'd\1'\)"),
    ):
        index.ingest(rows)


@pytest.mark.parametrize("error", [ServerFailed("down"), ServerRefused("no", index=3)])
def test_a_failure_that_is_no_texts_fault_stops_the_ingestion(
    tmp_path: Path, error: EmbeddingError
) -> None:
    class Broken(FakeRuntime):
        def embed(self, texts: Any, *, truncate: bool = False) -> Any:
            if len(texts) > 1:
                raise error
            return super().embed(texts, truncate=truncate)

    with (
        ChromaIndex(tmp_path / "db", "notes", Embedder(Broken())) as index,
        pytest.raises(type(error)),
    ):
        index.ingest(documents(10))


def test_what_is_missing_in_the_end_is_an_error(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chromadb.api.models.Collection import Collection

    upsert = Collection.upsert

    def lossy(self: Any, ids: list[str], **rest: Any) -> None:
        kept = [n for n, row in enumerate(ids) if row != "id 4"]
        columns = {name: [values[n] for n in kept] for name, values in rest.items()}
        upsert(self, ids=[ids[n] for n in kept], **columns)

    monkeypatch.setattr(Collection, "upsert", lossy)
    with pytest.raises(CollectionIncomplete, match=r"1 of 60.*'id 4'.*recreate") as caught:
        index.ingest(documents())
    report: Any = caught.value.report
    assert report.missing == ("id 4",)
    assert (report.added, report.absent) == (60, 0)


class Dead(FakeRuntime):
    """Fails, once it is told to, on all texts or on all but the fixed sentence."""

    dead = ""

    def embed(self, texts: Any, *, truncate: bool = False) -> Any:
        if self.dead and any(self.dead in text for text in texts):
            raise ConnectionFailed("the server is down")
        return super().embed(texts, truncate=truncate)


@pytest.mark.parametrize("dead", [" ", "text: text"], ids=["server", "first batch"])
def test_nothing_is_deleted_before_the_first_batch_is_embedded(tmp_path: Path, dead: str) -> None:
    runtime = Dead()
    with ChromaIndex(tmp_path / "db", "notes", Embedder(runtime)) as index:
        index.ingest(documents(20))
        before = everything(index)
        store = index.embedder.store
        assert store is not None
        store.clear()
        runtime.dead = dead
        with pytest.raises(ConnectionFailed):
            index.recreate(documents(20))
        assert everything(index) == before
        runtime.dead = ""
        assert index.recreate(documents(20)).added == 20


def test_nothing_is_deleted_with_a_store_that_cannot_be_written(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.ingest(documents(20))
    before = everything(index)
    store = index.embedder.store
    assert store is not None
    store.clear()

    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(EmbeddingStore, "put", full)
    with pytest.raises(StoreError):
        index.recreate(documents(20))
    assert everything(index) == before


@pytest.mark.parametrize("wrong", ["str", {"text": None}, {"text": "poison"}, {"text": "x" * 3000}])
def test_a_collection_is_not_replaced_by_failures(tmp_path: Path, wrong: Any) -> None:
    runtime = Failing(None, {"poison"})
    with ChromaIndex(tmp_path / "db", "notes", Embedder(runtime)) as index:
        index.ingest(documents(3))
        before = everything(index)
        with pytest.raises(InvalidInput, match="index 0: none of 2 passages can become a row"):
            index.recreate([wrong, wrong] if isinstance(wrong, str) else [wrong, {"text": 5}])
        assert everything(index) == before
        # One that can is found in a later batch.
        report = index.recreate([wrong, *documents(2)], batch_size=1)
        assert (report.added, [each.index for each in report.failed]) == (2, [0])


FOREIGN = [
    httpx.ConnectError("my site is down"),
    NotFoundError("another collection"),
    InternalError("mine (code: 8)"),
    ValueError("mine"),
]


@pytest.mark.parametrize("error", FOREIGN, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("count", [0, 3])
def test_what_the_caller_raises_is_not_taken_for_chromas(
    shared: ChromaIndex, error: Exception, count: int
) -> None:
    def source() -> Iterator[dict[str, Any]]:
        yield from documents(count)
        raise error

    def callback(done: int, total: int) -> None:
        raise error

    for act in (lambda: shared.ingest(source()), lambda: shared.ingest([], progress=callback)):
        with pytest.raises(type(error)) as caught:
            act()
        assert caught.value is error


def test_an_exhausted_generator_empties_nothing(index: ChromaIndex) -> None:
    rows = iter(documents(5))
    index.ingest(rows)
    with pytest.raises(InvalidInput, match=r"no passages.*drop\('notes-.*current=True\)"):
        index.ingest(rows, remove_absent=True)
    with pytest.raises(InvalidInput, match=r"no passages"):
        index.recreate(rows)
    assert current(index).count() == 5
    index.drop(index.collection_name, current=True)
    assert index.ingest([], remove_absent=True).removed == 0
    assert current(index).count() == 0


# What was retrieved


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("source", [None, "a.md"])
def test_retrieved_documents_are_the_same_passages(
    fake: FakeRuntime, tmp_path: Path, ids: bool, source: str | None
) -> None:
    embeddings = GemmaEmbeddings(fake)
    named = {} if source is None else {"source": source}
    with ChromaIndex(tmp_path, "notes", embeddings) as index:
        first = [
            Document(f"text {n}", metadata={"n": n, "title": f"T{n}", **named}) for n in range(5)
        ]
        index.ingest(passages(first))
        store = Chroma(index.collection_name, embeddings, client=index.client)
        found = store.similarity_search("x", k=5)
        again = [each if ids else each.model_copy(update={"id": None}) for each in found]
        assert index.ingest(passages(again)).unchanged == 5
        assert current(index).count() == 5


def test_a_document_given_by_name_stays_with_what_was_retrieved(
    fake: FakeRuntime, tmp_path: Path
) -> None:
    embeddings = GemmaEmbeddings(fake)
    with ChromaIndex(tmp_path, "notes", embeddings) as index:
        first = [Document(f"text {n}", metadata={"url": "u"}) for n in range(3)]
        index.ingest(passages(first, document_key="url"))
        store = Chroma(index.collection_name, embeddings, client=index.client)
        found = store.similarity_search("x", k=2)
        assert index.ingest(passages(found)).removed == 1


def test_a_passage_of_ones_own_is_not_changed(index: ChromaIndex) -> None:
    metadata = {"gemma_embed.title": "x", "n": 1, "none": None}
    assert index.ingest([Passage("x", "x", metadata=metadata)]).added == 1
    assert metadata == {"gemma_embed.title": "x", "n": 1, "none": None}
    assert index.ingest([Passage("x", "x", metadata={"n": 1})]).unchanged == 1


@pytest.mark.parametrize(
    ("made", "package"),
    [
        (lambda: Document(page_content="secret"), "langchain_gemma_embed"),
        (lambda: TextNode(text="secret"), "llamaindex_gemma_embed"),
    ],
)
def test_framework_objects_are_refused_with_the_right_call(
    index: ChromaIndex, made: Callable[[], Any], package: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"pass {package}\.passages\(") as caught:
        index.ingest([{"text": "a"}, made()])
    assert "secret" not in str(caught.value)


def test_failed_passages_are_warned_about(
    index: ChromaIndex, caplog: pytest.LogCaptureFixture
) -> None:
    report = index.ingest([{"text": "a"}, {"text": 5}, {"text": "b", "id": ""}])
    assert (report.added, len(report.failed)) == (1, 2)
    (record,) = caplog.records
    assert record.message.startswith("2 of 3 passages did not become rows; passage 1: the text is")


# Removal


def test_documents_are_removed_by_their_ids(index: ChromaIndex) -> None:
    index.ingest([*documents(3), Passage("more of 1", document="1"), Passage("of nothing")])
    before = index.open().count()
    assert index.remove(["1.md", "1", "not there"]) == before - index.open().count()
    assert "more of 1" not in texts_of(index)
    assert "of nothing" in texts_of(index)
    assert index.remove([]) == 0


def test_removal_from_nothing_creates_nothing(index: ChromaIndex) -> None:
    assert index.remove(["a"]) == 0
    assert index.generations() == []
    with pytest.raises(InvalidInput, match="list of documents"):
        index.remove("a")


def test_removed_passages_come_back_without_the_model(
    index: ChromaIndex, fake: FakeRuntime
) -> None:
    index.ingest([Passage("text", document="a")])
    assert index.remove(["a"]) == 1
    assert index.ingest([Passage("text", document="a")]).added == 1
    assert len([text for text in fake.texts if text.endswith("text: text")]) == 1
