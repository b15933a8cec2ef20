"""A map of the index: its vectors on the two axes along which they differ most (PCA)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from gemma_embed.vectors import cut

if TYPE_CHECKING:
    from gemma_embed.vectors import Vectors
    from private_search.catalogue import Found
    from private_search.library import Library

# More points cover each other.
POINTS = 5000


@dataclass(frozen=True)
class Projection:
    """Points of passages, and what places another vector among them.

    Attributes:
        passages: What the points stand for.
        points: Their places, shape (n, 2).
        share: Of the variance of all dimensions, what the two axes show; from 0 to 1.
        mean: Of the vectors, shape (width,).
        axes: Shape (width, 2).
    """

    passages: Sequence[Found]
    points: Vectors
    share: float
    mean: Vectors
    axes: Vectors

    @classmethod
    def of(cls, library: Library) -> Self:
        """Project a library; of a large one, a random part that is the same each time."""
        numbers = [row for (row,) in library.catalogue.db.execute("SELECT number FROM passages")]
        chosen = random.Random(0).sample(numbers, min(POINTS, len(numbers)))  # noqa: S311
        found = library.catalogue.by_number(chosen)
        # Chroma takes no empty list.
        ids = [str(number) for number in found] or ["none"]
        got = library.collection.get(ids=ids, include=["embeddings"])
        vectors = np.asarray(got["embeddings"], np.float32).reshape(-1, library.embedder.dimensions)
        return cls.fitted([found[int(each)] for each in got["ids"]], vectors)

    @classmethod
    def fitted(cls, passages: Sequence[Found], vectors: Vectors) -> Self:
        """Find the axes of the passages' vectors, shape (n, width)."""
        width = vectors.shape[1]
        mean = vectors.mean(axis=0) if len(vectors) else np.zeros(width, np.float32)
        apart = vectors - mean
        values, all_axes = np.linalg.eigh(apart.T @ apart)
        axes = all_axes[:, [-1, -2]]
        # An axis has no direction of its own: the same index should look the same each time.
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
        share = float(values[-2:].sum() / max(values.sum(), 1e-9))
        return cls(passages, apart @ axes, share, mean, axes)

    def place(self, query: Vectors) -> Vectors:
        """Place a question's vector, of full width or more than the map's; shape (2,)."""
        return (cut(query[None, :], len(self.mean))[0] - self.mean) @ self.axes
