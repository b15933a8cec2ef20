"""The network of a checkpoint on ONNX Runtime: token ids in, vectors out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gemma_embed.errors import ModelCorrupt
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.weights import Rows, Weights
from gemma_embed.runtimes.onnx.architecture import Architecture
from gemma_embed.runtimes.onnx.cache import kept
from gemma_embed.runtimes.onnx.graph import GRAPH, VERSION, write_graph
from gemma_embed.runtimes.onnx.quantization import Floats, Precision
from gemma_embed.runtimes.onnx.session import Session
from gemma_embed.vectors import Vectors

_TABLE = "embed_tokens.weight"
# Added to attention scores where a token must not look; softmax gives exactly zero there.
_NEVER = np.float32(-1e9)


class Network:
    """Table, layers, pooling and Dense layers, from safetensors. Safe for several threads."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision, threads: int | None) -> None:
        """Load a checkpoint; the first time, write its graph.

        Raises:
            ConfigurationError: If the graph can be written nowhere.
            ModelCorrupt: If files are damaged or incomplete.
            WrongModel: If it has parts that this network does not have.
        """
        sizes = Architecture.of(checkpoint)
        weights = Weights(checkpoint.weights)
        if _TABLE not in weights or len(weights[_TABLE].shape) != 2:
            raise ModelCorrupt(
                f"the weights in {checkpoint.folder} lack {_TABLE}; download the model again"
            )
        weights.check(sizes.shapes() | {_TABLE: (weights[_TABLE].shape[0], sizes.hidden)})

        def write(folder: Path) -> None:
            dense = [_dense(place) for place in checkpoint.dense]
            write_graph(folder, sizes, weights, dense, precision)

        graph = kept(checkpoint, precision, VERSION, write)
        self._table = Rows(weights[_TABLE])
        self._session = Session(graph / GRAPH, threads)
        self._sizes = sizes

    def forward(self, tokens: Sequence[Sequence[int]]) -> Vectors:
        """Compute one batch: float32, shape (len(tokens), width), rows not of norm 1 yet."""
        lengths = np.array([len(sequence) for sequence in tokens])
        longest = int(lengths.max())
        states = np.zeros((len(tokens), longest, self._sizes.hidden), np.float32)
        for row, sequence in enumerate(tokens):
            states[row, : len(sequence)] = self._table.take(sequence)
        states *= np.float32(math.sqrt(self._sizes.hidden))
        positions = np.arange(longest)
        real = positions < lengths[:, None]
        far = np.abs(positions[:, None] - positions) >= self._sizes.reach
        padding = np.where(real, np.float32(0), _NEVER)[:, None, None, None, :]
        window = np.minimum(padding, np.where(far, _NEVER, np.float32(0)))
        return self._session.run(
            {
                "states": states.reshape(-1, self._sizes.hidden),
                "padding": padding,
                "window": window,
                "mean": (real / lengths[:, None]).astype(np.float32)[:, None, :],
            },
            "vectors",
        )


def _dense(path: Path) -> Floats:
    tensor = Weights((path,)).get("linear.weight")
    if tensor is None or len(tensor.shape) != 2:
        raise ModelCorrupt(f"{path} is no Dense layer; download the model again")
    return tensor.read()
