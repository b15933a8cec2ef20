"""EmbeddingGemma done right: one core over several runtimes.

``Embedder`` takes texts and returns vectors; an ``EmbeddingStore`` stores them. Runtimes are in
``gemma_embed.runtimes``, errors in ``gemma_embed.errors``.
"""

from gemma_embed.embedder import Embedder
from gemma_embed.long_texts import Overlong
from gemma_embed.prompts import Task, custom_task
from gemma_embed.store import EmbeddingStore

__all__ = ["Embedder", "EmbeddingStore", "Overlong", "Task", "custom_task"]
__version__ = "0.1.0"
