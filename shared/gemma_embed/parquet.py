"""Vectors in Parquet files: what a job has finished, and its vectors in the store.

A job writes a folder of such files, each row with an id, a text, and the columns named here. What
it has finished is in the folder and nowhere else: ``finished_ids`` reads it, and a job that leaves
these out computes only what is missing. One folder has the vectors of one space.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gemma_embed.embedder import Embedder
from gemma_embed.errors import (
    CollectionDamaged,
    CollectionMismatch,
    ConfigurationError,
    MissingDependency,
)
from gemma_embed.files import expanded
from gemma_embed.gate import checked_stored
from gemma_embed.path import Route, prompted
from gemma_embed.vectors import Vectors

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from pyarrow import fs
except ImportError as error:
    raise MissingDependency(
        'Parquet files need pyarrow; run: pip install "gemma-embed[ray]"'
    ) from error

VectorType = Literal["float32", "float16", "int8"]

logger = logging.getLogger("gemma_embed")

# The columns of a job's results, beside the source's own.
VECTOR, FINGERPRINT, STATUS, ERROR = "vector", "fingerprint", "status", "error"
OK, TOO_LONG, INVALID, FAILED = "ok", "too_long", "invalid", "failed"

_TEXT, _TITLE = b"gemma_embed.text_column", b"gemma_embed.title_column"
_PAGE = 4096
# Readers of Parquet folders pass over such names.
_ASIDE = "_half-written-"
_WHOLE = (pa.float32(), pa.float16())


def embedded_columns(text_column: str, title_column: str | None) -> dict[bytes, bytes]:
    """Return the metadata of a column of vectors: which columns they were made of."""
    stated = {_TEXT: text_column, _TITLE: title_column}
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


@dataclass(frozen=True)
class LoadReport:
    """What ``load`` found.

    Attributes:
        loaded: Rows whose vectors are in the store now.
        without_vector: Rows by status that a job could not embed; their ``error`` says why.
    """

    loaded: int = 0
    without_vector: dict[str, int] = field(default_factory=dict)


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
    for place in _places(folder):
        file = place.opened()
        if file is None:
            _put_aside(place)
            continue
        with file:
            rows = _read(file, place, [id_column, FINGERPRINT, STATUS])
            _check_space(rows, fingerprint, place)
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
        pair = [pa.schema([(column, each)]) for each in (common, kind)]
        try:
            common = pa.unify_schemas(pair, promote_options="permissive").field(0).type
        except pa.ArrowTypeError as error:
            raise CollectionMismatch(
                f"the ids in column {column!r} are {common} in {first} and {kind} in {place}: give "
                "the source the type that its results have, or write the results into a new folder"
            ) from error
        first = first or place
    return common


def load(folder: str | Path, embedder: Embedder) -> LoadReport:
    """Put a job's vectors into the embedder's store, without the model.

    After that every text of the job is looked up instead of computed, whatever the width: by
    ``embedder.embed``, or by ``ChromaIndex.ingest`` with an embedder that has this store. May be
    repeated. float16 numbers are stored as they are, at most 0.0003 from what was computed.

    Args:
        folder: The job's results, as for ``finished_ids``.
        embedder: With a store of either form, and the model and ``overlong`` of the job.

    Raises:
        ConfigurationError: If the embedder has no store, or the folder no Parquet file.
        CollectionMismatch: If a row has another fingerprint than the embedder's at full width, or
            vectors that are cut or int8, which a store does not hold; nothing of its file is
            stored.
        CollectionDamaged: If a file is half written, lacks a column, or has a vector that is
            missing, not finite or not of norm 1.
        StoreError: If the store cannot be used.
    """
    full = embedder.replaced(dimensions=None, store=None)
    store = embedder.store
    if store is None:
        raise ConfigurationError("load() needs an embedder with a store='path/of/a/file'")
    space = Route(full.runtime, full.overlong, store, full.dimensions).space
    files = list(_places(folder))
    if not files:
        raise ConfigurationError(f"{folder} has no Parquet file: name the folder of the job")
    loaded, failed = 0, Counter[str]()
    for place in files:
        file = place.opened()
        if file is None:
            raise CollectionDamaged(
                f"{place.path} is half written, as a killed job leaves it: run the job again, it "
                "computes only what is missing"
            )
        with file:
            half = _numbers(file) == pa.list_(pa.float16(), full.dimensions)
            expected = space_name(full.fingerprint, "float16" if half else "float32")
            _check_space(_read(file, place, [FINGERPRINT, STATUS]), expected, place)
            text, title = _embedded(file.schema_arrow, full.dimensions, place)
            columns = [name for name in (text, title, VECTOR, STATUS) if name is not None]
            _check_columns(file, place, columns)
            for batch in file.iter_batches(_PAGE, columns=columns):
                page = pa.Table.from_batches([batch])
                rows = page.filter(pc.equal(page[STATUS], OK))
                failed.update(page[STATUS].to_pylist())
                loaded += rows.num_rows
                vectors = _vectors(rows[VECTOR], full.dimensions, place)
                if rows[text].null_count:
                    raise CollectionDamaged(f"{place.path} has a vector without a text")
                titles = rows[title].to_pylist() if title else [None] * rows.num_rows
                items = prompted(
                    rows[text].to_pylist(), titles, full.document_task, full.runtime.prompts
                )
                store.put(space, [item.prompted for item in items], vectors)
    failed.pop(OK, None)
    return LoadReport(loaded, dict(failed))


@dataclass(frozen=True)
class _Place:
    """A file, and where it is."""

    system: fs.FileSystem
    path: str

    def opened(self) -> pq.ParquetFile | None:
        """Open the file; None for one without its end."""
        try:
            return pq.ParquetFile(self.path, filesystem=self.system)
        except pa.ArrowInvalid:
            # A writer adds the footer last: without it nothing of the file can be read.
            return None


def _places(folder: str | Path) -> Iterator[_Place]:
    """Yield the Parquet files of a folder."""
    if "://" in str(folder):
        system, path = fs.FileSystem.from_uri(str(folder))
    else:
        system, path = fs.LocalFileSystem(), str(expanded(folder))
    files = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    for each in sorted(files, key=lambda each: each.path):
        name = each.base_name
        if name[0] in "._":
            continue
        if each.type == fs.FileType.Directory:
            raise CollectionDamaged(
                f"{folder} has the folder {name!r}, and results are read from the folder itself "
                "only: write them without partition_cols, or move that folder elsewhere"
            )
        if name.endswith(".parquet"):
            yield _Place(system, each.path)


def _put_aside(place: _Place) -> None:
    head, _, name = place.path.rpartition("/")
    place.system.move(place.path, f"{head}/{_ASIDE}{name}")
    logger.warning("%s is half written, and was renamed to %s%s", place.path, _ASIDE, name)


def _read(file: pq.ParquetFile, place: _Place, columns: Sequence[str]) -> pa.Table:
    _check_columns(file, place, columns)
    return file.read(columns=list(columns))


def _check_columns(file: pq.ParquetFile, place: _Place, columns: Sequence[str]) -> None:
    there = file.schema_arrow.names
    missing = [name for name in columns if name not in there]
    if missing:
        raise CollectionDamaged(
            f"{place.path} has no column {missing[0]!r}, but {', '.join(there)}: it is not of this "
            "job, or its column has another name"
        )


def _check_space(rows: pa.Table, fingerprint: str, place: _Place) -> None:
    others = [each for each in pc.unique(rows[FINGERPRINT]).to_pylist() if each != fingerprint]
    if others:
        raise CollectionMismatch(
            f"{place.path} has vectors of another space, fingerprint {others[0]}, not "
            f"{fingerprint}: another model, width, prompt or setting made them; give each its own "
            "folder"
        )


def _numbers(file: pq.ParquetFile) -> pa.DataType | None:
    schema = file.schema_arrow
    return schema.field(VECTOR).type if VECTOR in schema.names else None


def _embedded(schema: pa.Schema, width: int, place: _Place) -> tuple[str, str | None]:
    """Return the columns of texts and titles that the vectors are of, if a store takes them."""
    stated = (schema.field(VECTOR).metadata or {}) if VECTOR in schema.names else {}
    if _TEXT not in stated:
        raise CollectionDamaged(
            f"{place.path} does not say of which columns its vectors are, as EmbedBatch's own "
            f"column {VECTOR!r} does: another program has rewritten it"
        )
    kind = schema.field(VECTOR).type
    if kind not in [pa.list_(number, width) for number in _WHOLE]:
        raise CollectionMismatch(
            f"{place.path} has vectors of {kind}, and a store holds them whole: {width} numbers of "
            "float32 or float16. Give the job no dimensions and vector_type='float32'; a search "
            "may be narrower all the same"
        )
    title = stated.get(_TITLE)
    return stated[_TEXT].decode(), None if title is None else title.decode()


def _vectors(column: pa.ChunkedArray, width: int, place: _Place) -> Vectors:
    # Without the nulls.
    numbers = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors: Vectors = numbers.astype(np.float32).reshape(-1, width)
    sound, _ = checked_stored(range(len(vectors)), vectors)
    if len(sound) < len(column):
        raise CollectionDamaged(
            f"{place.path} has a vector that is missing, not finite or not of norm 1: something "
            "else than the job wrote it; remove the file, and run the job again"
        )
    return vectors
