"""MLX gives the reference's vectors. Run with pip install "mlx[cpu]" on Linux, "mlx" on a Mac."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import checkpoints
import numpy as np
import pytest

from gemma_embed import Embedder
from gemma_embed.errors import ConfigurationError
from gemma_embed.runtimes import MlxRuntime, TransformersRuntime

NOTES = [path.read_text() for path in sorted(checkpoints.NOTES.glob("*.md"))]
TEXTS = ["", "Mars is red.", "ü😀 中文", *NOTES[::16]]
LONG = "\n\n".join(NOTES)


@pytest.fixture
def computes() -> None:
    pytest.importorskip("mlx.core", reason='needs MLX; run: pip install "mlx[cpu]" (Mac: "mlx")')


@pytest.mark.parametrize("name", ["bundled", "narrow"])
def test_vectors_are_the_references(name: str, narrow: Path, computes: None) -> None:
    model = narrow if name == "narrow" else name
    embedder = Embedder(MlxRuntime(model))
    reference = Embedder(TransformersRuntime(model, device="cpu"))
    # Beyond the window of 257 tokens to either side.
    texts = [*TEXTS, LONG[: {"bundled": 6000, "narrow": 2000}[name]]]
    assert max(reference.runtime.count_tokens(texts)) > 600
    vectors = reference.embed_documents(texts)
    np.testing.assert_allclose(embedder.embed_documents(texts), vectors, atol=1e-5)
    alone = np.concatenate([embedder.embed_documents([text]) for text in texts])
    np.testing.assert_allclose(alone, vectors, atol=1e-5)


def test_threads_and_pickles(computes: None) -> None:
    embedder = Embedder(MlxRuntime("bundled"))
    vectors = embedder.embed(TEXTS[:3])
    found: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: found.append(embedder.embed(TEXTS[:3])))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], vectors)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(embedder)).embed(TEXTS[:3]), vectors)


def test_bfloat16_is_close(computes: None) -> None:
    reference = Embedder(TransformersRuntime("bundled", device="cpu"))
    narrow = Embedder(MlxRuntime("bundled", dtype="bfloat16"))
    cosines = (narrow.embed(TEXTS[:3]) * reference.embed(TEXTS[:3])).sum(1)
    assert 0.999 <= cosines.min() < 1 - 1e-6


@pytest.mark.weights
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    "GEMMA_EMBED_WEIGHTS" not in os.environ,
    reason="needs EmbeddingGemma's weights; run: "
    "GEMMA_EMBED_WEIGHTS=google/embeddinggemma-300m pytest -m weights tests/runtimes/mlx",
)
def test_real_weights(computes: None) -> None:
    weights = os.environ["GEMMA_EMBED_WEIGHTS"]
    texts = [*TEXTS[:3], LONG[:2600]]
    reference = Embedder(TransformersRuntime(weights, device="cpu")).embed_documents(texts)
    cosines = (Embedder(MlxRuntime(weights)).embed_documents(texts) * reference).sum(1)
    assert cosines.min() >= 0.99999


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float16"}, "use 'float32' or 'bfloat16'"),
        ({"dtype": "int8"}, "dtype"),
        ({"model": "google/embeddinggemma-2"}, "does not compute embeddinggemma-2"),
        ({"device": "gpu"}, "device"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        MlxRuntime(**options)
