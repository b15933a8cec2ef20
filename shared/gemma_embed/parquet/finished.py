"""What a job has finished."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gemma_embed.errors import CollectionMismatch
from gemma_embed.parquet.columns import FAILED, FINGERPRINT, STATUS
from gemma_embed.parquet.files import check_space, places, put_aside, read


def finished_ids(folder: str | Path, fingerprint: str, *, id_column: str = "id") -> pa.ChunkedArray:
    """Return the ids that need no further work, for a job that is run again.

    Rows of status ``failed`` are not among them, since a server may work again. A file that is
    half written, because its writer was killed, is renamed with a warning; its rows count as
    missing. So call this before the job, never while one writes to the folder.

    Args:
        folder: The job's results: a folder, or an address that pyarrow knows (``s3://...``).
            Missing or empty, nothing is finished.
        fingerprint: Of the job: ``EmbedBatch.fingerprint``.
        id_column: The column of ids. An id names one text: a changed text needs another id.

    Returns:
        The ids in the type of the files, a chunk or more of each file.

    Raises:
        CollectionMismatch: If a row has another fingerprint, or ids in two files have types that
            cannot be compared.
        CollectionDamaged: If a file lacks a column, or there are folders in the folder.
    """
    # In chunks: one array has room for 2 GB of text, which 60 million ids take.
    found: list[pa.ChunkedArray] = []
    types: dict[str, pa.DataType] = {}
    for place in places(folder):
        file = place.opened()
        if file is None:
            put_aside(place)
            continue
        with file:
            rows = read(file, place, [id_column, FINGERPRINT, STATUS])
            check_space(rows, fingerprint, place)
            found.append(rows.filter(pc.not_equal(rows[STATUS], FAILED))[id_column])
            types[place.path] = found[-1].type
    kind = one_type(types, id_column)
    return pa.chunked_array([chunk for ids in found for chunk in ids.cast(kind).chunks], kind)


def one_type(types: Mapping[str, pa.DataType], column: str) -> pa.DataType:
    """Return the type in which ids from several places can be compared; null of no place.

    Args:
        types: By the names of the places.
        column: The name of the column of ids.

    Raises:
        CollectionMismatch: If there is none: numbers and texts.
    """
    common, first = pa.null(), ""
    for place, kind in types.items():
        # Arrow compares no dictionaries, as of pandas' categories, but the values in them.
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        pair = [pa.schema([(column, each)]) for each in (common, plain)]
        try:
            common = pa.unify_schemas(pair, promote_options="permissive").field(0).type
        except pa.ArrowTypeError as error:
            raise CollectionMismatch(
                f"the ids in column {column!r} are {common} in {first} and {kind} in {place}: give "
                "the source the type that its results have, or write the results into a new folder"
            ) from error
        first = first or place
    return common
