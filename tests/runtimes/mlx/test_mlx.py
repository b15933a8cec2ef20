"""MLX gives the reference's vectors. Run with pip install "mlx[cpu]" on Linux, "mlx" on a Mac."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import threading
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gemma_embed import Embedder
from gemma_embed.errors import ConfigurationError, MissingDependency, ModelChanged, WrongModel
from gemma_embed.runtimes import MlxRuntime, TransformersRuntime
from gemma_embed.runtimes.local import loading

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
    texts = [*TEXTS, LONG[: {"bundled": 3000, "narrow": 2000}[name]]]
    assert max(reference.runtime.count_tokens(texts)) > 600
    vectors = reference.embed_documents(texts)
    np.testing.assert_allclose(embedder.embed_documents(texts), vectors, atol=1e-5)
    alone = np.concatenate([embedder.embed_documents([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, vectors[:-1], atol=1e-5)


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


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("activation", "hidden_activation.*runtime='mlx' does not compute"),
        ("nan", "mlx computes.*are not finite"),
    ],
)
def test_networks_that_it_cannot_compute_are_refused(
    narrow: Path, tmp_path: Path, computes: None, spoil: str, message: str
) -> None:
    folder = shutil.copytree(narrow, tmp_path / "spoilt")
    if spoil == "nan":
        _norms_of(folder, float("nan"))
    else:
        checkpoints.edit_json(folder / "config.json", hidden_activation="silu")
    with pytest.raises(WrongModel, match=message):
        Embedder(MlxRuntime(folder)).embed(["a"])


def test_mlx_without_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    with pytest.raises(MissingDependency, match=r"without an engine.*gemma-embed\[mlx\]"):
        Embedder(MlxRuntime("bundled")).embed(["a"])


def test_weights_replaced_before_they_were_loaded(
    narrow: Path, tmp_path: Path, computes: None
) -> None:
    folder = shutil.copytree(narrow, tmp_path / "replaced")
    embedder = Embedder(MlxRuntime(folder))
    assert embedder.fingerprint
    _norms_of(folder, 0.5)
    with pytest.raises(ModelChanged):
        embedder.embed(["a"])


def _norms_of(folder: Path, value: float) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["norm.weight"] = np.full_like(tensors["norm.weight"], value)
    # Another file, as programs save models.
    path.unlink()
    save_file(tensors, path, {"format": "pt"})


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
