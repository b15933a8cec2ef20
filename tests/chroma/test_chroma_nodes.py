"""Collections and LlamaIndex: what it embedded is known without it, and its own ways go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeRuntime
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import (
    HierarchicalNodeParser,
    SentenceSplitter,
    get_leaf_nodes,
)
from llama_index.core.postprocessor import PrevNextNodePostprocessor
from llama_index.core.retrievers import AutoMergingRetriever
from llama_index.core.schema import BaseNode, Document, MetadataMode, NodeWithScore, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.utils import node_to_metadata_dict
from llama_index.vector_stores.chroma import ChromaVectorStore
from notes import current

from gemma_embed.chroma import ChromaIndex, check_collection, embedded_parts, title_key_of
from gemma_embed.chroma.nodes import embedded_content
from gemma_embed.errors import CollectionMismatch
from llamaindex_gemma_embed import GemmaEmbedding, GemmaTitles, passages

MANY: dict[str, Any] = {"title": "A {curious} title", "n": 1, "share": 0.5, "tags": ["a", None]}


pytestmark = pytest.mark.usefixtures("examined_here")


@pytest.fixture
def index(fake: FakeRuntime, tmp_path: Path) -> Iterator[ChromaIndex]:
    with ChromaIndex(tmp_path / "db", "notes", GemmaEmbedding(fake)) as opened:
        yield opened


# What LlamaIndex embedded


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
def test_what_a_pipeline_embedded_is_verified(
    fake: FakeRuntime, tmp_path: Path, transformations: Sequence[Any], dimensions: int
) -> None:
    model = GemmaEmbedding(fake, store=tmp_path / "s", dimensions=dimensions)
    with ChromaIndex(tmp_path / "db", "notes", model) as index:
        held = index.open()
        store = ChromaVectorStore(chroma_collection=held)
        pipeline = IngestionPipeline(transformations=[*transformations, model], vector_store=store)
        pipeline.run(documents=nodes())
        assert any("T3" in text for text in fake.texts)
        # Not of bare texts, whose vectors would differ.
        assert index.check() == 12
        held.modify(metadata={"owner": "me"})
        check_collection(held, model)
        vector = held.get(ids=["id 4"], include=["embeddings"])["embeddings"]
        held.update(ids=["id 4"], embeddings=np.roll(vector, 1, axis=1))
        with pytest.raises(CollectionMismatch, match="embedded again"):
            check_collection(held, model)


def test_a_node_that_cannot_be_read_is_named(index: ChromaIndex) -> None:
    held = index.open()
    held.modify(metadata={"owner": "me"})
    for content in ("no JSON", "{}", "[]", '{"excluded_embed_metadata_keys": 5}'):
        held.upsert(
            ids=["bad"],
            documents=["text"],
            embeddings=[index.embedder.embed(["text"])[0]],
            metadatas=[{"_node_content": content}],
        )
        with pytest.raises(CollectionMismatch, match=r"row 'bad'.*not as LlamaIndex writes it"):
            check_collection(held, index.embedder)


# A second ingestion


TEXT = " ".join(f"Sentence number {n} says something of its own." for n in range(120))


def file(text: str = TEXT, name: str = "a.md", size: int = 1) -> Document:
    """As ``SimpleDirectoryReader`` reads it: a drawn id, and metadata that change."""
    metadata = {"file_path": f"/notes/{name}", "file_name": name, "file_size": size}
    hidden = ["file_name", "file_size"]
    return Document(
        text=text,
        metadata=metadata,
        excluded_embed_metadata_keys=hidden,
        excluded_llm_metadata_keys=hidden,
    )


def retriever(index: ChromaIndex, count: int) -> Any:
    model = GemmaEmbedding(index.embedder.runtime)
    store = ChromaVectorStore(chroma_collection=index.open())
    found = VectorStoreIndex.from_vector_store(store, embed_model=model)
    return found.as_retriever(similarity_top_k=count)


def test_an_edited_file_leaves_no_double(index: ChromaIndex, fake: FakeRuntime) -> None:
    split = SentenceSplitter(chunk_size=64, chunk_overlap=0)
    first = index.ingest(passages(split([file()])))
    fake.texts.clear()
    report = index.ingest(passages(split([file(TEXT + "\nOne line more.", size=2)])))
    held = current(index).get()
    assert len(held["documents"]) == len(set(held["documents"]))
    assert report.added <= 2
    assert report.removed <= 1
    assert report.updated + report.unchanged >= first.added - 1
    # What has the same text is not embedded again.
    assert len(set(fake.texts)) == 1 + report.added
    assert {metadata["file_size"] for metadata in held["metadatas"]} == {2}


@pytest.mark.parametrize("ids", ["content", "node"])
def test_merging_retrievers_work_after_a_second_ingestion(index: ChromaIndex, ids: Any) -> None:
    parser = HierarchicalNodeParser.from_defaults(chunk_sizes=[512, 128, 32], chunk_overlap=0)
    for _ in range(2):
        every = parser([file()])
        docstore = SimpleDocumentStore()
        docstore.add_documents(every)
        leaves = get_leaf_nodes(every)
        index.ingest(passages(leaves, ids=ids))
        assert current(index).count() == len(leaves)
    merging = AutoMergingRetriever(
        retriever(index, len(leaves)), StorageContext.from_defaults(docstore=docstore)
    )
    found = merging.retrieve("a question")
    assert {each.node.node_id for each in found} <= {node.node_id for node in every}
    assert len(found) < len(leaves)


@pytest.mark.parametrize("ids", ["content", "node"])
def test_neighbours_are_found_after_a_second_ingestion(index: ChromaIndex, ids: Any) -> None:
    split = SentenceSplitter(chunk_size=64, chunk_overlap=0)
    for _ in range(2):
        chunks = split([file()])
        docstore = SimpleDocumentStore()
        docstore.add_documents(chunks)
        index.ingest(passages(chunks, ids=ids))
    found = retriever(index, 3).retrieve("a question")
    neighbours = PrevNextNodePostprocessor(docstore=docstore, num_nodes=1, mode="both")
    more = neighbours.postprocess_nodes(found)
    # As for the nodes that were parsed last, which never went through an index.
    parsed = {chunk.get_content(MetadataMode.NONE): chunk for chunk in chunks}
    same = [
        NodeWithScore(node=parsed[each.node.get_content(MetadataMode.NONE)], score=each.score)
        for each in found
    ]
    expected = neighbours.postprocess_nodes(same)
    assert [each.node_id for each in more] == [each.node_id for each in expected]
    assert len({each.node.get_content(MetadataMode.NONE) for each in more}) == len(more) > 3


def test_a_document_is_deleted_by_its_id_after_a_second_ingestion(index: ChromaIndex) -> None:
    split = SentenceSplitter(chunk_size=64, chunk_overlap=0)
    shared = "A passage that two documents share."
    for _ in range(2):
        read = [file(), file(name="b.md"), file(shared, "c.md"), file(shared, "d.md")]
        index.ingest(passages(split(read)))
    count = current(index).count()
    store = ChromaVectorStore(chroma_collection=index.open())
    built = VectorStoreIndex.from_vector_store(store, embed_model=GemmaEmbedding(FakeRuntime()))
    # The ids of the last reading; another document with the same passages keeps its own.
    built.delete_ref_doc(read[0].doc_id)
    assert current(index).count() == count - len(split([file()]))
    built.delete_ref_doc(read[2].doc_id)
    names = [each["file_name"] for each in current(index).get()["metadatas"]]
    assert set(names) == {"b.md", "d.md"}


@pytest.mark.parametrize(
    ("document", "again", "replaced"),
    [
        (Document(text="old", id_="a.md"), Document(text="new", id_="a.md"), True),
        (
            Document(text="old", metadata={"source": "a.md"}),
            Document(text="new", metadata={"source": "a.md"}),
            True,
        ),
        # LlamaIndex drew the ids, and nothing names the document.
        (Document(text="old"), Document(text="new"), False),
    ],
)
def test_what_names_a_document(
    index: ChromaIndex, document: Document, again: Document, replaced: bool
) -> None:
    split = SentenceSplitter()
    index.ingest(passages(split([document])))
    index.ingest(passages(split([again])))
    assert current(index).count() == (1 if replaced else 2)


def test_a_metadata_key_may_name_the_document(index: ChromaIndex) -> None:
    for text in ("old", "new"):
        read = [TextNode(text=text, metadata={"url": "u", "source": text})]
        index.ingest(passages(read, document_key="url"))
    assert current(index).get()["documents"] == ["new"]


def test_drawn_ids_alone_double_nothing(index: ChromaIndex, fake: FakeRuntime) -> None:
    def read() -> list[TextNode]:
        return [TextNode(text=f"text {n}", metadata={"n": n}) for n in range(5)]

    index.ingest(passages(read()))
    fake.texts.clear()
    report = index.ingest(passages(read()))
    assert (report.added, report.updated, report.removed) == (0, 5, 0)
    assert len(set(fake.texts)) == 1


# What comes back


def test_a_retrieved_node_is_the_one_that_was_ingested(index: ChromaIndex) -> None:
    node = TextNode(
        text="a text",
        metadata={"title": "T", "source": "a.md", "when": date(2024, 1, 5), "tags": []},
        excluded_llm_metadata_keys=["source"],
    )
    assert index.ingest(passages([node])).failed == ()
    (found,) = retriever(index, 1).retrieve("x")
    assert found.node.node_id == node.node_id
    assert found.node.get_content(MetadataMode.NONE) == "a text"
    # The mark of who embedded it is shown to nobody.
    expected = "title: T\nwhen: 2024-01-05\ntags: []\n\na text"
    assert found.node.get_content(MetadataMode.LLM) == expected
    key = title_key_of(index.open().metadata)
    assert embedded_parts(found.node.metadata, "a text", key) == ("a text", "T")
    assert index.ingest(passages([found.node])).unchanged == 1
    assert embedded_parts(node.metadata, "a text", key) is None


def test_metadata_without_a_json_form_is_reported_with_its_place(index: ChromaIndex) -> None:
    class Strange:
        pass

    read = [
        TextNode(text="good", metadata={"source": "a.md", "when": date(2024, 1, 5)}),
        TextNode(text="bad", metadata={"source": "b.md", "what": Strange()}),
        TextNode(text="good too", metadata={"source": "c.md"}),
    ]
    report = index.ingest(passages(read))
    assert report.added == 2
    (failure,) = report.failed
    assert (failure.index, failure.source) == (1, "b.md")
    assert "metadata 'what' is" in failure.reason
