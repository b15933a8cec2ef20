"""The code of docs/stores.md: right neighbours, scores that are cosines, no other space."""

from __future__ import annotations

import gc
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import postgres
import pytest
from fakes import FakeRuntime

from gemma_embed.errors import CollectionMismatch
from gemma_embed.testing import bundled_runtime
from langchain_gemma_embed import GemmaEmbeddings
from llamaindex_gemma_embed import GemmaEmbedding

pytestmark = [
    pytest.mark.stores,
    # Of the stores and their classes, which nothing closes here.
    pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Payload indexes have no effect:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:table_names\(\) is deprecated"),
]
for package in ("langchain_qdrant", "lancedb", "faiss", "sqlite_vec", "langchain_postgres"):
    pytest.importorskip(package, reason=f"needs {package}: make stores")

PAGE = Path(__file__).parents[2] / "docs" / "stores.md"
NOTES = sorted((PAGE.parents[1] / "examples" / "notes").glob("*.md"))
TEXTS = [path.read_text("utf-8")[:400] for path in NOTES]
QUERY = "How do I recover a lost commit?"
HALF = len(TEXTS) // 2


@dataclass
class Kind:
    """A section of the page.

    Attributes:
        heading: Its own.
        block: Which of its blocks.
        cosine: What makes a cosine of a score.
        relevance: What a relevance score should be, from the cosine; None without them.
    """

    heading: str
    block: int
    cosine: Callable[[float], float]
    relevance: Callable[[float], float] | None = None

    def opened(self) -> Callable[..., Any]:
        """Run the block, in a process that knows nothing of others."""
        section = PAGE.read_text("utf-8").split(f"## {self.heading}\n")[1].split("\n## ")[0]
        code = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)[self.block]
        names: dict[str, Any] = {}
        exec(compile(code, str(PAGE), "exec"), names)
        function: Callable[..., Any] = names["opened"]
        return function


def same(score: float) -> float:
    return score


def half(cosine: float) -> float:
    return (1 + cosine) / 2


LANGCHAIN = {
    "qdrant": Kind("Qdrant", 0, same, half),
    "lancedb": Kind("LanceDB", 0, lambda squared: 1 - squared / 2, half),
    "faiss": Kind("FAISS", 0, same, half),
    "sqlite": Kind("SQLite", 0, lambda distance: 1 - distance),
    "postgres": Kind("PostgreSQL", 0, lambda distance: 1 - distance, same),
}
LLAMAINDEX = {
    "qdrant": Kind("Qdrant", 1, same),
    "lancedb": Kind("LanceDB", 1, lambda score: 1 + log(score) / 2),
    "faiss": Kind("FAISS", 1, same),
    "postgres": Kind("PostgreSQL", 1, same),
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with postgres.server() as url:
        yield url


@pytest.fixture
def arguments(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """What ``opened`` takes beside the embeddings, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    name = request.node.callspec.params["name"]
    if name == "sqlite" and not hasattr(sqlite3.Connection, "enable_load_extension"):
        binary = pytest.importorskip("pysqlite3", reason="this Python's SQLite loads no extension")
        monkeypatch.setitem(sys.modules, "sqlite3", binary)
    if name != "postgres":
        return []
    import psycopg

    url: str = request.getfixturevalue("url")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute("DROP TABLE IF EXISTS notes, data_notes")
    return [url]


def expected(embeddings: GemmaEmbeddings) -> tuple[list[int], list[float]]:
    """The nearest five by brute force, and their cosines."""
    cosines = np.array(embeddings.embed_documents(TEXTS)) @ embeddings.embed_query(QUERY)
    best = np.argsort(-cosines)[:5].tolist()
    return best, cosines[best].tolist()


@pytest.mark.parametrize("name", LANGCHAIN)
def test_langchain(name: str, arguments: list[str]) -> None:
    kind, embeddings = LANGCHAIN[name], GemmaEmbeddings(bundled_runtime(), dimensions=256)
    opened = kind.opened()
    if name == "faiss":
        store = opened(embeddings, TEXTS)
    else:
        store = opened(embeddings, *arguments)
        # In two calls, since a class may replace what an earlier one added.
        store.add_texts(TEXTS[:HALF])
        store.add_texts(TEXTS[HALF:])
    del store
    gc.collect()

    # Refused, and still there afterwards.
    others = [
        GemmaEmbeddings(FakeRuntime(), dimensions=256),
        GemmaEmbeddings(bundled_runtime(), dimensions=128),
        GemmaEmbeddings(bundled_runtime(), dimensions=256, document_task="clustering"),
    ]
    for other, fact in zip(others, ("runtime is", "dimensions is", "prompt is"), strict=True):
        with pytest.raises(CollectionMismatch, match=fact):
            opened(other, *arguments)
        gc.collect()

    store = opened(embeddings, *arguments)
    rows, cosines = expected(embeddings)
    found = store.similarity_search_with_score(QUERY, k=5)
    assert [TEXTS.index(document.page_content) for document, _ in found] == rows
    assert [kind.cosine(float(score)) for _, score in found] == pytest.approx(cosines, abs=1e-5)
    if kind.relevance is None:
        with pytest.raises(NotImplementedError):
            store.similarity_search_with_relevance_scores(QUERY, k=5)
    else:
        relevant = store.similarity_search_with_relevance_scores(QUERY, k=5)
        scores = [float(score) for _, score in relevant]
        assert scores == pytest.approx([kind.relevance(c) for c in cosines], abs=1e-5)
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("name", LLAMAINDEX)
def test_llamaindex(name: str, arguments: list[str]) -> None:
    from llama_index.core import StorageContext, VectorStoreIndex
    from llama_index.core.schema import TextNode

    kind, embed_model = LLAMAINDEX[name], GemmaEmbedding(bundled_runtime(), dimensions=256)
    nodes = [TextNode(text=text) for text in TEXTS]
    opened = kind.opened()
    if name == "faiss":
        opened(embed_model, nodes)
    else:
        store = opened(embed_model, *arguments)
        context = StorageContext.from_defaults(vector_store=store)
        VectorStoreIndex(nodes[:HALF], storage_context=context, embed_model=embed_model)
        del store, context
        gc.collect()
        store = opened(embed_model, *arguments)
        index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
        index.insert_nodes(nodes[HALF:])
        del store, index
    gc.collect()

    with pytest.raises(CollectionMismatch, match="runtime is"):
        opened(GemmaEmbedding(FakeRuntime(), dimensions=256), *arguments)
    gc.collect()

    index = opened(embed_model, *arguments)
    if name != "faiss":
        index = VectorStoreIndex.from_vector_store(index, embed_model=embed_model)
    found = index.as_retriever(similarity_top_k=5).retrieve(QUERY)
    rows, cosines = expected(GemmaEmbeddings(bundled_runtime(), dimensions=256))
    assert [TEXTS.index(each.node.get_content()) for each in found] == rows
    assert [kind.cosine(each.score) for each in found] == pytest.approx(cosines, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in LANGCHAIN if name != "faiss"])
def test_an_index_without_a_passport_is_refused(name: str, arguments: list[str]) -> None:
    embeddings = GemmaEmbeddings(bundled_runtime(), dimensions=256)
    opened = LANGCHAIN[name].opened()
    opened(embeddings, *arguments).add_texts(TEXTS[:3])
    gc.collect()
    if name == "qdrant":
        from qdrant_client import QdrantClient
        from qdrant_client.models import Distance, VectorParams

        client = QdrantClient(path="qdrant")
        client.delete_collection("notes")
        vectors = VectorParams(size=256, distance=Distance.COSINE)
        client.create_collection("notes", vectors_config=vectors)
        client.close()
    elif name == "postgres":
        import psycopg

        with psycopg.connect(arguments[0]) as connection:
            connection.execute("COMMENT ON TABLE notes IS NULL")
    else:
        (passport,) = Path().rglob("*passport.json")
        passport.unlink()
    with pytest.raises(CollectionMismatch, match="does not say whose vectors"):
        opened(embeddings, *arguments)
