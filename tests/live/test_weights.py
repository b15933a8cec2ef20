"""EmbeddingGemma's real weights give the published numbers. Run with

GEMMA_EMBED_WEIGHTS=google/embeddinggemma-300m pytest -m weights tests/live
"""

from __future__ import annotations

import os
import random

import numpy as np
import pytest

from gemma_embed import Embedder
from gemma_embed.runtimes import OnnxRuntime, TransformersRuntime
from gemma_fast.bpe import BpeTokenizer

pytestmark = [
    pytest.mark.weights,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        "GEMMA_EMBED_WEIGHTS" not in os.environ,
        reason="needs EmbeddingGemma's weights; run: "
        "GEMMA_EMBED_WEIGHTS=google/embeddinggemma-300m pytest -m weights tests/live",
    ),
]

QUERY = "Which planet is known as the Red Planet?"
PLANETS = [
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
]


@pytest.fixture(scope="module")
def runtime() -> TransformersRuntime:
    return TransformersRuntime(os.environ["GEMMA_EMBED_WEIGHTS"], device="cpu")


@pytest.mark.parametrize(
    ("dimensions", "published"),
    # huggingface.co/blog/embeddinggemma, fp32.
    [(768, [0.3011, 0.6359, 0.4930, 0.4889]), (256, [0.4016, 0.6715, 0.5283, 0.5261])],
)
def test_planets(runtime: TransformersRuntime, dimensions: int, published: list[float]) -> None:
    embedder = Embedder(runtime, dimensions=dimensions)
    scores = embedder.embed_documents(PLANETS) @ embedder.embed_query(QUERY)
    np.testing.assert_allclose(scores, published, atol=1e-3)


def test_vectors_start_like_an_independent_export(runtime: TransformersRuntime) -> None:
    # The ONNX export's first numbers, from qdrant/fastembed's tests.
    embedder = Embedder(runtime)
    document = [-0.08181356, 0.0214127, 0.05120273, -0.03690156, -0.0254504]
    query = [-0.22990295, 0.03311195, 0.04290345, -0.03558498, -0.01399477]
    np.testing.assert_allclose(
        embedder.embed_documents(["hello world"])[0, :5], document, atol=1e-3
    )
    np.testing.assert_allclose(embedder.embed_query("hello world")[:5], query, atol=1e-3)


def test_the_lean_tokenizer_reads_gemmas_tokenizer(runtime: TransformersRuntime) -> None:
    lean = OnnxRuntime(os.environ["GEMMA_EMBED_WEIGHTS"], precision="int8")._load().tokenize
    assert isinstance(lean, BpeTokenizer)
    # The entry that spans two words is ">▁</".
    pieces = [">", " ", "</", "<", "/", "  ", "▁", "p", "> </", "</p>", "\n\n", "<b>", "é", "中"]
    source = random.Random(0)
    texts = ["".join(source.choices(pieces, k=source.randint(1, 30))) for _ in range(3000)]
    assert lean(texts) == runtime._load().tokenize(texts)
