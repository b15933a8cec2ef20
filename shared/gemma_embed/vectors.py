"""Batches, checks and cuts: arithmetic on sizes and arrays, without any I/O."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gemma_embed.errors import BadResponse

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


def checked_vectors(vectors: object, rows: Sequence[int], width: int, source: str) -> Vectors:
    """Return a runtime's vectors as float32 rows of unit length, if they can be right.

    Args:
        vectors: Shape (len(rows), width), any float type; lists of lists are taken too.
        rows: For each vector the index to name when it is wrong.
        width: The model's full width.
        source: Who made them, for messages.

    Returns:
        float32, shape (len(rows), width), same order, each row of norm 1.

    Raises:
        BadResponse: If count or width is wrong, or a vector is not finite or all zeros. Zeros are
            how one server era reports NaN, and how a failed pooling looks.
    """
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadResponse(
            f"{source} returned something other than equally wide lists of numbers; update it"
        ) from error
    if array.ndim != 2 or len(array) != len(rows):
        got = len(array) if array.ndim else "no"
        raise BadResponse(f"{source} returned {got} vectors for {len(rows)} texts; update it")
    if array.shape[1] != width:
        raise BadResponse(
            f"{source} returned vectors of {array.shape[1]} numbers where this model gives "
            f"{width}: it runs another model, or one without its Dense layers"
        )
    finite = np.all(np.isfinite(array), axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(array, axis=1)
    wrong = np.flatnonzero(~(finite & np.isfinite(norms) & (norms > 0)))
    if len(wrong):
        first = int(wrong[0])
        what = "an all-zero vector" if norms[first] == 0 else "NaN or infinity"
        raise BadResponse(
            f"{source} returned {what}; float16 arithmetic does that with this model: use float32 "
            "or bfloat16, and on a server another quantisation or num_gpu=0",
            index=rows[first],
        )
    unit: Vectors = array / norms[:, None]
    return unit


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
