"""The model in this process, on ONNX Runtime: no torch."""

from gemma_embed.runtimes.onnx.runtime import OnnxRuntime

__all__ = ["OnnxRuntime"]
