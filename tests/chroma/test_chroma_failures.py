"""What fails in an ingestion takes nothing away that was there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from chromadb.errors import InternalError, NotFoundError
from fakes import FakeRuntime
from notes import current, documents, everything, file, texts_of

from gemma_embed import Embedder, EmbeddingStore
from gemma_embed.chroma import ChromaIndex
from gemma_embed.errors import (
    BadResponse,
    CollectionIncomplete,
    ConnectionFailed,
    EmbeddingError,
    InvalidInput,
    OutOfMemory,
    ServerFailed,
    ServerRefused,
    StoreError,
)
from gemma_embed.runtimes import TooLong

pytestmark = pytest.mark.usefixtures("examined_here")


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
