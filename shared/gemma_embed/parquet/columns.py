"""The columns of a job's results."""

from __future__ import annotations

from typing import Any, Literal

VectorType = Literal["float32", "float16", "int8"]

# The columns of a job's results, beside the source's own.
VECTOR, FINGERPRINT, STATUS, ERROR = "vector", "fingerprint", "status", "error"
OK, TOO_LONG, INVALID, FAILED = "ok", "too_long", "invalid", "failed"

TEXT, TITLE = b"gemma_embed.text_column", b"gemma_embed.title_column"


def embedded_columns(text_column: str, title_column: str | None) -> dict[bytes, bytes]:
    """Return the metadata of a column of vectors: which columns they were made of."""
    stated = {TEXT: text_column, TITLE: title_column}
    return {key: name.encode() for key, name in stated.items() if name is not None}


def space_name(fingerprint: str, vector_type: VectorType) -> str:
    """Return what a job of numbers of this type states in its column of fingerprints.

    A folder has numbers of one type: nobody can compare codes with vectors, and whoever asks for
    float32 is not to find float16 among them.
    """
    return fingerprint if vector_type == "float32" else f"{fingerprint}-{vector_type}"


def writing(vector_type: VectorType) -> dict[str, Any]:
    """Return options for ``Dataset.write_parquet`` or pyarrow's own writer.

    By default every column gets a dictionary of its values. Of floats, which hardly ever repeat,
    that takes most of the time to write, and makes the file larger. Split into their bytes they
    compress instead. Codes do repeat.
    """
    if vector_type == "int8":
        return {"compression": "zstd"}
    return {
        "compression": "zstd",
        "use_dictionary": [FINGERPRINT, STATUS, ERROR],
        "use_byte_stream_split": [f"{VECTOR}.list.element"],
    }
