"""A real llama-server gives EmbeddingGemma's vectors. Run with

GEMMA_EMBED_WEIGHTS=<folder> make llama-server

which writes the weights as GGUF and starts llama.cpp's server of the extra gguf on it; or against
one that runs already:

llama-server -m embeddinggemma-300M-Q8_0.gguf --embeddings -ub 2048 -np 1
GEMMA_EMBED_LLAMA_SERVER=http://127.0.0.1:8080 pytest -m llama_server tests/live
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

from gemma_embed import Embedder
from gemma_embed.errors import InputTooLong
from gemma_embed.runtimes import OpenAIRuntime, TransformersRuntime

pytestmark = [
    pytest.mark.llama_server,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not {"GEMMA_EMBED_LLAMA_SERVER", "GEMMA_EMBED_WEIGHTS"} & os.environ.keys(),
        reason="needs a real llama-server; run: GEMMA_EMBED_WEIGHTS=<folder> make llama-server, or "
        "GEMMA_EMBED_LLAMA_SERVER=http://127.0.0.1:8080 pytest -m llama_server tests/live",
    ),
]

# From Hugging Face's article on EmbeddingGemma, fp32, with the prompts of the model card.
PLANET_QUERY = "Which planet is known as the Red Planet?"
PLANETS = [
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
]
PLANET_SCORES = [0.3011, 0.6359, 0.4930, 0.4889]

TEXTS = [
    *PLANETS,
    "Grüße aus Köln: Übermorgen wird's wärmer.",
    "東京は日本の首都です。",
    "def f(x):\n\treturn x  # twice  two  blanks",
    "7",
    " ".join(f"Chapter {number}: what the river said to the stone." for number in range(60)),
]
# 4 bits are measured, not bounded: quantised weights are the server's choice.
LEAST = {"F32": 0.99999, "BF16": 0.9999, "Q8_0": 0.998}


@pytest.fixture(scope="module")
def runtime(llama_url: str) -> OpenAIRuntime:
    return OpenAIRuntime(host=llama_url)


def test_planets(runtime: OpenAIRuntime) -> None:
    embedder = Embedder(runtime)
    scores = embedder.embed_documents(PLANETS) @ embedder.embed_query(PLANET_QUERY)
    np.testing.assert_allclose(scores, PLANET_SCORES, atol=0.03)


@pytest.mark.skipif(
    "GEMMA_EMBED_WEIGHTS" not in os.environ, reason="needs EmbeddingGemma's weights, too"
)
def test_the_vectors_are_the_reference_s(
    runtime: OpenAIRuntime, record_property: Callable[[str, object], None]
) -> None:
    reference = TransformersRuntime(os.environ["GEMMA_EMBED_WEIGHTS"], device="cpu")
    cosines = (Embedder(runtime).embed(TEXTS) * Embedder(reference).embed(TEXTS)).sum(axis=1)
    record_property("cosine", float(cosines.min()))
    assert cosines.min() >= LEAST.get(runtime.identity.precision, 0.87)
    prompted = [reference.prompts.prompted(text, "document") for text in TEXTS]
    assert runtime.count_tokens(prompted) == reference.count_tokens(prompted)


def test_too_long_is_reported_and_cut_as_the_reference_cuts(runtime: OpenAIRuntime) -> None:
    limit = runtime.identity.max_tokens
    assert limit in (512, 1024, 2048)
    words = "river " * (2 * limit)
    with pytest.raises(InputTooLong) as caught:
        Embedder(runtime).embed(["short", words])
    assert caught.value.index == 1
    (cut,) = Embedder(runtime, overlong="truncate").embed([words])
    prompt = runtime.prompts.prompted("", "document")
    room = limit - runtime.count_tokens([prompt])[0]
    fits = "river " * room
    while runtime.count_tokens([prompt + fits])[0] > limit:
        fits = fits.removesuffix("river ")
    (same,) = Embedder(runtime).embed([fits.rstrip()])
    assert cut @ same >= 0.999


def test_identity_does_not_change(runtime: OpenAIRuntime, llama_url: str) -> None:
    again = OpenAIRuntime(host=llama_url)
    assert again.identity == runtime.identity
