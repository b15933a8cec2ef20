"""Passages that cannot become rows, or were retrieved or written by others."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeRuntime
from langchain_chroma import Chroma
from langchain_core.documents import Document
from llama_index.core.schema import TextNode
from notes import current, documents, file

from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex, Passage, embedded_parts
from gemma_embed.errors import (
    ConfigurationError,
    InputTooLong,
    InvalidInput,
)
from langchain_gemma_embed import GemmaEmbeddings, passages

pytestmark = pytest.mark.usefixtures("examined_here")


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
