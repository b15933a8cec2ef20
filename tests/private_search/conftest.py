"""Libraries over small folders, and one over the sample, with the bundled model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gemma_embed.runtimes import OnnxRuntime
from private_search.__main__ import sample
from private_search.documents import Source
from private_search.library import Library

Open = Callable[..., Library]


@pytest.fixture(scope="session")
def bundled() -> OnnxRuntime:
    return OnnxRuntime("bundled")


@pytest.fixture
def opened(tmp_path: Path, bundled: OnnxRuntime) -> Iterator[Open]:
    """Open the library of this test, again and again; it begins empty."""
    libraries: list[Library] = []

    def open_library(*sources: Source, dimensions: int | None = None) -> Library:
        for library in libraries:
            library.close()
        libraries[:] = [Library(tmp_path / "library", bundled, dimensions=dimensions)]
        libraries[0].add(*sources)
        return libraries[0]

    yield open_library
    for library in libraries:
        library.close()


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory, bundled: OnnxRuntime) -> Iterator[Library]:
    """The sample; nobody writes to it."""
    with Library(tmp_path_factory.mktemp("shelf"), bundled) as library:
        library.add(*sample())
        library.update()
        yield library
