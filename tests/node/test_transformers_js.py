"""Transformers.js gives this package's vectors from a graph that this package wrote. Run with

npm install --ignore-scripts --prefix examples/browser && pytest -m node
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import checkpoints
import numpy as np
import pytest

from gemma_embed import Embedder
from gemma_embed.prompts import TASKS
from gemma_embed.runtimes import OnnxRuntime, TransformersRuntime

HERE = Path(__file__).parent
LIBRARY = (
    HERE.parent.parent
    / "examples/browser/node_modules/@huggingface/transformers/dist/transformers.node.mjs"
)
NODE = shutil.which("node")
DTYPES = {"float32": "fp32", "int8": "q8", "int4": "q4"}
NOTES = [path.read_text() for path in sorted(checkpoints.NOTES.glob("*.md"))]
TEXTS = ["", "Mars is red.", "  two  blanks\n\n\ttab", "ü😀 中文 العربية", *NOTES[::8]]
LONG = "\n\n".join(NOTES)[:6000]

pytestmark = [
    pytest.mark.node,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        NODE is None or not LIBRARY.is_file(),
        reason="needs Node 20 and Transformers.js; run: "
        "npm install --ignore-scripts --prefix examples/browser && pytest -m node",
    ),
]


def by_node(folder: Path, precision: str, texts: list[str]) -> tuple[list[list[int]], np.ndarray]:
    """Token ids and vectors of prompted texts, by Transformers.js in one batch."""
    job = {
        "library": str(LIBRARY),
        "models": f"{folder.parent}/",
        "model": folder.name,
        "dtype": DTYPES[precision],
        "texts": texts,
    }
    assert NODE is not None
    done = subprocess.run(
        [NODE, HERE / "embed.mjs"], input=json.dumps(job), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    return answer["ids"], np.array(answer["vectors"])


@pytest.mark.parametrize("precision", DTYPES)
def test_the_same_file_gives_the_same_vectors(precision: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    OnnxRuntime("bundled", precision=precision).export(folder)
    runtime = OnnxRuntime(folder, precision=precision)
    embedder = Embedder(runtime)
    prompted = [f"title: none | text: {text}" for text in [*TEXTS, LONG]]
    prompted += [runtime.prompts.prefix(task) + "Which planet is red?" for task in TASKS]
    ids, vectors = by_node(folder, precision, prompted)
    assert ids == runtime._load().tokenize(prompted)
    # Prompts that are written by hand here, so that both sides get the very same texts.
    own = np.concatenate([runtime._load().forward([each]) for each in ids])
    np.testing.assert_allclose(
        (vectors * own).sum(1), 1, atol=1e-5 if precision != "int8" else 1e-3
    )
    # The graph is the model, as the reference computes it in float32.
    texts = [*TEXTS, LONG]
    documents, reference = vectors[: len(texts)], Embedder(TransformersRuntime("bundled"))
    cosines = (documents * reference.embed_documents(texts)).sum(1)
    assert cosines.min() >= {"float32": 0.9999, "int8": 0.99, "int4": 0.97}[precision], cosines
    np.testing.assert_allclose(documents, embedder.embed_documents(texts), atol=2e-2)


@pytest.mark.weights
@pytest.mark.skipif("GEMMA_EMBED_WEIGHTS" not in os.environ, reason="needs GEMMA_EMBED_WEIGHTS")
@pytest.mark.parametrize("precision", DTYPES)
def test_real_weights(precision: str, tmp_path: Path) -> None:
    weights = os.environ["GEMMA_EMBED_WEIGHTS"]
    folder = tmp_path / "model"
    OnnxRuntime(weights, precision=precision).export(folder)
    prompted = [f"title: none | text: {text}" for text in [*TEXTS, LONG]]
    ids, vectors = by_node(folder, precision, prompted)
    reference = Embedder(TransformersRuntime(weights, device="cpu"))
    assert ids == reference.runtime._load().tokenize(prompted)
    cosines = (vectors * reference.embed_documents([*TEXTS, LONG])).sum(1)
    assert cosines.min() >= {"float32": 0.9999, "int8": 0.99, "int4": 0.97}[precision]
