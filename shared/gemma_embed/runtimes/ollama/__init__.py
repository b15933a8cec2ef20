"""The model on an Ollama server."""

from gemma_embed.runtimes.ollama.runtime import OllamaRuntime

__all__ = ["OllamaRuntime"]
