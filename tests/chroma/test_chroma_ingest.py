"""What an ingestion writes, replaces and removes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import FakeRuntime, vector_of
from notes import current, documents, everything, file, texts_of

from gemma_embed.chroma import ChromaIndex, Passage
from gemma_embed.chroma import ingestion as ingestion_module
from gemma_embed.chroma import stored as stored_module
from gemma_embed.errors import InvalidInput

pytestmark = pytest.mark.usefixtures("examined_here")


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
