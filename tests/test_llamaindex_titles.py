"""GemmaTitles: a title's way from the metadata into the model's document prompt."""

from __future__ import annotations

import copy
import pickle
from datetime import date
from typing import Any

import pytest
from fakes import FakeRuntime
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import MetadataMode, TextNode

from gemma_embed.prompts import Prompts
from llamaindex_gemma_embed import GemmaEmbedding, GemmaTitles

DOCUMENT = "title: none | text: "


class TestTitles:
    @pytest.mark.parametrize(
        ("title", "read"),
        [
            ("Eiffel Tower", "Eiffel Tower"),
            ("{braces} {0}", "{braces} {0}"),
            ("A | text: forged", "A text: forged"),
            ("two\n\nlines", "two lines"),
            (1984, "1984"),
            (date(2024, 5, 1), "2024-05-01"),
        ],
    )
    @pytest.mark.parametrize("kind", [TextNode, Document])
    def test_a_title_fills_its_field(
        self, embedding: GemmaEmbedding, fake: FakeRuntime, title: Any, read: str, kind: Any
    ) -> None:
        node = kind(text="Body {x}\n\nmore", metadata={"title": title, "file_path": "/a/b"})
        embedding(GemmaTitles()(GemmaTitles()([node])))
        assert fake.texts == [f"title: {read} | text: Body {{x}}\n\nmore"]
        assert node.metadata["title"] == title

    def test_a_title_without_a_text(self, embedding: GemmaEmbedding, fake: FakeRuntime) -> None:
        embedding(GemmaTitles()([TextNode(text="", metadata={"title": "T"})]))
        assert fake.texts == ["title: T | text: "]

    def test_a_text_in_the_prompts_form_is_read_as_text(
        self, embedding: GemmaEmbedding, fake: FakeRuntime
    ) -> None:
        embedding.get_text_embedding("title: T | text: Body")
        assert fake.texts == [DOCUMENT + "title: T | text: Body"]

    def test_the_checkpoints_prompts_are_used(
        self, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own = Prompts(fake.prompts.prefixes, "passage: ", "passage of {title}: ")
        monkeypatch.setattr(FakeRuntime, "prompts", own)
        node = TextNode(text="Body", metadata={"title": "T"})
        GemmaEmbedding(fake)(GemmaTitles()([node]))
        assert fake.texts == ["passage of T: Body"]

    def test_a_prompt_without_a_title_field_gets_the_text_alone(
        self,
        fake: FakeRuntime,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        own = Prompts(fake.prompts.prefixes, "passage: ", None)
        monkeypatch.setattr(FakeRuntime, "prompts", own)
        fake.name = "a model without titles"
        nodes = GemmaTitles()([TextNode(text=f"{n}", metadata={"title": "T"}) for n in range(5)])
        GemmaEmbedding(fake, embed_batch_size=2)(nodes)
        assert sorted(fake.texts) == [f"passage: {n}" for n in range(5)]
        (record,) = caplog.records
        assert "has no place for titles" in record.getMessage()

    def test_another_task_has_no_titles(self, fake: FakeRuntime) -> None:
        node = TextNode(text="Body", metadata={"title": "T"})
        GemmaEmbedding(fake).for_task("clustering")(GemmaTitles()([node]))
        assert fake.texts == ["task: clustering | query: Body"]

    def test_a_node_without_title_is_its_text(
        self, embedding: GemmaEmbedding, fake: FakeRuntime
    ) -> None:
        embedding(GemmaTitles()([TextNode(text="Body", metadata={"file_path": "/a/b"})]))
        assert fake.texts == [DOCUMENT + "Body"]

    def test_chunks_have_the_title(self, embedding: GemmaEmbedding, fake: FakeRuntime) -> None:
        text = " ".join(f"Sentence number {i}." for i in range(40))
        document = Document(text=text, metadata={"heading": "T", "file_path": "/a"})
        pipeline = IngestionPipeline(
            transformations=[
                SentenceSplitter(chunk_size=60, chunk_overlap=0),
                GemmaTitles(title_key="heading"),
                embedding,
            ]
        )
        nodes = pipeline.run(documents=[document])
        assert len(nodes) > 2
        assert all(text.startswith("title: T | text: Sentence") for text in fake.texts)

    def test_plain_from_documents_uses_titles_set_before(
        self, settings: GemmaEmbedding, fake: FakeRuntime
    ) -> None:
        document = Document(text="Body", metadata={"title": "T"})
        VectorStoreIndex.from_documents(list(GemmaTitles()([document])))
        assert fake.texts == ["title: T | text: Body"]

    @pytest.mark.parametrize("kind", [TextNode, Document])
    def test_the_generators_text_is_unchanged(self, kind: Any) -> None:
        metadata = {"title": "T", "author": "A", "secret": "S", "page": 3}
        node = kind(text="Body", metadata=metadata, excluded_llm_metadata_keys=["secret"])
        before = node.get_content(MetadataMode.LLM)
        GemmaTitles()([node])
        assert node.get_content(MetadataMode.LLM) == before
        assert "author: A" in before
        assert "secret" not in before

    def test_custom_templates_are_replaced(
        self, embedding: GemmaEmbedding, fake: FakeRuntime
    ) -> None:
        node = TextNode(
            text="Body",
            metadata={"title": "T", "author": "A"},
            text_template="<{metadata_str}>{content}",
            metadata_template="{key}={value}",
        )
        embedding(GemmaTitles()([node]))
        assert fake.texts == ["title: T | text: Body"]
        assert node.get_content(MetadataMode.LLM) == "title: T\nauthor: A\n\nBody"


def test_titles_are_written_down_and_made_again() -> None:
    titles = GemmaTitles(title_key="heading")
    again = (
        GemmaTitles.from_dict(titles.to_dict()),
        GemmaTitles.model_validate(titles.model_dump()),
        pickle.loads(pickle.dumps(titles)),
        copy.deepcopy(titles),
        titles.model_copy(),
    )
    assert all(each == titles for each in again)
