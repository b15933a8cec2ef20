"""Whether a vector of one long text was computed with EmbeddingGemma 300M's sliding window.

For servers that do not tell their version. The golden vectors are those of the trained weights,
and those of the same without a window (``benchmarks/window.py``).
"""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path

import numpy as np

from gemma_embed.vectors import Vectors

# Longer than the window, and not of any language.
TEXT = " ".join(map(str, range(1, 241)))
PATH = Path(__file__).parent / "window.json"
NAMES = ("trained", "windowless")
_NUMBERS = 256
# Below it, to both golden vectors, these are other weights: a fine-tune's. Q4_0 made of the
# float32 weights has 0.861 to its own and 0.817 to the other, Q8_0 0.9995 and 0.954.
_RELATED = 0.8


def has_window(vector: Vectors) -> bool | None:
    """Tell whether ``TEXT``'s vector was computed with the window.

    Args:
        vector: Of the complete width, of any length.

    Returns:
        None for a vector of other weights.
    """
    trained, windowless = cosines(vector)
    return None if not max(trained, windowless) >= _RELATED else trained >= windowless


def cosines(vector: Vectors) -> tuple[float, float]:
    """Return the cosines to the golden vectors, with the window and without it."""
    with np.errstate(invalid="ignore"):
        own = np.asarray(vector, dtype=np.float64)[:_NUMBERS]
        own = own / (np.linalg.norm(own) or 1.0)
    trained, windowless = golden()
    return float(own @ trained), float(own @ windowless)


def stored(vector: Vectors) -> str:
    """Return a vector's first numbers as ``window.json`` holds them: float16, base64."""
    part = np.asarray(vector, dtype=np.float64)[:_NUMBERS]
    return base64.b64encode((part / np.linalg.norm(part)).astype("<f2").tobytes()).decode()


@cache
def golden() -> tuple[Vectors, Vectors]:
    """Return both golden vectors, with the window and without it, of norm 1."""
    held = json.loads(PATH.read_text(encoding="utf-8"))
    vectors = [np.frombuffer(base64.b64decode(held[name]), "<f2") for name in NAMES]
    trained, windowless = (v.astype(np.float32) / np.linalg.norm(v.astype(float)) for v in vectors)
    return trained, windowless
