"""The model on an Ollama server."""

from gemma_embed.runtimes.ollama.host import EnvironmentVariable
from gemma_embed.runtimes.ollama.runtime import OllamaRuntime

__all__ = ["EnvironmentVariable", "OllamaRuntime"]
