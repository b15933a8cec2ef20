"""The model on a server with OpenAI's ``/v1/embeddings``."""

from gemma_embed.runtimes.openai.runtime import OpenAIRuntime

__all__ = ["OpenAIRuntime"]
