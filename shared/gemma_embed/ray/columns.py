"""The columns of a batch: what is read of it, and the four that are added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from gemma_embed.compact import packed
from gemma_embed.errors import ConfigurationError, EmbeddingError, InputTooLong, InvalidInput
from gemma_embed.parquet.columns import (
    ERROR,
    FAILED,
    FINGERPRINT,
    INVALID,
    OK,
    STATUS,
    TOO_LONG,
    VECTOR,
    VectorType,
)
from gemma_embed.vectors import Vectors


def check_columns(needed: Mapping[str, str | None], there: Sequence[str]) -> None:
    """Refuse columns that lack one, or have one of the results already.

    Args:
        needed: Names by the option that states them.
        there: The columns.

    Raises:
        ConfigurationError: If it is so.
    """
    for option, name in needed.items():
        if name is not None and name not in there:
            raise ConfigurationError(
                f"{option}={name!r}: the columns are {', '.join(map(repr, there))}"
            )
    for name in (VECTOR, FINGERPRINT, STATUS, ERROR):
        if name in there:
            raise ConfigurationError(
                f"there is a column {name!r} already, as one of the results: rename or drop it"
            )


def texts_of(column: pa.ChunkedArray) -> list[Any]:
    """Return a column's values as Python's; what is not valid UTF-8 has lone surrogates.

    Raises:
        ConfigurationError: If it is a column of numbers or the like.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    # Ray has a type of its own for Python objects of several kinds.
    if not texts and not pa.types.is_null(kind) and not isinstance(kind, pa.BaseExtensionType):
        raise ConfigurationError(f"a column of texts or titles has {kind}: name another column")
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        raw = column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
        values = [each if each is None else each.decode(errors="surrogateescape") for each in raw]
    return values


def failure(error: EmbeddingError) -> tuple[str, str]:
    """Return the status and the error of a row that cannot be embedded."""
    kinds = ((InputTooLong, TOO_LONG), (InvalidInput, INVALID), (EmbeddingError, FAILED))
    return next(status for kind, status in kinds if isinstance(error, kind)), str(error.args[0])


def results(
    vectors: Vectors,
    failures: Mapping[int, tuple[str, str]],
    *,
    fingerprint: str,
    vector_type: VectorType,
    made_of: Mapping[bytes, bytes],
) -> dict[str | pa.Field, pa.Array]:
    """Return the columns that a batch gets, by name or field.

    Args:
        vectors: float32, shape (n, width); those of failed rows are arbitrary.
        failures: Status and error by row.
        fingerprint: The name of the vectors' space.
        vector_type: Of the numbers.
        made_of: ``parquet.embedded_columns``.
    """
    count, width = vectors.shape
    fine = np.ones(count, np.bool_)
    fine[list(failures)] = False
    if vector_type == "int8":
        numbers = np.zeros((count, width), np.int8)
        numbers[fine] = packed(vectors[fine], "int8")
    else:
        numbers = vectors.astype(vector_type, copy=False)
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(numbers.reshape(-1)), width, mask=pa.array(~fine)
    )
    said = [failures.get(row, (OK, None)) for row in range(count)]
    return {
        # What was embedded, for ``load``: a fingerprint does not say it.
        pa.field(VECTOR, column.type, metadata=made_of): column,
        FINGERPRINT: pa.array([fingerprint] * count, pa.string()),
        STATUS: pa.array([status for status, _ in said], pa.string()),
        ERROR: pa.array([error for _, error in said], pa.string()),
    }
