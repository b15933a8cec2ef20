"""Unit vectors in 8 bits or 1 bit a number, for indexes and files that should be small.

``int8``: each vector's numbers are divided by its largest one, multiplied by 127 and rounded: what
sentence-transformers' ``quantize_embeddings`` makes of it with the ranges -128.5 and 126.5 times
the step of each vector. Ranges of each dimension, its default, have to be calibrated and kept with
the codes, and a query's codes have to be shifted back before a product of codes means anything.
Here nothing is calibrated or out of range, and the rule is the same at every width. The scale is
not stored: norms were 1, so a code's direction is all there is. Compare codes by their cosine, as
any index of int8 vectors can; their bare products say nothing, since scales differ.

``binary``: one bit a number, 1 where it is above zero, packed with the first number in the highest
bit; the same bytes as ``quantize_embeddings(..., precision="ubinary")``.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from gemma_embed.errors import ConfigurationError, InvalidInput
from gemma_embed.vectors import SMALLEST_NORM, Vectors

Form = Literal["int8", "binary"]
Codes = npt.NDArray[np.int8] | npt.NDArray[np.uint8]

_LARGEST = 127
# Candidates by equal bits, for one that is returned by its product with the query's numbers: bits
# alone leave too much open.
_OVERSAMPLED = 8
# Rows whose products are computed at once: they are made float32 for that, in a processor's cache.
_ROWS = 4096


def packed(vectors: Vectors, form: Form) -> Codes:
    """Return vectors as codes.

    Args:
        vectors: float32, shape (n, width), rows of norm 1.
        form: ``int8`` or ``binary``.

    Returns:
        int8, shape (n, width), from -127 to 127; or uint8, shape (n, ceil(width / 8)).

    Raises:
        ConfigurationError: If the form is unknown.
        InvalidInput: If ``vectors`` is not of two dimensions, or a row is all but zero or not
            finite; ``index`` is the row.
    """
    if form not in get_args(Form):
        raise ConfigurationError(f"unknown form {form!r}; use 'int8' or 'binary'")
    if vectors.ndim != 2:
        raise InvalidInput(f"vectors of shape {vectors.shape}: pass an array of (n, width)")
    largest = np.maximum(vectors.max(axis=1, initial=0), -vectors.min(axis=1, initial=0))[:, None]
    # False of NaN too.
    usable = (largest > SMALLEST_NORM / vectors.shape[1]) & np.isfinite(largest)
    if not usable.all():
        raise InvalidInput(
            "a vector is all but zero or not finite, so it has no direction to store",
            index=int(usable[:, 0].argmin()),
        )
    if form == "binary":
        return np.packbits(vectors > 0, axis=1)
    codes: Codes = np.rint(vectors * (_LARGEST / largest)).astype(np.int8)
    return codes


def unpacked(codes: Codes, form: Form, width: int) -> Vectors:
    """Return codes as vectors, which are near those that were packed.

    Args:
        codes: As ``packed`` returns them.
        form: Theirs.
        width: Numbers in a vector.

    Returns:
        float32, shape (n, width), rows of norm 1. Packed again they give the same codes.

    Raises:
        ConfigurationError: If the form is unknown.
        InvalidInput: If the codes are not of that form and width.
    """
    _check(codes, form, width)
    if form == "binary":
        bits = np.unpackbits(codes.view(np.uint8), axis=1, count=width)
        signs: Vectors = (2 * bits.astype(np.float32) - 1) / np.float32(width**0.5)
        return signs
    numbers: Vectors = codes.astype(np.float32)
    # A code that a disk has made all zeros stays zero, for the reader's own checks.
    numbers /= np.maximum(np.linalg.norm(numbers, axis=1, keepdims=True), 1)
    return numbers


class CompactVectors:
    """Packed vectors in memory, searched one after the other.

    Attributes:
        form: ``int8`` or ``binary``.
        width: Numbers in a vector.
        codes: As ``packed`` returns them, a row a vector.
    """

    def __init__(self, codes: Codes, form: Form, width: int) -> None:
        """Keep codes, not a copy of them.

        Args:
            codes: As ``packed`` returns them.
            form: Theirs.
            width: Numbers in a vector.

        Raises:
            ConfigurationError: If the form is unknown.
            InvalidInput: If the codes are not of that form and width, or those of a row are all
                zero; ``index`` is the row.
        """
        _check(codes, form, width)
        self.codes, self.form, self.width = codes, form, width
        if form == "int8":
            parts = (self._numbers(start) for start in range(0, len(codes), _ROWS))
            norms = [np.linalg.norm(part, axis=1) for part in parts]
            self._norms = np.concatenate(norms) if norms else np.empty(0, np.float32)
            if not self._norms.all():
                # Its cosine would be NaN, which has no place among the others.
                raise InvalidInput(
                    "the codes of a row are all zero, so it has no direction; pack its vector "
                    "again",
                    index=int(self._norms.argmin()),
                )

    def __len__(self) -> int:
        return len(self.codes)

    def nearest(self, query: Vectors, count: int) -> list[int]:
        """Return the rows that are most similar to a query, best first.

        Args:
            query: float32, shape (width,), norm 1.
            count: Most rows.

        Returns:
            By cosine. Of binary codes eight times as many are chosen by the bits that differ from
            the query's, and put in order by their cosine to the query at full precision.

        Raises:
            InvalidInput: If the query has another width, or is not finite.
        """
        if query.shape != (self.width,):
            raise InvalidInput(f"a query of shape {query.shape} for vectors of width {self.width}")
        if not np.isfinite(query).all():
            raise InvalidInput("the query's vector is not finite; embed the query again")
        if self.form == "int8":
            return [int(row) for row in _largest(self._cosines(query), count)]
        some = np.sort(_largest(self._equal_bits(query), _OVERSAMPLED * count))
        similarities = unpacked(self.codes[some], self.form, self.width) @ query
        return [int(row) for row in some[_largest(similarities, count)]]

    def _numbers(self, start: int) -> Vectors:
        return self.codes[start : start + _ROWS].astype(np.float32)

    def _cosines(self, query: Vectors) -> Vectors:
        found = np.empty(len(self.codes), dtype=np.float32)
        for start in range(0, len(found), _ROWS):
            found[start : start + _ROWS] = self._numbers(start) @ query
        found /= self._norms
        return found

    def _equal_bits(self, query: Vectors) -> npt.NDArray[np.int32]:
        differing = np.bitwise_count(self.codes ^ packed(query[None, :], "binary"))
        equal: npt.NDArray[np.int32] = -differing.sum(axis=1, dtype=np.int32)
        return equal


def _largest(scores: npt.NDArray[Any], count: int) -> npt.NDArray[np.intp]:
    """Places of the largest scores, largest first, equals in their order."""
    some = min(count, len(scores))
    if not some:
        return np.empty(0, np.intp)
    # Ties at the end are broken by place too, so that a search finds the same each time.
    places = np.flatnonzero(scores >= np.partition(scores, len(scores) - some)[len(scores) - some])
    best: npt.NDArray[np.intp] = places[np.argsort(-scores[places], kind="stable")[:some]]
    return best


def _check(codes: Codes, form: Form, width: int) -> None:
    if form not in get_args(Form):
        raise ConfigurationError(f"unknown form {form!r}; use 'int8' or 'binary'")
    expected: tuple[Any, int] = (np.int8, width) if form == "int8" else (np.uint8, -(-width // 8))
    if codes.ndim != 2 or (codes.dtype, codes.shape[1]) != expected:
        raise InvalidInput(
            f"codes of {codes.dtype} and shape {codes.shape} are not {form} of width {width}"
        )
