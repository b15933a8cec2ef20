"""What a job has still to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from gemma_embed.parquet.finished import finished_ids, one_type

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.data import Dataset


def missing(
    dataset: Dataset, folder: str | Path, fingerprint: str, *, id_column: str = "id"
) -> Dataset:
    """Return the rows that a job has still to embed: those whose ids are not in its results.

    Args:
        dataset: The source; each id once.
        folder: The results of earlier runs; see ``finished_ids``, which reads them now.
        fingerprint: Of the job: ``EmbedBatch.fingerprint``.
        id_column: The column of ids, here and there. An id names one text; a row whose id is null
            is never finished.

    Raises:
        CollectionMismatch: If a result has another fingerprint, or ids of another type; those of
            the source are compared in the workers.
        CollectionDamaged: If a file lacks a column.
    """
    import ray

    done = finished_ids(folder, fingerprint, id_column=id_column)
    if not len(done):
        return dataset
    # Once in the memory that all workers of a machine share.
    arguments = {"done": ray.put(done), "id_column": id_column}
    return dataset.map_batches(
        _without, batch_format="pyarrow", batch_size=None, fn_kwargs=arguments
    )


def _without(batch: pa.Table, done: ObjectRef, id_column: str) -> pa.Table:
    import ray

    return unfinished(batch, ray.get(done), id_column)


def unfinished(batch: pa.Table, finished: pa.ChunkedArray, id_column: str) -> pa.Table:
    """Return the rows whose ids are not among the finished; raises CollectionMismatch."""
    ids = batch[id_column]
    kind = one_type({"the source": ids.type, "the results": finished.type}, id_column)
    # One null among the finished says nothing of the other rows without an id.
    there = pc.is_in(ids.cast(kind), value_set=finished.cast(kind), skip_nulls=True)
    return batch.filter(pc.invert(there))
