"""From a job's results into a store."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gemma_embed.embedder import Embedder
from gemma_embed.errors import CollectionDamaged, CollectionMismatch, ConfigurationError
from gemma_embed.gate import checked_stored
from gemma_embed.parquet.columns import FINGERPRINT, OK, STATUS, TEXT, TITLE, VECTOR, space_name
from gemma_embed.parquet.files import Place, check_columns, check_space, places, read
from gemma_embed.path import Route, prompted
from gemma_embed.vectors import Vectors

_PAGE = 4096
_WHOLE = (pa.float32(), pa.float16())


@dataclass(frozen=True)
class LoadReport:
    """What ``load`` found.

    Attributes:
        loaded: Rows whose vectors are in the store now.
        without_vector: Rows by status that a job could not embed; their ``error`` says why.
    """

    loaded: int = 0
    without_vector: dict[str, int] = field(default_factory=dict)


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
    files = list(places(folder))
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
            check_space(read(file, place, [FINGERPRINT, STATUS]), expected, place)
            text, title = _embedded(file.schema_arrow, full.dimensions, place)
            columns = [name for name in (text, title, VECTOR, STATUS) if name is not None]
            check_columns(file, place, columns)
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


def _numbers(file: pq.ParquetFile) -> pa.DataType | None:
    schema = file.schema_arrow
    return schema.field(VECTOR).type if VECTOR in schema.names else None


def _embedded(schema: pa.Schema, width: int, place: Place) -> tuple[str, str | None]:
    """Return the columns of texts and titles that the vectors are of, if a store takes them."""
    stated = (schema.field(VECTOR).metadata or {}) if VECTOR in schema.names else {}
    if TEXT not in stated:
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
    title = stated.get(TITLE)
    return stated[TEXT].decode(), None if title is None else title.decode()


def _vectors(column: pa.ChunkedArray, width: int, place: Place) -> Vectors:
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
