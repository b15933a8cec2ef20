"""ONNX Runtime: a graph, loaded and run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_embed.errors import ModelCorrupt
from gemma_embed.vectors import Vectors


class Session:
    """An ONNX graph, loaded."""

    def __init__(self, path: Path, threads: int | None, *, fused: bool = True) -> None:
        """Load a graph.

        Args:
            path: Its file.
            threads: Threads that compute; None for one a processor core.
            fused: Whether it is written as it shall run, with nothing left to fuse.

        Raises:
            ModelCorrupt: If ONNX Runtime cannot read it.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        if fused:
            level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.graph_optimization_level = level
        # Shapes differ from batch to batch, so a plan for one is of no use to the next.
        options.enable_mem_pattern = False
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # ONNX Runtime's exceptions have Exception for their only common base.
            raise ModelCorrupt(
                f"onnxruntime {onnxruntime.__version__} cannot load {path}; remove "
                f"{path.parent}, so that it is made or downloaded anew, or run: "
                "pip install -U onnxruntime"
            ) from error

    @property
    def inputs(self) -> set[str]:
        """Names of what goes in."""
        return {place.name for place in self._session.get_inputs()}

    @property
    def outputs(self) -> set[str]:
        """Names of what comes out."""
        return {place.name for place in self._session.get_outputs()}

    def run(self, inputs: Mapping[str, Any], output: str) -> Vectors:
        """Compute one output.

        Raises:
            MemoryError: If it does not fit.
        """
        try:
            (vectors,) = self._session.run([output], dict(inputs))
        except Exception as error:
            if "allocat" in str(error).lower():
                raise MemoryError(str(error)) from error
            raise
        result: Vectors = vectors
        return result
