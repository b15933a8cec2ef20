"""A written graph on ONNX Runtime: token ids in, vectors out."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_fast.architecture import Architecture
from gemma_fast.graph import BLOCK_TOKENS, GRAPH
from gemma_fast.weights import Floats, Rows, Weights

logger = logging.getLogger("gemma_fast")

# Added to attention scores where a token must not look; softmax gives exactly zero there.
_NEVER = np.float32(-1e9)
_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"


class OnnxForward:
    """Embedding table, layers, pooling and Dense layers. Safe for several threads."""

    def __init__(
        self, folder: Path, sizes: Architecture, weights: Weights, threads: int | None = None
    ) -> None:
        """Load a graph.

        Args:
            folder: What ``write_graph`` wrote for this network.
            sizes: Of the network.
            weights: Its tensors; the embedding table is read from them.
            threads: Threads that compute; None for one a processor core.
        """
        self._table = Rows(weights["embed_tokens.weight"])
        self.graph = folder / GRAPH
        self._session = open_session(self.graph, threads)
        self._sizes = sizes

    def of_one_thread(self) -> OnnxForward:
        """Load the graph once more; errors are ONNX Runtime's own.

        The table is shared: its path may lead to other weights by now, or to none.
        """
        other = copy(self)
        other._session = open_session(self.graph, 1)
        return other

    def __call__(self, tokens: Sequence[Sequence[int]]) -> Floats:
        """Compute one batch: float32, shape (len(tokens), width), rows not of norm 1 yet.

        Raises:
            Damaged: If the embedding table has no row for a token.
        """
        longest = max(map(len, tokens))
        blocks = -(-longest // BLOCK_TOKENS)
        if blocks > 1 and len(tokens) > 1:
            return np.concatenate([self([sequence]) for sequence in tokens])
        inputs = self._inputs(tokens, blocks, -(-longest // blocks))
        vectors: Floats = self._session.run(["vectors"], inputs)[0]
        return vectors

    def _inputs(
        self, tokens: Sequence[Sequence[int]], blocks: int, size: int
    ) -> dict[str, npt.NDArray[Any]]:
        """Return the graph's inputs, for blocks of ``size`` tokens of each text."""
        hidden, reach = self._sizes.hidden, self._sizes.reach
        states = np.zeros((len(tokens), blocks * size, hidden), np.float32)
        for row, sequence in enumerate(tokens):
            for start in range(0, len(sequence), size):
                part = sequence[start : start + size]
                states[row, start : start + len(part)] = self._table.take(part)
        states *= np.float32(math.sqrt(hidden))
        lengths = np.array([[len(sequence)] for sequence in tokens])
        positions = np.arange(blocks * size)
        real = positions < lengths
        padding = np.where(real, np.float32(0), _NEVER)
        starts = np.arange(blocks)[:, None] * size
        width = min(len(positions), size + 2 * (reach - 1))
        near = np.clip(starts - (reach - 1), 0, len(positions) - width) + np.arange(width)
        window = padding[:, near].transpose(1, 0, 2)[:, :, None].repeat(size, 2)
        for block, queries in enumerate(positions.reshape(blocks, size, 1)):
            window[block][:, np.abs(queries - near[block]) >= reach] = _NEVER
        return {
            "states": states.reshape(blocks, -1, hidden),
            "starts": starts,
            "near": near,
            "padding": padding[:, None],
            "window": window[:, :, :, None],
            "mean": (real / lengths).astype(np.float32)[:, None],
        }


def open_session(path: Path, threads: int | None, *, fused: bool = True) -> Any:
    """Load a graph; errors are ONNX Runtime's own.

    Args:
        path: Its file.
        threads: Threads that compute; None for one a processor core that this process may use.
        fused: Whether it is written as it runs best, so that ONNX Runtime need not rewrite it.

    Returns:
        An ``onnxruntime.InferenceSession``.
    """
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or processor_cores()
    # A thread that waits for work in a loop takes a core from whoever computes next: another
    # session, or torch. Measured: 30 % of this one's speed with two idle sessions around.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Shapes differ from batch to batch, so a plan for one is of no use to the next.
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _onnxruntime() -> Any:
    """Import ONNX Runtime without its telemetry.

    Since version 1.32, importing it starts a thread that reports to Microsoft and writes a device
    id into the user's cache folder. Only the variable prevents both, and only before the import.
    A value that the user has set is left alone.
    """
    late = "onnxruntime" in sys.modules and _NO_TELEMETRY not in os.environ
    os.environ.setdefault(_NO_TELEMETRY, "1")
    import onnxruntime

    if late:
        onnxruntime.disable_telemetry_events()
        logger.warning(
            "onnxruntime was imported before gemma_embed could switch its telemetry off, and may "
            "have contacted Microsoft already; set %s=1 before importing onnxruntime",
            _NO_TELEMETRY,
        )
    return onnxruntime


def processor_cores() -> int:
    """Count the cores that this process may use, each once however many threads it has.

    Returns:
        Their number; 0, which lets ONNX Runtime count, where the system does not tell. It then
        binds its threads to cores, which two sessions in a process must not do to each other.
    """
    if not hasattr(os, "sched_getaffinity"):
        return 0
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    try:
        return len({Path(topology.format(n)).read_text() for n in os.sched_getaffinity(0)})
    except OSError:
        return 0
