"""An index that most tests of collections begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import FakeRuntime
from notes import documents

from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex


@pytest.fixture
def index(fake: FakeRuntime, tmp_path: Path) -> Iterator[ChromaIndex]:
    """It has the fake model and a folder of its own, and is not open yet."""
    with ChromaIndex(tmp_path / "db", "notes", Embedder(fake)) as opened:
        yield opened


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaIndex]:
    """An index for refusals, which change nothing."""
    folder = tmp_path_factory.mktemp("shared")
    with ChromaIndex(folder / "db", "notes", Embedder(FakeRuntime())) as opened:
        opened.ingest(documents(30))
        yield opened
