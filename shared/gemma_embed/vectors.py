"""Batches and cuts: arithmetic on sizes and arrays, without I/O."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from gemma_embed.errors import BadResponse

Vectors = npt.NDArray[np.float32]

# What is left below this of vectors of norm 1 is rounding, and squares of it vanish in float32.
SMALLEST_NORM = 1e-6


def plan_batches(
    sizes: Mapping[int, int], max_size: int, *, max_items: int | None = None, padded: bool
) -> list[list[int]]:
    """Group texts of like size.

    Args:
        sizes: For each row its size, in tokens or bytes.
        max_size: Most size in a batch. A text larger than this is a batch of its own.
        max_items: Most texts in a batch; None for any number.
        padded: Whether a batch costs its longest text times its count, as in a padded tensor,
            or the sum of its sizes.

    Returns:
        The rows, each exactly once, largest first: a batch that cannot be computed fails at the
        start, not after everything else.
    """
    batches: list[list[int]] = []
    total = longest = 0
    for row in sorted(sizes, key=lambda row: -sizes[row]):
        count = len(batches[-1]) + 1 if batches else 1
        cost = count * longest if padded else total + sizes[row]
        if not batches or count > (max_items or count) or cost > max_size:
            batches.append([])
            total, longest = 0, sizes[row]
        batches[-1].append(row)
        total += sizes[row]
    return batches


def cut(vectors: Vectors, dimensions: int) -> Vectors:
    """Cut vectors to their first numbers and give them unit length again.

    Matryoshka training (https://arxiv.org/abs/2205.13147) makes the first numbers of a vector a
    vector of their own; its length is no longer 1 after the cut.

    Args:
        vectors: float32, shape (n, width), rows of norm 1.
        dimensions: At most width.

    Returns:
        float32, shape (n, dimensions), rows of norm 1, same order.

    Raises:
        BadResponse: If the first numbers of a row are all but zero; ``index`` is the row.
    """
    narrow = vectors[:, :dimensions]
    norms = np.linalg.norm(narrow, axis=1)
    if len(norms) and norms.min() < SMALLEST_NORM:
        raise BadResponse(
            f"the first {dimensions} numbers of a vector are all but zero, so it cannot be cut to "
            f"dimensions={dimensions}; use a model that was trained for that",
            index=int(norms.argmin()),
        )
    unit: Vectors = narrow / norms[:, None]
    return unit
