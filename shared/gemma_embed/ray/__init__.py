"""Embedding with Ray Data, on all cores of one machine or of many.

Ray starts the workers, feeds them and starts lost ones again. What is added here is a class for
``Dataset.map_batches``. Without Ray it is a function from one Arrow table to another, which other
engines can call too.
"""

from gemma_embed.parquet.columns import VectorType
from gemma_embed.ray.embed_batch import EmbedBatch
from gemma_embed.ray.missing import missing

__all__ = ["EmbedBatch", "VectorType", "missing"]
