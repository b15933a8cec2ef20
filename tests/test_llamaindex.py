"""The LlamaIndex class: its contract, its fields, and its use in LlamaIndex."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeRuntime, vector_of
from langchain_core.documents import Document as LangChainDocument
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from ollama_server import OllamaServer

from gemma_embed.errors import ConfigurationError, InvalidInput
from gemma_embed.runtimes import Batch, OllamaRuntime, TooLong, TransformersRuntime
from llamaindex_gemma_embed import GemmaEmbedding, GemmaTitles, passages

DOCUMENT = "title: none | text: "


QUERY = "task: search result | query: "


def test_it_is_a_base_embedding() -> None:
    assert BaseEmbedding in GemmaEmbedding.__mro__
    assert GemmaEmbedding.class_name() == "GemmaEmbedding"


def test_sync_methods(embedding: GemmaEmbedding, fake: FakeRuntime) -> None:
    query = embedding.get_query_embedding("a\n b ")
    text = embedding.get_text_embedding(" c")
    texts = embedding.get_text_embedding_batch(["d", "e"])
    assert fake.texts == [QUERY + "a\n b ", DOCUMENT + " c", DOCUMENT + "d", DOCUMENT + "e"]
    for vector in (query, text, *texts):
        assert type(vector) is list
        assert type(vector[0]) is float
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    assert embedding.get_agg_embedding_from_queries(["a"]) == embedding.get_query_embedding("a")


async def test_async_methods_give_the_same(embedding: GemmaEmbedding) -> None:
    assert await embedding.aget_query_embedding("a") == embedding.get_query_embedding("a")
    assert await embedding.aget_text_embedding("a") == embedding.get_text_embedding("a")
    texts = [f"{i}" for i in range(20)]
    theirs = await embedding.aget_text_embedding_batch(texts)
    assert theirs == embedding.get_text_embedding_batch(texts)


def test_three_event_loops_in_a_row() -> None:
    with OllamaServer() as server:
        embedding = GemmaEmbedding(OllamaRuntime(host=server.url))
        first, _, third = [asyncio.run(embedding.aget_query_embedding("x")) for _ in range(3)]
    assert first == third


class Slow(FakeRuntime):
    running = most = 0

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        type(self).running += 1
        type(self).most = max(self.most, self.running)
        time.sleep(0.05)
        type(self).running -= 1
        yield from super().embed(texts)


async def test_async_batches_are_bounded_and_do_not_block() -> None:
    embedding = GemmaEmbedding(Slow(), embed_batch_size=2)
    beats = 0

    async def heartbeat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.005)
            beats += 1

    beating = asyncio.create_task(heartbeat())
    vectors = await embedding.aget_text_embedding_batch([f"{i}" for i in range(60)])
    beating.cancel()
    assert len(vectors) == 60
    assert 1 < Slow.most <= 4
    assert beats > 20


def test_batches_have_the_requested_size(fake: FakeRuntime) -> None:
    GemmaEmbedding(fake, embed_batch_size=7).get_text_embedding_batch([f"{i}" for i in range(20)])
    assert fake.calls == 3


@pytest.mark.parametrize("dimensions", [768, 512, 256, 128])
def test_every_width(fake: FakeRuntime, dimensions: int) -> None:
    vector = GemmaEmbedding(fake, dimensions=dimensions).get_text_embedding("a")
    expected = vector_of(DOCUMENT + "a")[:dimensions]
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-7)


CHANGES: list[dict[str, Any]] = [
    {"dimensions": 256},
    {"query_task": "fact checking"},
    {"document_task": "clustering"},
    {"overlong": "split"},
    {"runtime": TransformersRuntime("other/model")},
    {"runtime": TransformersRuntime(revision="v2")},
    {"runtime": TransformersRuntime(dtype="bfloat16")},
    {"runtime": OllamaRuntime()},
    {"runtime": OllamaRuntime("embeddinggemma:300m-qat-q4_0")},
    {"runtime": OllamaRuntime(host="http://127.0.0.1:9999")},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_each_setting_is_in_to_dict_and_restored(change: dict[str, Any]) -> None:
    base = GemmaEmbedding()
    changed = GemmaEmbedding(**change)
    written = changed.to_dict()
    assert written != base.to_dict()
    again = GemmaEmbedding.from_dict(json.loads(json.dumps(written)))
    assert again.to_dict() == written
    assert again.runtime.settings == changed.runtime.settings


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_pydantic_round_trip(change: dict[str, Any]) -> None:
    embedding = GemmaEmbedding(**change, store="vectors.sqlite", embed_batch_size=7)
    again = GemmaEmbedding.model_validate(embedding.model_dump())
    assert again.to_dict() == embedding.to_dict()
    again = GemmaEmbedding.model_validate_json(embedding.model_dump_json())
    assert again.to_dict() == embedding.to_dict()
    assert "runtime" in GemmaEmbedding.model_json_schema()["properties"]


def test_equal_settings_are_equal_dicts() -> None:
    assert GemmaEmbedding().to_dict() == GemmaEmbedding().to_dict()


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"dimension": 256}, ConfigurationError),
        ({"device": "cpu"}, ConfigurationError),
        ({"base_url": "http://localhost:11434"}, ConfigurationError),
        ({"query_instruction": "query: "}, ConfigurationError),
        ({"class_name": "OpenAIEmbedding"}, ConfigurationError),
        ({"dimensions": 100}, ConfigurationError),
        ({"query_task": "search"}, ConfigurationError),
        ({"overlong": "cut"}, ConfigurationError),
        ({"runtime": "torch"}, ConfigurationError),
        ({"runtime": {"runtime": "ollama", "port": 1}}, ConfigurationError),
        ({"runtime": OllamaRuntime(), "model": "x"}, ConfigurationError),
        ({"model": "a", "model_name": "b"}, ConfigurationError),
        ({"embed_batch_size": 0}, ValueError),
        ({"embeddings_cache": SimpleKVStore()}, ConfigurationError),
    ],
)
def test_bad_options_are_refused_by_the_constructor(
    options: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        GemmaEmbedding(**options)


def test_the_role_blind_cache_is_refused_on_assignment(embedding: GemmaEmbedding) -> None:
    with pytest.raises(ConfigurationError, match="pull/23181"):
        embedding.embeddings_cache = SimpleKVStore()
    assert embedding.embeddings_cache is None
    copied = embedding.model_copy(update={"embeddings_cache": SimpleKVStore()})
    with pytest.raises(ConfigurationError, match="pull/23181"):
        copied.get_text_embedding("Paris")


def test_assignments_take_effect_or_are_refused(
    embedding: GemmaEmbedding, fake: FakeRuntime, tmp_path: Path
) -> None:
    embedding.dimensions = 128
    embedding.store = tmp_path / "vectors.sqlite"
    assert len(embedding.get_text_embedding("a")) == 128
    assert (tmp_path / "vectors.sqlite").exists()
    before = embedding.to_dict()
    for name, value in {
        "dimensions": 100,
        "query_task": "search",
        "overlong": "cut",
        "store": 5,
        "runtime": "torch",
        "model_name": "other",
        "typo": 1,
    }.items():
        with pytest.raises(ValueError, match=r".+"):
            setattr(embedding, name, value)
    assert embedding.to_dict() == before
    embedding.runtime = "ollama"
    assert embedding.model_name == embedding.to_payload()["model_name"] == "embeddinggemma:300m"


def test_model_name_names_the_running_model() -> None:
    assert GemmaEmbedding().model_name == "google/embeddinggemma-300m"
    assert GemmaEmbedding("ollama").model_name == "embeddinggemma:300m"
    assert GemmaEmbedding("ollama", model_name="embeddinggemma:x").model_name == "embeddinggemma:x"


COPIES: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    lambda e: e.model_copy(deep=True),
    lambda e: pickle.loads(pickle.dumps(e)),
]


@pytest.mark.parametrize("again", COPIES)
def test_copies_work(narrow: Path, again: Callable[[Any], Any]) -> None:
    embedding = GemmaEmbedding(TransformersRuntime(narrow, device="cpu"), dimensions=128)
    expected = embedding.get_query_embedding("x")
    copied = again(embedding)
    assert copied.to_dict() == embedding.to_dict()
    np.testing.assert_allclose(copied.get_query_embedding("x"), expected, atol=1e-6)


def test_for_task_shares_the_model(embedding: GemmaEmbedding, fake: FakeRuntime) -> None:
    sibling = embedding.for_task("clustering")
    sibling.get_text_embedding("a")
    assert fake.texts == ["task: clustering | query: a"]
    assert sibling.runtime is fake
    assert embedding.document_task == "document"


def test_settings_and_vector_store_index(settings: GemmaEmbedding) -> None:
    documents = [Document(text=text, metadata={}) for text in "abc"]
    index = VectorStoreIndex.from_documents(documents)
    (found,) = index.as_retriever(similarity_top_k=1).retrieve("b")
    query = vector_of(QUERY + "b")
    best = max("abc", key=lambda text: query @ vector_of(DOCUMENT + text))
    assert found.text == best
    assert found.score == pytest.approx(query @ vector_of(DOCUMENT + best), abs=1e-5)


def test_ingestion_cache_depends_on_each_setting(fake: FakeRuntime) -> None:
    cache = IngestionCache()
    nodes = [TextNode(text="a", id_="1")]

    def width(dimensions: int) -> int:
        embedding = GemmaEmbedding(fake, dimensions=dimensions)
        pipeline = IngestionPipeline(transformations=[embedding], cache=cache)
        (node,) = pipeline.run(nodes=nodes)
        return len(node.embedding or [])

    assert [width(768), width(128), width(128)] == [768, 128, 128]
    assert fake.calls == 2


def test_ingestion_pipeline_with_workers(narrow: Path) -> None:
    embedding = GemmaEmbedding(TransformersRuntime(narrow, device="cpu"), dimensions=128)
    pipeline = IngestionPipeline(transformations=[GemmaTitles(), embedding], disable_cache=True)
    nodes = [TextNode(text=f"text {i}", metadata={"title": f"T{i}"}) for i in range(4)]
    done = pipeline.run(nodes=nodes, num_workers=2)
    expected = embedding.embedder.embed(
        [f"text {i}" for i in range(4)], titles=[f"T{i}" for i in range(4)]
    )
    by_text = {node.text: node.embedding for node in done}
    for i in range(4):
        np.testing.assert_allclose(by_text[f"text {i}"], expected[i], atol=1e-6)


def test_a_missing_llamaindex_is_an_error_with_the_install_command() -> None:
    script = (
        "import sys; sys.modules['llama_index'] = None\n"
        "from gemma_embed.errors import MissingDependency\n"
        "try: import llamaindex_gemma_embed\n"
        "except MissingDependency as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install 'gemma-embed[llamaindex]'" in ran.stdout


def test_a_runtime_without_settings_has_the_models_name() -> None:
    class Nameless(FakeRuntime):
        settings = {}

    assert GemmaEmbedding(Nameless()).model_name == "embeddinggemma-300m"


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ([LangChainDocument("a canary")], "langchain_gemma_embed.passages"),
        ("a canary", r"pass a list of Document\("),
        (["a canary"], r"pass a list of Document\("),
        ([NodeWithScore(node=TextNode(text="a canary"))], r"pass its \.node"),
        ([{"text": "a canary"}], r"pass dictionaries to ingest\(\) directly"),
    ],
)
def test_passages_of_other_kinds_are_refused(given: Any, advice: str) -> None:
    with pytest.raises(InvalidInput, match=f"is not a LlamaIndex node: .*{advice}") as caught:
        list(passages(given))
    assert caught.value.index == 0
    assert "canary" not in str(caught.value)
