"""Batches and cuts: arithmetic on sizes and arrays, without I/O."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


def plan_batches(
    sizes: Sequence[int], max_items: int, max_size: int, *, padded: bool
) -> list[list[int]]:
    """Group texts of like size.

    Args:
        sizes: The size of each text, in tokens or bytes.
        max_items: Most texts in a batch.
        max_size: Most size in a batch. A text larger than this is a batch of its own.
        padded: Whether a batch costs its longest text times its count, as in a padded tensor,
            or the sum of its sizes.

    Returns:
        Positions in ``sizes``, each exactly once, largest first: a batch that cannot be
        computed fails at the start, not after everything else.
    """
    batches: list[list[int]] = []
    total = longest = 0
    for row in sorted(range(len(sizes)), key=lambda row: -sizes[row]):
        count = len(batches[-1]) + 1 if batches else 1
        cost = count * longest if padded else total + sizes[row]
        if not batches or count > max_items or cost > max_size:
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
    """
    kept = vectors[:, :dimensions]
    unit: Vectors = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    return unit
