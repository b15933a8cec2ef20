"""Whether a collection holds an embedder's vectors, whoever opened or filled it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from fakes import FakeRuntime, vector_of
from langchain_chroma import Chroma
from notes import QUIET, documents, other

from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex, check_collection
from gemma_embed.errors import CollectionMismatch
from langchain_gemma_embed import GemmaEmbeddings

pytestmark = pytest.mark.usefixtures("examined_here")


# Passports


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
    with pytest.raises(CollectionMismatch) as caught:
        check_collection(index.open(), index.embedder.replaced(**options))
    assert field in str(caught.value)
    # By an index it cannot be met.
    assert other(index, **options).open().count() == 0


@pytest.mark.parametrize("change", [{"revision": "2"}, {"precision": "int8"}, {"runtime": "new"}])
def test_other_weights_are_refused(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    index.ingest(documents(3))
    held = index.open()
    own = index.embedder.runtime.identity
    monkeypatch.setattr(FakeRuntime, "identity", property(lambda _: replace(own, **change)))
    ((field, value),) = change.items()
    with pytest.raises(CollectionMismatch, match=f"{field} is '.*' there and '{value}' here"):
        check_collection(held, index.embedder)


def test_weights_that_changed_under_their_name_are_found_out(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.ingest(documents(3))
    monkeypatch.setattr("fakes.vector_of", lambda text: vector_of(text + "!"))
    for act in (index.open, lambda: index.ingest(documents(3))):
        with pytest.raises(CollectionMismatch, match=r"same sentence has another.*recreate"):
            act()
    # The store has the old vectors too, which is found out as well.
    with pytest.raises(CollectionMismatch, match=r"its clear\(\)"):
        index.recreate(documents(3))
    assert index.embedder.store is not None
    index.embedder.store.clear()
    assert index.recreate(documents(3)).added == 3
    assert index.check() == 3


def test_another_place_of_the_same_weights_is_welcome(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.ingest(documents(3))
    own = index.embedder.runtime.identity
    moved = replace(own, source="elsewhere")
    monkeypatch.setattr(FakeRuntime, "identity", property(lambda _: moved))
    assert index.open().count() == 3


@pytest.mark.parametrize(
    "field", ["revision", "source", "prompt", "dimensions", "overlong", "model", "probe"]
)
def test_a_passport_that_lacks_a_field_is_a_mismatch(index: ChromaIndex, field: str) -> None:
    index.ingest(documents(3))
    held = index.open()
    held.modify(metadata={k: v for k, v in held.metadata.items() if k != f"gemma_embed.{field}"})
    if field == "source":
        check_collection(held, index.embedder)
    else:
        what = "damaged passport" if field == "probe" else f"{field} is not stated there"
        with pytest.raises(CollectionMismatch, match=what):
            check_collection(held, index.embedder)
    # Rows are examined without a passport.
    assert index.check() == 3


@pytest.mark.parametrize("field", ["title_key", "fingerprint"])
def test_a_collection_of_the_same_name_that_an_index_did_not_create(
    index: ChromaIndex, field: str
) -> None:
    index.ingest(documents(3))
    held = index.open()
    metadata = {k: v for k, v in held.metadata.items() if k != f"gemma_embed.{field}"}
    held.modify(metadata=metadata)
    if field == "title_key":
        with pytest.raises(CollectionMismatch, match="not created by a ChromaIndex"):
            index.open()
    else:
        assert index.open().count() == 3


@pytest.mark.parametrize("probe", ["!no base64!", "AAA", "", "//" * 512])
def test_a_damaged_passport_is_a_mismatch_and_recreated(index: ChromaIndex, probe: str) -> None:
    index.ingest(documents(3))
    held = index.open()
    held.modify(metadata=held.metadata | {"gemma_embed.probe": probe})
    with pytest.raises(CollectionMismatch, match=r"damaged.*recreate\(passages\)"):
        index.open()
    assert index.recreate(documents(3)).added == 3
    assert index.open().count() == 3


# Collections that were opened or filled by other means


def old_collection(folder: Path, space: str, searched_by: str) -> Any:
    """As Chroma 0.4 to 0.6 left it: the space in metadata, and a default in its place today."""
    with chromadb.PersistentClient(str(folder), QUIET) as client:
        metadata = {"hnsw:space": space, "owner": "me"}
        client.create_collection("notes", metadata=metadata, embedding_function=None)
    with closing(sqlite3.connect(folder / "chroma.sqlite3")) as database:
        database.execute("UPDATE collections SET config_json_str = '{}', schema_str = NULL")
        database.execute(
            "INSERT INTO segment_metadata (segment_id, key, str_value)"
            "SELECT id, 'hnsw:space', ? FROM segments WHERE scope = 'VECTOR'",
            (searched_by,),
        )
        database.commit()
    client = chromadb.PersistentClient(str(folder), QUIET)
    held = client.get_collection("notes", embedding_function=None)
    assert held.configuration["hnsw"]["space"] == "l2"
    return held


def fill(held: Any) -> None:
    vectors = np.array([vector_of(f"title: none | text: text {n}") for n in range(20)])
    ids = [str(n) for n in range(20)]
    held.add(ids=ids, documents=[f"text {n}" for n in ids], embeddings=3 * vectors)


def test_a_collection_of_an_older_chroma_searches_by_cosine(
    fake: FakeRuntime, tmp_path: Path
) -> None:
    held = old_collection(tmp_path, "cosine", "cosine")
    check_collection(held, Embedder(fake))
    fill(held)
    check_collection(held, Embedder(fake))
    # Nothing is written: Chroma would take the space out of the metadata.
    assert held.metadata == {"hnsw:space": "cosine", "owner": "me"}
    with pytest.raises(CollectionMismatch, match="embedded again, one has a cosine of"):
        check_collection(held, Embedder(fake, document_task="clustering"))


@pytest.mark.parametrize(
    ("space", "searched_by"), [("cosine", "l2"), ("ip", "ip"), ("ip", "l2"), ("l2", "l2")]
)
def test_what_does_not_search_by_cosine_is_refused(
    fake: FakeRuntime, tmp_path: Path, space: str, searched_by: str
) -> None:
    held = old_collection(tmp_path, space, searched_by)
    fill(held)
    with pytest.raises(CollectionMismatch, match="not 'cosine'"):
        check_collection(held, Embedder(fake))


def test_what_a_framework_filled_is_verified_row_by_row(fake: FakeRuntime, tmp_path: Path) -> None:
    client = chromadb.PersistentClient(str(tmp_path), QUIET)
    embeddings = GemmaEmbeddings(fake, store=tmp_path / "store")
    store = Chroma(
        "notes",
        embeddings,
        client=client,
        collection_configuration={"hnsw": {"space": "cosine"}},
    )
    held = client.get_collection("notes", embedding_function=None)
    # Rows that LangChain wrote were embedded without their titles.
    check_collection(held, embeddings)
    store.add_texts(["a", "b"], metadatas=[{"title": "T"}, {"title": "U"}])
    check_collection(held, embeddings)
    held.add(ids=["x"], documents=["text"], embeddings=[vector_of("something else")])
    with pytest.raises(CollectionMismatch, match="embedded again"):
        check_collection(held, embeddings)
    with pytest.raises(CollectionMismatch, match="embedded again"):
        check_collection(held, GemmaEmbeddings(fake, dimensions=128))


def test_only_cosine(fake: FakeRuntime, tmp_path: Path) -> None:
    client = chromadb.PersistentClient(str(tmp_path), QUIET)
    held = client.create_collection("notes", embedding_function=None)
    with pytest.raises(CollectionMismatch, match="'l2', not 'cosine'"):
        check_collection(held, Embedder(fake))
