"""The model in this process, on MLX: Apple silicon."""

from gemma_embed.runtimes.mlx.runtime import MlxRuntime

__all__ = ["MlxRuntime"]
