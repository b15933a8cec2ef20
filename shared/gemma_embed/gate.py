"""The gate: every vector of every runtime and of the store is checked here, and only here."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gemma_embed.errors import BadResponse
from gemma_embed.runtimes.base import Batch, TooLong
from gemma_embed.vectors import Vectors

Rows: TypeAlias = list[int]

# A stored vector was normalised in float32; one further from 1 was written by something else.
_NORM_TOLERANCE = 1e-3


def checked_outcomes(
    outcomes: Iterable[Batch | TooLong], count: int, width: int, source: str
) -> Iterator[tuple[Rows, Vectors] | TooLong]:
    """Pass on what a runtime yields, if it can be right.

    Of a batch with a wrong vector the valid ones are passed on before the error is raised.

    Args:
        outcomes: What ``Runtime.embed`` returned.
        count: Texts that the runtime was given.
        width: The model's full width.
        source: The runtime's name, for messages.

    Yields:
        Rows and their vectors, float32, shape (len(rows), width), each of norm 1; or ``TooLong``.

    Raises:
        BadResponse: If a row is missing, unknown or there twice, if count or width is wrong, or if
            a vector is all zeros or not finite (``index`` is its row). One server era reports NaN
            as zeros, and a failed pooling looks the same.
    """
    missing = set(range(count))
    if not isinstance(outcomes, Iterable):
        raise BadResponse(
            f"{source} returned {type(outcomes).__name__}; embed must yield Batch(rows, vectors)"
        )
    try:
        for outcome in outcomes:
            if isinstance(outcome, TooLong):
                _take([outcome.row], missing, source)
                yield outcome
            elif isinstance(outcome, Batch):
                rows = _take(outcome.rows, missing, source)
                array = _array(outcome.vectors, len(rows), width, source)
                norms = _norms(array)
                valid = np.isfinite(norms) & (norms > 0)
                good = np.flatnonzero(valid)
                if len(good):
                    yield [rows[place] for place in good], array[good] / norms[good, None]
                if len(good) < len(rows):
                    raise _bad_vector(rows, norms, valid, source)
            else:
                raise BadResponse(
                    f"{source} yielded {type(outcome).__name__}; yield Batch(rows, vectors)"
                )
    finally:
        # A runtime's generator may hold threads and connections; it must not wait for a garbage
        # collector, which an error's traceback keeps away.
        close = getattr(outcomes, "close", None)
        if close is not None:
            close()
    if missing:
        raise BadResponse(
            f"{source} returned no vector for {len(missing)} of {count} texts; report it to the "
            "runtime's author, or update the server",
            index=min(missing),
        )


def checked_stored(rows: Sequence[int], vectors: Vectors) -> tuple[Rows, Vectors]:
    """Return the rows of a store whose vectors are valid; the others count as missing.

    Args:
        rows: Positions in the texts that were looked up.
        vectors: float32, shape (len(rows), width).

    Returns:
        Rows and their vectors, bit for bit, each of norm 1 within rounding.
    """
    near = np.abs(_norms(vectors) - 1) <= _NORM_TOLERANCE
    valid = np.flatnonzero(near).tolist()
    return [rows[place] for place in valid], vectors[valid]


def _take(rows: Iterable[int], missing: set[int], source: str) -> Rows:
    try:
        taken = [operator.index(row) for row in rows]
        if any(isinstance(row, bool) for row in rows):
            raise TypeError("a mask is not a list of rows")
    except TypeError as error:
        raise BadResponse(f"{source} named rows by something other than integers") from error
    for row in taken:
        if row not in missing:
            raise BadResponse(
                f"{source} returned row {row}, which it was not asked for or returned before; "
                "report it to the runtime's author"
            )
        missing.remove(row)
    return taken


def _array(vectors: npt.ArrayLike, count: int, width: int, source: str) -> Vectors:
    try:
        array = _numbers(vectors)
    except (TypeError, ValueError, OverflowError):
        array = _row_by_row(vectors, width)
        if len(array) != count or np.isnan(array).all():
            # Not chained: it quotes what a server returned, which may repeat a text or a token.
            raise BadResponse(
                f"{source} returned something other than equally wide lists of numbers; update it"
            ) from None
    if array.ndim > 2:
        raise BadResponse(f"{source} returned lists in lists for vectors; update it")
    if array.ndim != 2 or len(array) != count:
        got = len(array) if array.ndim else "no"
        raise BadResponse(f"{source} returned {got} vectors for {count} texts; update it")
    if array.shape[1] != width:
        raise BadResponse(
            f"{source} returned vectors of {array.shape[1]} numbers where this model gives "
            f"{width}: it runs another model, or one without its Dense layers"
        )
    return array


def _row_by_row(vectors: npt.ArrayLike, width: int) -> Vectors:
    """Convert what can be converted; NaN stands for a row that is not ``width`` numbers."""
    rows = vectors if isinstance(vectors, Sequence) else ()
    array = np.full((len(rows), width), np.nan, np.float32)
    for place, row in enumerate(rows):
        with suppress(TypeError, ValueError, OverflowError):
            array[place] = _numbers(row).reshape(width)
    return array


def _numbers(values: npt.ArrayLike) -> Vectors:
    """Convert to float32; NumPy alone would take text, booleans and complex numbers too."""
    array = np.asarray(values)
    if array.dtype.kind in "bcSUmM":
        raise TypeError(f"{array.dtype} is not a type of real numbers")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _norms(array: Vectors) -> Vectors:
    """Norms of rows; NaN or infinity where a number is, or where the norm exceeds a float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms: Vectors = np.linalg.norm(array, axis=1)
    return norms


def _bad_vector(
    rows: Rows, norms: Vectors, valid: npt.NDArray[np.bool_], source: str
) -> BadResponse:
    first = int(np.flatnonzero(~valid)[0])
    what = "an all-zero vector" if norms[first] == 0 else "NaN or infinity, or no numbers"
    return BadResponse(
        f"{source} returned {what}; float16 arithmetic does that with this model: use float32 or "
        "bfloat16, and on a server another quantisation or num_gpu=0",
        index=rows[first],
    )
