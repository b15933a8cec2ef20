"""ONNX Runtime: a graph, loaded and run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_embed.errors import ModelCorrupt
from gemma_embed.runtimes.local.memory import is_out_of_memory
from gemma_embed.vectors import Vectors


class Session:
    """An ONNX graph, loaded."""

    def __init__(self, path: Path, threads: int | None, *, fused: bool = True) -> None:
        """Load a graph.

        Args:
            path: Its file.
            threads: Threads that compute; None for one a processor core that this process may use.
            fused: Whether it is written as it shall run, with nothing left to fuse.

        Raises:
            ModelCorrupt: If ONNX Runtime cannot read it.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or processor_cores()
        # A thread that waits for work by counting takes a core from whoever computes next: another
        # session, or torch. Measured: 30 % of this one's speed beside two idle sessions.
        options.add_session_config_entry("session.force_spinning_stop", "1")
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
            if is_out_of_memory(error):
                raise
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
        """Compute one output; errors are ONNX Runtime's own."""
        vectors: Vectors = self._session.run([output], dict(inputs))[0]
        return vectors


def processor_cores() -> int:
    """Count the cores that this process may use, each once however many threads it runs at a time.

    Returns:
        Their number; 0, for ONNX Runtime to count itself, where the system does not tell. It then
        binds its threads to cores, which two sessions in a process must not do to each other.
    """
    if not hasattr(os, "sched_getaffinity"):
        return 0
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    try:
        return len({Path(topology.format(n)).read_text() for n in os.sched_getaffinity(0)})
    except OSError:
        return 0
