"""Rebuilding a collection: what it takes over, and what a kill at each of its steps leaves."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromadb.api.client import Client
from chromadb.api.models.Collection import Collection
from fakes import FakeRuntime, vector_of
from langchain_chroma import Chroma
from notes import documents, everything

from gemma_embed import Embedder, EmbeddingStore
from gemma_embed.chroma import ChromaIndex, rebuilding, rows
from gemma_embed.errors import CollectionDamaged, CollectionMismatch, ConfigurationError
from langchain_gemma_embed import GemmaEmbeddings


@pytest.fixture
def index(fake: FakeRuntime, tmp_path: Path) -> Iterator[ChromaIndex]:
    with ChromaIndex(tmp_path / "db", "notes", Embedder(fake)) as opened:
        yield opened


def names(index: ChromaIndex) -> list[str]:
    return sorted(each.name for each in index.client.list_collections())


# Names


@pytest.mark.parametrize("theirs", ["notes.verified", "notes.building"])
def test_a_collection_of_the_users_is_never_touched(index: ChromaIndex, theirs: str) -> None:
    index.ingest(documents(5))
    other = ChromaIndex(index.client, theirs, index.embedder)
    other.ingest(documents(3))
    before = everything(index), everything(other)
    index.ingest([])
    with pytest.raises(ConfigurationError, match=f"{theirs}.*another name"):
        index.rebuild()
    assert index.collection.count() == index.check() == 5
    assert (everything(index), everything(other)) == before
    assert names(index) == ["notes", theirs]
    # It has a stand-in of its own.
    assert other.rebuild() == 3
    assert names(index) == ["notes", theirs]


# Kills


class Killed(BaseException):
    """No handler of errors sees it, as none sees a kill."""


STEPS = ["written", "renamed to .verified", "old one deleted", "in its place"]


def killed(index: ChromaIndex, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Rebuild, and stop after so many steps of the swap."""
    done = 0

    def counting(original: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            if done == steps:
                raise Killed
            done += 1
            return original(*args, **kwargs)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(Collection, "modify", counting(Collection.modify))
        patch.setattr(Client, "delete_collection", counting(Client.delete_collection))
        if steps == len(STEPS) - 1:
            assert index.rebuild() == 40
        else:
            with pytest.raises(Killed):
                index.rebuild()
    assert done == steps
    index.close()


@pytest.mark.parametrize("steps", range(len(STEPS)), ids=STEPS)
def test_a_kill_between_steps_loses_nothing_then_or_later(
    index: ChromaIndex, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    index.ingest(documents(40))
    before = everything(index)
    killed(index, monkeypatch, steps)
    again = ChromaIndex(str(index._folder), "notes", Embedder(fake))
    _ = again.collection
    assert everything(again) == before
    embeddings = GemmaEmbeddings(fake)
    Chroma("notes", embeddings, client=again.client).add_texts(["late"], ids=["late"])
    assert again.ingest(documents(40)).unchanged == 40
    assert again.collection.get(ids=["late"])["documents"] == ["late"]
    assert again.check() == 41
    assert again.rebuild(embed_missing=True) == 41
    assert everything(again).keys() == before.keys() | {"late"}
    assert names(again) == ["notes"]
    again.close()


@pytest.mark.parametrize("act", ["ingest", "check", "adopt", "rebuild", "namespace"])
def test_whoever_comes_next_finishes_the_swap(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    index.ingest(documents(40))
    killed(index, monkeypatch, 1)
    assert names(index) == ["notes", "notes.verified"]
    new = index.client.get_collection("notes.verified", embedding_function=None).id
    if act == "namespace":
        assert str(new) in index.namespace
    elif act == "ingest":
        index.ingest([])
    else:
        getattr(index, act)()
    assert names(index) == ["notes"]
    assert (index.collection.id == new) == (act != "rebuild")


# What is taken over


def test_metadata_and_settings_are_kept(fake: FakeRuntime, tmp_path: Path) -> None:
    hnsw = {"ef_search": 333, "max_neighbors": 24}
    with ChromaIndex(tmp_path, "notes", Embedder(fake), hnsw=hnsw) as first:
        first.ingest(documents(5))
        held = first.collection
        held.modify(metadata=held.metadata | {"owner": "me"})
    with ChromaIndex(tmp_path, "notes", Embedder(fake), hnsw={"ef_search": 50}) as again:
        assert again.rebuild() == 5
        metadata = again.collection.metadata
        assert metadata["owner"] == "me"
        assert "gemma_embed.stands_in_for" not in metadata
        settings = again.collection.configuration["hnsw"]
        # What is asked for now is preferred.
        assert (settings["ef_search"], settings["max_neighbors"]) == (50, 24)
        assert settings["space"] == "cosine"


def test_a_store_that_was_cleared_needs_the_rows_only(
    index: ChromaIndex, fake: FakeRuntime
) -> None:
    index.ingest(documents(20))
    store = index.embedder.store
    assert isinstance(store, EmbeddingStore)
    store.clear()
    held = documents(20)
    index.embedder.embed([each["text"] for each in held], titles=[f"T{i}" for i in range(20)])
    calls = fake.calls
    before = index.client.get_collection("notes", embedding_function=None).metadata
    assert index.rebuild() == 20
    assert fake.calls == calls
    assert index.collection.metadata == before


@pytest.mark.parametrize("probe", ["!no base64!", "AAA", "", base64.b64encode(b"\xff" * 3072)])
def test_a_damaged_passport_is_a_mismatch_and_is_mended(
    index: ChromaIndex, probe: str | bytes
) -> None:
    index.ingest(documents(3))
    held = index.collection
    text = probe if isinstance(probe, str) else probe.decode()
    held.modify(metadata=held.metadata | {"gemma_embed.probe": text})
    with pytest.raises(CollectionMismatch, match=r"damaged.*rebuild\(\)"):
        _ = index.collection
    assert index.rebuild() == 3
    assert index.collection.count() == 3


# Pages


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "PAGE", 7)


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("failing", [None, 0, 3])
def test_rows_are_taken_page_by_page(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch, failing: int | None
) -> None:
    index.ingest(documents(40))
    # In Chroma's log too.
    index.collection.delete(ids=["id 11"])
    before = everything(index)
    sizes = []

    def failing_after(folder: Path, collection: Any) -> Iterator[list[rows.Row]]:
        for number, page in enumerate(rows.rows_in_folder(folder, collection)):
            if number == failing:
                raise CollectionDamaged("a page that cannot be read")
            yield page

    write = rebuilding._write

    def measured(new: Any, embedder: Any, page: list[rows.Row], title_key: str) -> None:
        sizes.append(len(page))
        write(new, embedder, page, title_key)

    monkeypatch.setattr(rebuilding, "rows_in_folder", failing_after)
    monkeypatch.setattr(rebuilding, "_write", measured)
    assert index.rebuild() == 39
    assert max(sizes) <= 7
    assert everything(index) == before


def test_a_row_without_text_is_named(index: ChromaIndex) -> None:
    index.ingest(documents(2))
    index.collection.add(ids=["bare"], embeddings=np.array([vector_of("x")]))
    with pytest.raises(CollectionDamaged, match="'bare' has no text"):
        index.rebuild()
    assert index.collection.count() == 3
