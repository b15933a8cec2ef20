"""Runtimes: who computes the vectors."""

from gemma_embed.runtimes.base import Batch, Runtime, TooLong
from gemma_embed.runtimes.gguf import GgufRuntime
from gemma_embed.runtimes.mlx import MlxRuntime
from gemma_embed.runtimes.named import RuntimeName, one_name, open_runtime, runtime_settings
from gemma_embed.runtimes.ollama import OllamaRuntime
from gemma_embed.runtimes.onnx import OnnxRuntime
from gemma_embed.runtimes.openai import OpenAIRuntime
from gemma_embed.runtimes.remote import EnvironmentVariable
from gemma_embed.runtimes.transformers import TransformersRuntime
from gemma_embed.runtimes.unknown_options import reject_unknown

__all__ = [
    "Batch",
    "EnvironmentVariable",
    "GgufRuntime",
    "MlxRuntime",
    "OllamaRuntime",
    "OnnxRuntime",
    "OpenAIRuntime",
    "Runtime",
    "RuntimeName",
    "TooLong",
    "TransformersRuntime",
    "one_name",
    "open_runtime",
    "reject_unknown",
    "runtime_settings",
]
