"""EmbeddingGemma's real weights give the published numbers. Run with

GEMMA_EMBED_WEIGHTS=google/embeddinggemma-300m pytest -m weights tests/live
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from broken_passes import BROKEN, OFF_BY_ONE, break_passes

from gemma_embed import Embedder
from gemma_embed.runtimes import OnnxRuntime, TransformersRuntime
from gemma_embed.runtimes.transformers import verification
from gemma_embed.runtimes.transformers.stock import StockForward
from gemma_fast.bpe import BpeTokenizer
from gemma_fast.packed import PackedForward

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
# Of the kind that the rounding of early layers moves furthest.
FINNISH = "Bluetooth-näkyvyyttä ei tarvita enää, kun laite on jo yhdistetty tietokoneeseen."


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


def test_bfloat16_is_packed_and_as_close_as_its_rounding_allows(
    runtime: TransformersRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    narrow = TransformersRuntime(os.environ["GEMMA_EMBED_WEIGHTS"], device="cpu", dtype="bfloat16")
    texts = [path.read_text() for path in sorted(checkpoints.NOTES.glob("*.md"))[::3]]
    texts += ["a", QUERY, *PLANETS, "\n".join(texts)[:6000]]
    vectors = Embedder(narrow).embed(texts)
    assert isinstance(narrow._load()._forward, PackedForward)
    assert not caplog.records
    assert (vectors * Embedder(runtime).embed(texts)).sum(1).min() >= 0.999


@pytest.mark.parametrize("broken", BROKEN | OFF_BY_ONE)
def test_a_wrong_pass_is_detected(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    break_passes(monkeypatch, (BROKEN | OFF_BY_ONE)[broken], torch.float32, torch.bfloat16)
    assert "its vectors in float32 are" in refused(caplog)


@pytest.mark.parametrize("broken", BROKEN)
def test_a_pass_that_is_wrong_in_bfloat16_only_is_detected(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    monkeypatch.setattr(verification, "has_fast_bfloat16", lambda _: True)
    break_passes(monkeypatch, BROKEN[broken], torch.bfloat16)
    assert "its vectors in bfloat16 are" in refused(caplog)


def refused(caplog: pytest.LogCaptureFixture) -> str:
    """Load the real weights in bfloat16; return the warning that names the reason."""
    runtime = TransformersRuntime(os.environ["GEMMA_EMBED_WEIGHTS"], device="cpu", dtype="bfloat16")
    assert isinstance(runtime._load()._forward, StockForward)
    (record,) = caplog.records
    return record.getMessage()


def test_4_bits_are_close_to_float32() -> None:
    # Measured on 1,067 texts in 22 languages (benchmarks/precision.py): mean 0.9956, worst 0.985.
    notes = [path.read_text() for path in sorted(checkpoints.NOTES.glob("*.md"))]
    texts = [*notes[::2], *PLANETS, FINNISH, "\n\n".join(notes)[:6000]]
    exact, close = (
        Embedder(OnnxRuntime(os.environ["GEMMA_EMBED_WEIGHTS"], precision=precision))
        .embed_documents(texts)
        .astype(np.float64)
        for precision in ("float32", "int4")
    )
    cosines = (exact * close).sum(1)
    assert cosines.mean() >= 0.99
    assert cosines.min() >= 0.97


def test_4_bits_take_at_most_100_megabytes(tmp_path: Path) -> None:
    runtime = OnnxRuntime(os.environ["GEMMA_EMBED_WEIGHTS"], precision="int4", cache_dir=tmp_path)
    runtime.count_tokens(["a"])
    assert sum(path.stat().st_size for path in tmp_path.glob("*-int4-*/*")) <= 100e6
