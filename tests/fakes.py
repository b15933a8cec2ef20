"""A runtime with computable vectors that records the texts it gets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gemma_embed.identity import Identity
from gemma_embed.models import EMBEDDINGGEMMA_300M, Model
from gemma_embed.runtimes import Batch, Runtime, TooLong
from gemma_embed.vectors import Vectors


def vector_of(text: str) -> Vectors:
    """A unit vector that depends on every character of a text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    vector = np.random.default_rng(seed).normal(size=EMBEDDINGGEMMA_300M.width)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class FakeRuntime(Runtime):
    """One token a character; batches of three, last first."""

    def __init__(self, max_tokens: int = 2048, name: str = "fake") -> None:
        self.max_tokens = max_tokens
        self.name = name
        self.texts: list[str] = []
        self.calls = 0

    def __repr__(self) -> str:
        # Without its address: scikit-learn names tests after it, the same in every process.
        return f"{type(self).__name__}()"

    @property
    def model(self) -> Model:
        return EMBEDDINGGEMMA_300M

    @property
    def settings(self) -> dict[str, Any]:
        return {"model": self.name, "max_tokens": self.max_tokens}

    @property
    def identity(self) -> Identity:
        return Identity(self.model.name, self.name, "1", "fake", "float32", self.max_tokens)

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        self.calls += 1
        rows = []
        for row, text in enumerate(texts):
            if len(text) > self.max_tokens and not truncate:
                yield TooLong(row, len(text))
            else:
                rows.append(row)
        for start in reversed(range(0, len(rows), 3)):
            batch = rows[start : start + 3]
            read = [texts[row][: self.max_tokens] for row in batch]
            self.texts += read
            yield Batch(batch, np.array([vector_of(text) for text in read]))
