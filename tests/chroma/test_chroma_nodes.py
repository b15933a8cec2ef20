"""Collections that LlamaIndex filled: its text of a node is known without it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeRuntime
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import BaseNode, Document, MetadataMode, TextNode
from llama_index.core.vector_stores.utils import node_to_metadata_dict
from llama_index.vector_stores.chroma import ChromaVectorStore
from notes import everything

from gemma_embed.chroma import ChromaIndex
from gemma_embed.chroma.nodes import embedded_content
from gemma_embed.errors import CollectionDamaged
from llamaindex_gemma_embed import GemmaEmbedding, GemmaTitles

MANY: dict[str, Any] = {"title": "A {curious} title", "n": 1, "share": 0.5, "tags": ["a", None]}


@pytest.mark.parametrize("kind", [TextNode, Document])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"metadata": MANY},
        {"metadata": MANY, "excluded_embed_metadata_keys": ["n", "tags"]},
        {"metadata": MANY, "excluded_embed_metadata_keys": list(MANY)},
        {"metadata": MANY, "metadata_template": "{value} <- {key}", "metadata_separator": " | "},
        {"metadata": {"a": " "}, "metadata_template": "{value}"},
        {"metadata": {"a": "x "}},
        {"metadata": MANY, "text_template": "{content}\n--\n{metadata_str}"},
    ],
)
@pytest.mark.parametrize("titles", [False, True])
def test_the_text_is_llamaindexs_own(
    kind: type[TextNode | Document], options: dict[str, Any], titles: bool
) -> None:
    node = kind(text=" a text with {braces} ", **options)
    if titles:
        GemmaTitles()([node])
    metadata = node_to_metadata_dict(node, remove_text=True)
    text = node.get_content(MetadataMode.NONE)
    assert embedded_content("id", metadata, text) == node.get_content(MetadataMode.EMBED)


def nodes() -> list[BaseNode]:
    return [
        Document(text=f"text {n}", id_=f"id {n}", metadata={"title": f"T{n}", "n": n})
        for n in range(12)
    ]


@pytest.mark.parametrize("transformations", [[], [GemmaTitles()]], ids=["metadata", "titles"])
@pytest.mark.parametrize("dimensions", [768, 128])
@pytest.mark.parametrize("adopted", [False, True])
def test_what_a_pipeline_embedded_is_rebuilt(
    fake: FakeRuntime,
    tmp_path: Path,
    transformations: Sequence[Any],
    dimensions: int,
    adopted: bool,
) -> None:
    model = GemmaEmbedding(fake, store=tmp_path / "s")
    with ChromaIndex(tmp_path / "db", "notes", model) as index:
        held = index.collection
        if adopted:
            held.modify(metadata={"owner": "me"})
        store = ChromaVectorStore(chroma_collection=held)
        pipeline = IngestionPipeline(transformations=[*transformations, model], vector_store=store)
        pipeline.run(documents=nodes())
        if adopted:
            index.adopt()
        assert any("T3" in text for text in fake.texts)
        before = everything(index)
        # Vectors of bare texts would differ from the store's.
        assert index.check() == 12
        calls = fake.calls
        target = ChromaIndex(
            index.client, "notes", GemmaEmbedding(fake, store=tmp_path / "s", dimensions=dimensions)
        )
        assert target.rebuild() == 12
        assert fake.calls == calls
        assert target.check() == 12
        if dimensions == 768:
            assert everything(index) == before


def test_a_node_that_cannot_be_read_is_named(fake: FakeRuntime, tmp_path: Path) -> None:
    with ChromaIndex(tmp_path, "notes", GemmaEmbedding(fake)) as index:
        for content in ("no JSON", "{}", "[]", '{"excluded_embed_metadata_keys": 5}'):
            index.collection.upsert(
                ids=["bad"],
                documents=["text"],
                embeddings=[index.embedder.embed(["text"])[0]],
                metadatas=[{"_node_content": content}],
            )
            with pytest.raises(CollectionDamaged, match=r"row 'bad'.*not as LlamaIndex writes it"):
                index.rebuild(embed_missing=True)
        assert index.collection.count() == 1
