"""The real weights, written as GGUF and run by llama.cpp; and what verify says of broken files.

GEMMA_EMBED_WEIGHTS=<folder> make llama-server
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import NOTES
from gguf_files import Keys, llama_server, rewritten

from gemma_embed import Embedder
from gemma_embed.errors import WrongModel
from gemma_embed.runtimes import GgufRuntime, OnnxRuntime, OpenAIRuntime
from gemma_embed.verify import verify
from gemma_fast.gguf_file import GgufPrecision, read_header

pytestmark = [
    pytest.mark.llama_server,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        "GEMMA_EMBED_WEIGHTS" not in os.environ,
        reason="needs EmbeddingGemma's weights; run: GEMMA_EMBED_WEIGHTS=<folder> make "
        "llama-server",
    ),
]

WORDS = " ".join(path.read_text() for path in sorted(NOTES.glob("*.md"))).split()
TEXTS = [
    "",
    "7",
    "def f(x):\n\treturn x  # twice  two  blanks\n\n\n",
    "東京は日本の首都です。",
    "<bos>a<eos> <unused0><start_of_turn>",
    "Grüße aus Köln: Übermorgen wird's wärmer.",
    *(" ".join(WORDS[:count]) for count in (90, 300, 620, 1180)),
]


@pytest.fixture(scope="module")
def reference() -> OnnxRuntime:
    return OnnxRuntime(os.environ["GEMMA_EMBED_WEIGHTS"])


@pytest.mark.parametrize(
    ("precision", "least"), [("f32", 0.9999), ("bf16", 0.9999), ("q8_0", 0.998)]
)
def test_vectors_are_the_reference_s_at_all_lengths(
    exported: Callable[[GgufPrecision], Path],
    reference: OnnxRuntime,
    record_property: Callable[[str, object], None],
    precision: GgufPrecision,
    least: float,
) -> None:
    runtime = GgufRuntime(exported(precision), threads=1)
    prompted = [reference.prompts.prompted(text, "document") for text in TEXTS]
    tokens = runtime.count_tokens(prompted)
    assert tokens == reference.count_tokens(prompted)
    assert 1700 < max(tokens) <= 2048
    cosines = (Embedder(runtime).embed(TEXTS) * Embedder(reference).embed(TEXTS)).sum(axis=1)
    runtime.close()
    record_property("cosine", float(cosines.min()))
    assert cosines.min() >= least


@pytest.mark.parametrize(
    ("precision", "named"),
    [("f32", "float32"), ("bf16", "bfloat16"), ("q8_0", "8 bits"), ("q4_0", "4 bits")],
)
def test_verify_calls_an_intact_file_ok_and_names_its_precision(
    exported: Callable[[GgufPrecision], Path], precision: GgufPrecision, named: str
) -> None:
    runtime = GgufRuntime(exported(precision), threads=1)
    verdict = verify(runtime)
    runtime.close()
    assert verdict.ok, str(verdict)
    assert verdict.precision == named


@pytest.mark.parametrize("precision", ["bf16", "q8_0"])
def test_verify_calls_an_intact_server_ok(
    exported: Callable[[GgufPrecision], Path], precision: GgufPrecision
) -> None:
    with llama_server(exported(precision)) as url:
        verdict = verify(OpenAIRuntime(host=url))
    assert verdict.ok, str(verdict)


@pytest.mark.parametrize(
    ("keys", "cause"),
    [
        ({"gemma-embedding.pooling_type": 2}, "pooling_first_token"),
        ({"gemma-embedding.pooling_type": 3}, "pooling_last_token"),
        ({"tokenizer.ggml.add_space_prefix": None}, "space_before"),
        ({"tokenizer.ggml.add_eos_token": False}, "no_eos"),
        ({"gemma-embedding.attention.sliding_window": 256}, "window_too_narrow"),
        ({"gemma-embedding.rope.freq_base": 10000.0}, "rope_all_local"),
    ],
)
def test_verify_names_what_is_wrong_with_a_server(
    exported: Callable[[GgufPrecision], Path], tmp_path: Path, keys: Keys, cause: str
) -> None:
    path = rewritten(exported("q8_0"), tmp_path / "broken.gguf", keys)
    with llama_server(path) as url:
        verdict = verify(OpenAIRuntime(host=url))
    assert not verdict.ok
    assert verdict.causes[0] == cause, str(verdict)


def test_a_file_without_dense_layers_is_refused(
    exported: Callable[[GgufPrecision], Path], tmp_path: Path
) -> None:
    path = rewritten(
        exported("q8_0"), tmp_path / "broken.gguf", leaving_out=lambda name: "dense" in name
    )
    with llama_server(path) as url, pytest.raises(WrongModel, match="lacks the 2 Dense layers"):
        verify(OpenAIRuntime(host=url))
    with pytest.raises(WrongModel, match="lacks the 2 Dense layers"):
        verify(GgufRuntime(path))


def test_the_vocabulary_gives_the_real_tokenizer_back(
    exported: Callable[[GgufPrecision], Path], reference: OnnxRuntime
) -> None:
    runtime = GgufRuntime(exported("q8_0"))
    pieces = [
        token.replace("▁", " ")
        for token in read_header(exported("q8_0")).keys["tokenizer.ggml.tokens"]
    ]
    source = np.random.default_rng(0)
    texts = ["".join(source.choice(pieces, 40)) for _ in range(300)]
    assert runtime._load().tokenize(texts) == reference._load().tokenize(texts)
