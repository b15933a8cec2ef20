"""The real weights as GGUF files, and a llama-server on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from gguf_files import llama_server

from gemma_embed.export import export_gguf
from gemma_fast.gguf_file import GgufPrecision

Exported = Callable[[GgufPrecision], Path]


def can_serve() -> bool:
    """Whether a llama-server can be started on the real weights here."""
    return "GEMMA_EMBED_WEIGHTS" in os.environ and all(map(find_spec, ("gguf", "xllamacpp")))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Write the real weights as GGUF, once for each precision."""
    if not can_serve():
        pytest.skip('needs GEMMA_EMBED_WEIGHTS=<folder> and pip install ".[gguf]"')
    folder = tmp_path_factory.mktemp("gguf")

    def write(precision: GgufPrecision) -> Path:
        path = folder / f"embeddinggemma-{precision}.gguf"
        if not path.exists():
            export_gguf(os.environ["GEMMA_EMBED_WEIGHTS"], path, precision=precision)
        return path

    return write


@pytest.fixture(scope="session")
def llama_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a real llama-server: the one that is named, or one started here."""
    if "GEMMA_EMBED_LLAMA_SERVER" in os.environ:
        yield os.environ["GEMMA_EMBED_LLAMA_SERVER"]
        return
    with llama_server(request.getfixturevalue("exported")("q8_0")) as url:
        yield url
