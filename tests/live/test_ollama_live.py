"""A real Ollama server gives EmbeddingGemma's vectors. Run with

ollama pull embeddinggemma:300m
OLLAMA_HOST=http://127.0.0.1:11434 pytest -m ollama tests/live
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from gemma_embed.runtimes import Batch, OllamaRuntime, TooLong
from gemma_embed.vectors import Vectors

pytestmark = [
    pytest.mark.ollama,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        "OLLAMA_HOST" not in os.environ,
        reason="needs a live Ollama server; run: ollama pull embeddinggemma:300m && "
        "OLLAMA_HOST=http://127.0.0.1:11434 pytest -m ollama tests/live",
    ),
]

# From integration/testdata/embed.json in ollama/ollama, key "embeddinggemma", without a prompt.
SKY = "why is the sky blue?"
SKY_STARTS = (-0.12450384, -0.008483137, 0.07272157, 0.03808375, 0.0027417676, 0.047930364)

# From Hugging Face's article on EmbeddingGemma, fp32, with the prompts of the model card.
PLANET_QUERY = "Which planet is known as the Red Planet?"
PLANETS = (
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
)
PLANET_SCORES = (0.3011, 0.6359, 0.4930, 0.4889)


@pytest.fixture(scope="module")
def runtime() -> OllamaRuntime:
    return OllamaRuntime(os.environ.get("GEMMA_EMBED_OLLAMA_MODEL"), host=os.environ["OLLAMA_HOST"])


def embedded(runtime: OllamaRuntime, texts: list[str]) -> Vectors:
    vectors = np.full((len(texts), 768), np.nan, dtype=np.float32)
    for outcome in runtime.embed(texts):
        assert isinstance(outcome, Batch)
        vectors[list(outcome.rows)] = outcome.vectors
    return vectors


def test_the_server_version_is_supported(runtime: OllamaRuntime) -> None:
    identity = runtime.identity
    assert len(identity.revision) == 64
    assert identity.runtime in ("ollama/era-bidirectional", "ollama/era-unknown")
    assert identity.max_tokens == 2048


def test_ollama_s_own_golden_vector(runtime: OllamaRuntime) -> None:
    start = embedded(runtime, [SKY])[0, : len(SKY_STARTS)]
    golden = np.asarray(SKY_STARTS)
    cosine = start @ golden / (np.linalg.norm(start) * np.linalg.norm(golden))
    assert cosine >= 0.99
    assert np.abs(start - golden).max() < 0.02


def test_planets(runtime: OllamaRuntime) -> None:
    prompts = runtime.prompts
    query = prompts.prompted(PLANET_QUERY, "query")
    documents = [prompts.prompted(text, "document") for text in PLANETS]
    vectors = embedded(runtime, [query, *documents])
    # Quantised weights move scores by a few hundredths; causal attention by tenths.
    np.testing.assert_allclose(vectors[1:] @ vectors[0], PLANET_SCORES, atol=0.03)


def test_a_vector_does_not_depend_on_other_texts(runtime: OllamaRuntime) -> None:
    texts = [f"text {number} " + "word " * number for number in range(20)]
    together = embedded(runtime, texts)
    alone = np.concatenate([embedded(runtime, [text]) for text in texts[::5]])
    assert (together[::5] * alone).sum(axis=1).min() >= 0.9999


def test_a_text_that_is_too_long_is_reported_or_truncated(runtime: OllamaRuntime) -> None:
    long = "word " * 3000
    outcomes = list(runtime.embed(["short", long]))
    assert [o for o in outcomes if isinstance(o, TooLong)] == [TooLong(1, None)]
    (cut,) = runtime.embed([long], truncate=True)
    assert isinstance(cut, Batch)
