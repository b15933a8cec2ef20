"""The model in this process, on llama.cpp."""

from gemma_embed.runtimes.gguf.runtime import GgufRuntime

__all__ = ["GgufRuntime"]
