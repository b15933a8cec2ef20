"""The same vectors as the reference: sentence-transformers on the same checkpoint."""

from __future__ import annotations

import bisect
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import truncate_embeddings

from gemma_embed import Embedder
from gemma_embed.prompts import TASKS
from gemma_embed.runtimes import TransformersRuntime

DOCUMENT = "title: none | text: "
DIMENSIONS = (768, 512, 256, 128)
WORDS = " ".join(path.read_text() for path in sorted(checkpoints.NOTES.glob("*.md"))).split()
SHORT = [
    "",
    "def f(x):\n    return {x: [x]}\n",
    "中文和日本語のテキスト, العربية, हिन्दी, 😀",
    *(" ".join(WORDS[7 * n : 8 * n]) for n in (1, 3, 15, 40)),
]
LAYOUTS = [
    ("narrow", {}),
    ("wide", {"layout": "saved", "shards": 3}),
    ("deep", {"prefix": "model.", "seed": 5}),
]


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: layout[0])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, options = request.param
    return checkpoints.build(tmp_path_factory.mktemp(name), checkpoints.SHAPES[name], **options)


@pytest.fixture(scope="module")
def reference(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


@pytest.fixture(scope="module")
def runtime(folder: Path) -> TransformersRuntime:
    return TransformersRuntime(folder, device="cpu")


@pytest.fixture(scope="module")
def texts(runtime: TransformersRuntime) -> list[str]:
    """From empty to the full context: below, at and far beyond the sliding window of 512."""

    def tokens(count: int) -> int:
        return runtime.count_tokens([DOCUMENT + " ".join(WORDS[:count])])[0]

    longest = bisect.bisect_right(range(2000), 2048, key=tokens) - 1
    return SHORT + [" ".join(WORDS[-n:]) for n in (90, 200, 310)] + [" ".join(WORDS[:longest])]


def expected(reference: SentenceTransformer, prompted: list[str]) -> np.ndarray:
    return reference.encode(prompted, prompt="", normalize_embeddings=True, batch_size=4)


def cut(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    """Cut the reference's vectors as ``encode(truncate_dim=...)`` does."""
    narrow = truncate_embeddings(torch.tensor(vectors), dimensions)
    return torch.nn.functional.normalize(narrow).numpy()


def assert_same(vectors: np.ndarray, reference: np.ndarray) -> None:
    assert vectors.shape == reference.shape
    cosines = (vectors.astype(np.float64) * reference).sum(1)
    assert cosines.min() >= 0.999999
    assert np.abs(vectors - reference).max() <= 1e-5


def test_the_texts_reach_the_end_of_the_context(
    runtime: TransformersRuntime, texts: list[str]
) -> None:
    tokens = runtime.count_tokens([DOCUMENT + text for text in texts])
    assert 2030 <= max(tokens) <= 2048
    assert sum(count > 514 for count in tokens) >= 2


def test_the_checkpoint_distinguishes_texts(reference: SentenceTransformer) -> None:
    vectors = expected(reference, SHORT)
    similarity = vectors @ vectors.T
    assert np.median(similarity) < 0.95


@pytest.fixture(scope="module")
def documents(reference: SentenceTransformer, texts: list[str]) -> np.ndarray:
    """The reference's vectors of all texts as documents, full width."""
    return expected(reference, [DOCUMENT + text for text in texts])


@pytest.mark.parametrize("task", TASKS)
def test_every_task_and_width(
    runtime: TransformersRuntime, reference: SentenceTransformer, task: str
) -> None:
    prefix = runtime.model.prompts.prefix(task)
    complete = expected(reference, [prefix + text for text in SHORT])
    for dimensions in DIMENSIONS:
        vectors = Embedder(runtime, dimensions=dimensions).embed(SHORT, task)
        assert_same(vectors, cut(complete, dimensions))


def test_the_references_own_cut(
    runtime: TransformersRuntime, reference: SentenceTransformer
) -> None:
    vectors = Embedder(runtime, dimensions=256).embed_documents(SHORT)
    theirs = reference.encode(
        SHORT, prompt=DOCUMENT, truncate_dim=256, normalize_embeddings=True, batch_size=4
    )
    assert_same(vectors, theirs)


def test_mixed_lengths_past_the_window(
    runtime: TransformersRuntime, texts: list[str], documents: np.ndarray
) -> None:
    assert_same(Embedder(runtime).embed_documents(texts), documents)
    narrow = Embedder(runtime, dimensions=128).embed_documents(texts)
    assert_same(narrow, cut(documents, 128))


def test_the_references_own_prompts(
    runtime: TransformersRuntime, reference: SentenceTransformer
) -> None:
    embedder = Embedder(runtime)
    assert_same(embedder.embed_documents(SHORT), reference.encode_document(SHORT))
    assert_same(embedder.embed_query(SHORT[4])[None], reference.encode_query([SHORT[4]]))


def test_titles(runtime: TransformersRuntime, reference: SentenceTransformer) -> None:
    titles = [f"Title {i}" if i % 2 else None for i in range(len(SHORT))]
    vectors = Embedder(runtime).embed_documents(SHORT, titles)
    prompted = [
        f"title: {title or 'none'} | text: {text}"
        for title, text in zip(titles, SHORT, strict=True)
    ]
    assert_same(vectors, expected(reference, prompted))


def test_a_text_alone_has_the_same_vector_as_among_many(
    runtime: TransformersRuntime, texts: list[str], documents: np.ndarray
) -> None:
    embedder = Embedder(runtime)
    alone = np.concatenate([embedder.embed_documents([text]) for text in texts])
    assert_same(alone, documents)


def test_a_truncated_text_is_the_references_truncated_text(
    runtime: TransformersRuntime, reference: SentenceTransformer
) -> None:
    text = " ".join(WORDS[:4000])
    vectors = Embedder(runtime, overlong="truncate").embed_documents([text, "short"])
    prompted = [DOCUMENT + text, DOCUMENT + "short"]
    assert_same(vectors, expected(reference, prompted))


def test_bfloat16_is_close(folder: Path, texts: list[str], documents: np.ndarray) -> None:
    runtime = TransformersRuntime(folder, device="cpu", dtype="bfloat16")
    cosines = (Embedder(runtime).embed_documents(texts) * documents).sum(1)
    assert cosines.min() >= 0.999


def test_token_ids_are_the_references(
    runtime: TransformersRuntime, reference: SentenceTransformer, texts: list[str]
) -> None:
    theirs = [len(reference.tokenizer(text)["input_ids"]) for text in texts]
    assert runtime.count_tokens(texts) == theirs
