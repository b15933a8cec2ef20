"""Vectors in Parquet files: what a job has finished, and its vectors in the store.

A job writes a folder of such files, each row with an id, a text, and the columns named here. What
it has finished is in the folder and nowhere else: ``finished_ids`` reads it, and a job that leaves
these out computes only what is missing. One folder has the vectors of one space.
"""

from gemma_embed.errors import MissingDependency

try:
    import pyarrow  # noqa: F401
except ImportError as error:
    raise MissingDependency(
        'Parquet files need pyarrow; run: pip install "gemma-embed[ray]"'
    ) from error

from gemma_embed.parquet.finished import finished_ids
from gemma_embed.parquet.loading import LoadReport, load

__all__ = ["LoadReport", "finished_ids", "load"]
