"""Collections in Chroma that say whose vectors they hold, survive crashes, and can be rebuilt."""

from gemma_embed.chroma.index import ChromaIndex, verify
from gemma_embed.chroma.ingestion import IngestReport
from gemma_embed.passages import Passage

__all__ = ["ChromaIndex", "IngestReport", "Passage", "verify"]
