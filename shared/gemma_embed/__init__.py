"""EmbeddingGemma done right: one core over several runtimes.

``Embedder`` is the whole of it: texts in, vectors out. Runtimes are in ``gemma_embed.runtimes``,
errors in ``gemma_embed.errors``.
"""

from gemma_embed.embedder import Embedder, Overlong
from gemma_embed.prompts import Task, custom_task

__all__ = ["Embedder", "Overlong", "Task", "custom_task"]
__version__ = "0.1.0"
