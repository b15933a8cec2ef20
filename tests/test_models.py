"""The model table: a row for each model, found by config, hub id or server tag."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeRuntime

from gemma_embed import Embedder
from gemma_embed.errors import ConfigurationError, WrongModel
from gemma_embed.models import (
    BUNDLED,
    EMBEDDINGGEMMA_300M,
    model_of_config,
    model_of_ollama_tag,
    model_of_repository,
    table,
)

CONFIG = {"model_type": "gemma3_text", "hidden_size": 768}
OTHER = replace(
    EMBEDDINGGEMMA_300M,
    name="other",
    repository="someone/other",
    onnx_repository=None,
    ollama_tag="other:1b",
    config={"hidden_size": 96},
)


@pytest.fixture
def two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MODELS", (EMBEDDINGGEMMA_300M, OTHER))


@pytest.mark.parametrize(
    "value", [256.0, np.float64(256), True, np.bool_(True), "256", None, [256], 0, -128, 300]
)
def test_dimensions_are_refused_by_the_constructor(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"dimensions=.*768, 512, 256, 128"):
        EMBEDDINGGEMMA_300M.checked_dimensions(value)  # type: ignore[arg-type]
    if value is not None:
        with pytest.raises(ConfigurationError, match="dimensions="):
            Embedder(FakeRuntime(), dimensions=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.int64(256), np.uint16(256), np.array(256)])
def test_numpy_integers_are_accepted_as_widths(value: int) -> None:
    width = EMBEDDINGGEMMA_300M.checked_dimensions(value)
    assert type(width) is int
    assert width == 256
    embedder, plain = (Embedder(FakeRuntime(), dimensions=each) for each in (value, 256))
    assert embedder.fingerprint == plain.fingerprint
    np.testing.assert_array_equal(embedder.embed(["a"]), plain.embed(["a"]))


def test_a_config_decides_the_row(two_rows: None) -> None:
    assert model_of_config(CONFIG, "here") is EMBEDDINGGEMMA_300M
    assert model_of_config(CONFIG | {"hidden_size": 96}, "here") is OTHER
    with pytest.raises(WrongModel, match=r"here holds a 'bert' model.*embeddinggemma-300m, other"):
        model_of_config({"model_type": "bert"}, "here")
    with pytest.raises(WrongModel, match="holds a None model"):
        model_of_config({}, "here")


def test_a_hub_id_decides_the_row(two_rows: None) -> None:
    assert model_of_repository("google/embeddinggemma-300m") is EMBEDDINGGEMMA_300M
    assert model_of_repository("onnx-community/embeddinggemma-300m-ONNX") is EMBEDDINGGEMMA_300M
    assert model_of_repository("bundled") is BUNDLED
    assert model_of_repository("someone/other") is OTHER
    assert model_of_repository("someone/fine-tune") is EMBEDDINGGEMMA_300M


@pytest.mark.parametrize(
    ("tag", "row"),
    [
        ("embeddinggemma", EMBEDDINGGEMMA_300M),
        ("EmbeddingGemma:300m-qat-q4_0", EMBEDDINGGEMMA_300M),
        ("other", OTHER),
        ("registry.ollama.ai/library/Other:latest", OTHER),
        ("library/other:1b", OTHER),
        ("someone/other:1b", EMBEDDINGGEMMA_300M),
        ("libraryother", EMBEDDINGGEMMA_300M),
        ("other-2:1b", EMBEDDINGGEMMA_300M),
        ("hf.co/someone/embeddinggemma-GGUF:Q8_0", EMBEDDINGGEMMA_300M),
    ],
)
def test_a_tag_decides_the_row(two_rows: None, tag: str, row: object) -> None:
    assert model_of_ollama_tag(tag) is row


ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for package in ("shared", "langchain_gemma_embed", "llamaindex_gemma_embed")
    for path in (ROOT / package).rglob("*.py")
    if path.parent != ROOT / "shared/gemma_embed/models"
)


def constants(source: str) -> Iterator[object]:
    """The constants of a program, without its docstrings."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            yield node.value


def test_the_search_finds_constants() -> None:
    found = list(constants("'doc'\nx = f'a embeddinggemma:300m {y}'\ndef f(n=768): 'doc'"))
    assert any("embeddinggemma" in str(each) for each in found)
    assert 768 in found
    assert "doc" not in found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_constants_of_models_are_only_in_the_table(path: Path) -> None:
    places = {
        place
        for row in (*table.MODELS, BUNDLED)
        for place in (row.name, row.repository, row.onnx_repository, row.ollama_tag)
        if place is not None and place != "bundled"
    }
    for each in constants(path.read_text()):
        assert each != EMBEDDINGGEMMA_300M.width
        if isinstance(each, str):
            assert not any(place in each for place in places), each
