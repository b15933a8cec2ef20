"""Ingestion, and vectors that are other texts' or another model's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeRuntime, vector_of
from langchain_chroma import Chroma
from langchain_core.documents import Document
from notes import current, documents, everything

from gemma_embed import Embedder, EmbeddingStore
from gemma_embed.chroma import ChromaIndex
from gemma_embed.errors import CollectionDamaged
from langchain_gemma_embed import GemmaEmbeddings

pytestmark = pytest.mark.usefixtures("examined_here")


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
