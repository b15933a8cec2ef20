"""A model is one row: here with another context, prompts and widths, without Dense layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from gemma_embed import Embedder
from gemma_embed.errors import ConfigurationError, InputTooLong, WrongModel
from gemma_embed.models import EMBEDDINGGEMMA_300M, table
from gemma_embed.prompts import Prompts
from gemma_embed.runtimes import OnnxRuntime, TransformersRuntime

SHAPE = checkpoints.Shape(96, 6, 3, 32, 128, None, 2000)
SECOND = replace(
    EMBEDDINGGEMMA_300M,
    name="second",
    width=96,
    dimensions=(96, 48),
    context=700,
    prompts=Prompts(prefixes={"query": "ask: "}, document="text: ", titled="{title}: text: "),
    prompt_keys={"query": "query", "document": "document"},
    symmetric_tasks=frozenset(),
    dense_layers=0,
    repository="someone/second",
    onnx_repository=None,
    ollama_tag="second",
    config={"hidden_size": 96},
)
TEXTS = ["", "Mars is red.", "the sea at night " * 30, "ü😀 中文"]
LONG = "rain and wind " * 600


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MODELS", (EMBEDDINGGEMMA_300M, SECOND))


@pytest.fixture(scope="module", params=["published", "saved"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.build(
        tmp_path_factory.mktemp("second"),
        SHAPE,
        layout=request.param,
        context=700,
        prompts={"query": "ask: ", "document": "text: "},
    )


@pytest.fixture(scope="module")
def reference(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


@pytest.mark.parametrize("kind", [TransformersRuntime, OnnxRuntime])
def test_vectors_are_the_references(
    folder: Path, reference: SentenceTransformer, kind: Any
) -> None:
    embedder = Embedder(kind(folder), overlong="truncate")
    assert embedder.runtime.model == SECOND
    texts = [*TEXTS, LONG]
    expected = reference.encode(texts, prompt_name="document")
    np.testing.assert_allclose(embedder.embed(texts), expected, atol=2e-5)
    query = reference.encode(["red?"], prompt_name="query")[0]
    np.testing.assert_allclose(embedder.embed_query("red?"), query, atol=2e-5)
    assert embedder.embed(TEXTS, titles=["t"] * 4).shape == (4, 96)

    narrow = Embedder(kind(folder), dimensions=48)
    cut = reference.encode(TEXTS, prompt_name="document")[:, :48]
    cut /= np.linalg.norm(cut, axis=1, keepdims=True)
    np.testing.assert_allclose(narrow.embed(TEXTS), cut, atol=2e-5)
    with pytest.raises(InputTooLong) as caught:
        narrow.embed(["a", LONG])
    assert (caught.value.index, caught.value.limit) == (1, 700)


@pytest.mark.parametrize("kind", [TransformersRuntime, OnnxRuntime])
def test_widths_and_tasks_are_known_before_loading(
    folder: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "_open", None)
    assert Embedder(kind(folder)).embed([]).shape == (0, 96)
    with pytest.raises(ConfigurationError, match=r"not a width that second.*96, 48"):
        Embedder(kind(folder), dimensions=768)
    embedder = Embedder(kind(folder))
    # In the first row this task is symmetric.
    assert embedder.for_task("query").document_task == "document"


def test_a_hub_ids_row_is_found_by_its_name() -> None:
    assert TransformersRuntime("someone/second").model == SECOND
    assert OnnxRuntime("someone/fine-tune").model == EMBEDDINGGEMMA_300M
    assert TransformersRuntime("bundled").model.name == "gemma-embed-bundled"


@pytest.mark.parametrize("kind", [TransformersRuntime, OnnxRuntime])
def test_weights_of_another_row_are_an_error_with_the_right_call(tmp_path: Path, kind: Any) -> None:
    # The first row is assumed, because the folder did not exist yet.
    runtime = kind(tmp_path / "later")
    assert runtime.model == EMBEDDINGGEMMA_300M
    folder = checkpoints.build(tmp_path / "later", SHAPE, context=700)
    with pytest.raises(WrongModel, match=f"holds second.*model='{folder}'"):
        Embedder(runtime).embed(["a"])
    assert Embedder(kind(folder)).embed(["a"]).shape == (1, 96)
