"""The model in this process, on plain transformers and safetensors."""

from gemma_embed.runtimes.transformers.runtime import TransformersRuntime

__all__ = ["TransformersRuntime"]
