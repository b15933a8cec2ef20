"""Fixtures that several test files share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before any library reads them: tests make no connections.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["ANONYMIZED_TELEMETRY"] = "False"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Threads that wait for work keep a core busy, which another worker needs.
    threads = max(1, (os.cpu_count() or 1) // int(workers))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))

import checkpoints
import pytest
from fakes import FakeRuntime

from gemma_embed.runtimes import TransformersRuntime

if TYPE_CHECKING:
    from llamaindex_gemma_embed import GemmaEmbedding


@pytest.fixture
def fake() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def embedding(fake: FakeRuntime) -> GemmaEmbedding:
    from llamaindex_gemma_embed import GemmaEmbedding

    return GemmaEmbedding(fake)


@pytest.fixture
def settings(embedding: GemmaEmbedding) -> Iterator[GemmaEmbedding]:
    """LlamaIndex's, with that one as its embed model."""
    from llama_index.core import Settings

    before = Settings._embed_model
    Settings.embed_model = embedding
    yield embedding
    Settings._embed_model = before


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the tests their own cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
            patch.setenv(variable, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small valid checkpoint that tests only read."""
    return checkpoints.build(tmp_path_factory.mktemp("narrow"), checkpoints.SHAPES["narrow"])


@pytest.fixture(scope="session")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint that can be written as GGUF; tests only read it."""
    shape = checkpoints.SHAPES["even"]
    tokenizer = checkpoints.scored_tokenizer_json(shape.vocabulary)
    return checkpoints.build(tmp_path_factory.mktemp("even"), shape, tokenizer=tokenizer)


@pytest.fixture(scope="session")
def local(narrow: Path) -> TransformersRuntime:
    """A runtime on this checkpoint, loaded once."""
    return TransformersRuntime(narrow, device="cpu")


@pytest.fixture
def examined_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``check`` examine a folder in this process: another one imports Chroma first."""
    from chromadb.api import ClientAPI

    from gemma_embed.chroma import health, index

    def examine_folder(
        client: ClientAPI, folder: Path, name: str, dimensions: int, timeout: float | None
    ) -> int:
        assert timeout is None
        return health.examine(client.get_collection(name, embedding_function=None), dimensions)

    monkeypatch.setattr(index, "examine_folder", examine_folder)


@pytest.fixture(autouse=True)
def _nothing_known_of_servers() -> None:
    """Forget servers: another test's may have had the same port, and a model of this digest."""
    service = sys.modules.get("gemma_embed.runtimes.ollama.service")
    if service is not None:
        service.CHECKED.clear()


@pytest.fixture(autouse=True)
def _no_server_from_outside(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if request.node.get_closest_marker("ollama") is None:
        for name in ("OLLAMA_HOST", "OLLAMA_API_KEY"):
            monkeypatch.delenv(name, raising=False)
