"""Texts for the ONNX runtime, and what it computes of them."""

from __future__ import annotations

import checkpoints
import numpy as np

from gemma_embed.runtimes import OnnxRuntime, TransformersRuntime

WORDS = " ".join(path.read_text() for path in sorted(checkpoints.NOTES.glob("*.md"))).split()
SHORT = [
    "",
    "def f(x):\n    return {x: [x]}\n",
    "中文和日本語のテキスト, العربية, हिन्दी, 😀",
    *(" ".join(WORDS[7 * n : 8 * n]) for n in (1, 3, 15, 40)),
]


def vectors_of(runtime: OnnxRuntime | TransformersRuntime, texts: list[str]) -> np.ndarray:
    vectors = np.full((len(texts), 768), np.nan, np.float32)
    for batch in runtime.embed(texts):
        vectors[batch.rows] = batch.vectors
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def forward_of(runtime: OnnxRuntime) -> object:
    """The forward pass."""
    return runtime._load().forward
