"""EmbeddingGemma as Chroma's own kind of embedding function, without a framework."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings
from chromadb.utils.embedding_functions import known_embedding_functions
from fakes import FakeRuntime, vector_of

from gemma_embed import Embedder, EmbeddingStore
from gemma_embed.chroma import GemmaEmbeddingFunction, check_collection
from gemma_embed.errors import CollectionMismatch, ConfigurationError, InvalidInput
from gemma_embed.runtimes import OllamaRuntime
from gemma_embed.testing import bundled_runtime
from langchain_gemma_embed import GemmaEmbeddings

TEXTS = [
    "Bake the loaf at 230 degrees for half an hour.",
    "The train to Lyon leaves at nine.",
    "Mars is called the Red Planet.",
]


def client(folder: Path) -> Any:
    return chromadb.PersistentClient(str(folder), Settings(anonymized_telemetry=False))


def test_documents_and_queries_have_their_prompts(fake: FakeRuntime, tmp_path: Path) -> None:
    function = GemmaEmbeddingFunction(Embedder(fake, store=tmp_path / "s"))
    (document,) = function(["a"])
    (query,) = function.embed_query(["a"])
    np.testing.assert_allclose(document, vector_of("title: none | text: a"), atol=1e-6)
    np.testing.assert_allclose(query, vector_of("task: search result | query: a"), atol=1e-6)
    assert document.dtype == query.dtype == np.float32
    # Documents are stored, queries are private.
    store = function.embedder.store
    assert store is not None
    assert store.stats().vectors == 1
    with pytest.raises(InvalidInput):
        function([np.zeros((3, 3))])  # type: ignore[list-item]


def test_a_collection_is_filled_and_searched_by_text(tmp_path: Path) -> None:
    function = GemmaEmbeddingFunction(Embedder(bundled_runtime(), dimensions=256))
    with client(tmp_path) as opened:
        held = opened.create_collection("notes", embedding_function=function)
        held.add(ids=["1", "2", "3"], documents=TEXTS)
        assert held.configuration["hnsw"]["space"] == "cosine"
        found = held.query(query_texts=["When does the train go?"], n_results=1)
        assert found["ids"] == [["2"]]
        check_collection(held, function)
        with pytest.raises(CollectionMismatch, match="dimensions is 256 there and 128 here"):
            check_collection(held, GemmaEmbeddings(bundled_runtime(), dimensions=128))
    # Opened again without the function, which Chroma makes from its settings.
    with client(tmp_path) as opened:
        held = opened.get_collection("notes")
        assert held.query(query_texts=["How hot is the bread?"], n_results=1)["ids"] == [["1"]]
        held.add(ids=["4"], documents=["The cat is vaccinated in May."])
        assert held.query(query_texts=["vaccination of the cat"], n_results=1)["ids"] == [["4"]]
        same = opened.get_collection("notes", embedding_function=function)
        assert same.query(query_texts=["a planet"], n_results=1)["ids"] == [["3"]]


@pytest.mark.parametrize(
    "options", [{"dimensions": 128}, {"document_task": "clustering"}, {"overlong": "split"}]
)
def test_a_collection_takes_no_function_of_other_vectors(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    own = Embedder(bundled_runtime(), dimensions=256)
    with client(tmp_path) as opened:
        held = opened.create_collection("notes", embedding_function=GemmaEmbeddingFunction(own))
        held.add(ids=["1", "2", "3"], documents=TEXTS)
        another = GemmaEmbeddingFunction(own.replaced(**options))
        with pytest.raises(CollectionMismatch, match=f"{next(iter(options))} is .* there and"):
            held.modify(configuration={"embedding_function": another})
        same = GemmaEmbeddingFunction(own.replaced(query_task="question answering"))
        held.modify(configuration={"embedding_function": same})
        # Chroma has no hook here; check_collection does.
        got = opened.get_collection("notes", embedding_function=another)
        with pytest.raises(CollectionMismatch, match=f"{next(iter(options))} is .* there and"):
            check_collection(got, another)
        check_collection(got, same)


def test_a_store_in_8_bits_is_another_space(tmp_path: Path) -> None:
    own = Embedder(bundled_runtime())
    exact = GemmaEmbeddingFunction(own.replaced(store=tmp_path / "a"))
    rounded = GemmaEmbeddingFunction(
        own.replaced(store=EmbeddingStore(tmp_path / "b", form="int8"))
    )
    exact.validate_config_update(GemmaEmbeddingFunction(own).get_config(), exact.get_config())
    for old, new in ((exact, rounded), (rounded, exact)):
        with pytest.raises(CollectionMismatch, match="stored is"):
            new.validate_config_update(old.get_config(), new.get_config())


def test_another_program_opens_it_without_the_function(tmp_path: Path) -> None:
    function = GemmaEmbeddingFunction(Embedder(bundled_runtime()))
    with client(tmp_path) as opened:
        opened.create_collection("notes", embedding_function=function).add(
            ids=["1", "2", "3"], documents=TEXTS
        )
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "import chromadb\n"
        "from gemma_embed.chroma import GemmaEmbeddingFunction\n"
        "held = chromadb.PersistentClient(sys.argv[1]).get_collection('notes')\n"
        "print(*held.query(query_texts=['When does the train go?'], n_results=1)['ids'][0])\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), *filter(None, sys.path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "2\n"), run.stderr


def test_its_settings_are_json_without_secrets(tmp_path: Path) -> None:
    embedder = Embedder(
        OllamaRuntime(host="http://10.0.0.1:11434", headers={"Authorization": "Bearer secret"}),
        dimensions=128,
        query_task="fact checking",
        document_task="clustering",
        overlong="split",
        store=tmp_path / "s",
    )
    for given in (embedder, GemmaEmbeddings(embedder.runtime, dimensions=128)):
        function = GemmaEmbeddingFunction(given)
        text = json.dumps(function.get_config())
        assert "secret" not in text
        again = GemmaEmbeddingFunction.build_from_config(json.loads(text))
        assert json.dumps(again.get_config()) == text
    assert GemmaEmbeddingFunction(embedder).get_config()["document_task"] == "clustering"
    assert known_embedding_functions["gemma_embed"] is GemmaEmbeddingFunction
    assert not GemmaEmbeddingFunction(embedder).is_legacy()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "the embedder is NoneType"),
        ("onnx", "the embedder is str"),
        ({}, "runtime"),
        ({"runtime": {"runtime": "onnx", "model": "bundled"}, "typo": 1}, "typo"),
        ({"runtime": {"runtime": "typo"}}, "typo"),
    ],
)
def test_wrong_settings_are_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        GemmaEmbeddingFunction(wrong)


def test_the_package_loads_chroma_only_for_the_function() -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import gemma_embed.chroma as c\n"
        "assert 'chromadb' not in sys.modules\n"
        "assert set(c.__all__) >= {'ChromaIndex', 'GemmaEmbeddingFunction', 'check_collection'}\n"
        "try:\n"
        "    c.nothing\n"
        "except AttributeError as error:\n"
        "    assert 'nothing' in str(error)\n"
    )
    command = [sys.executable, "-c", script, *filter(None, sys.path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
