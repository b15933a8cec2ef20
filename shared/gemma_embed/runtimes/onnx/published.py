"""A graph that others published: token ids and a mask in, finished vectors out.

The layout of onnx-community/embeddinggemma-300m-ONNX: ``onnx/model.onnx`` with its numbers in
``onnx/model.onnx_data``, and the same for fewer bits; inputs ``input_ids`` and ``attention_mask``,
outputs ``last_hidden_state``, which is not used here, and ``sentence_embedding``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gemma_embed.errors import WrongModel
from gemma_embed.vectors import Vectors
from gemma_fast.onnx_forward import open_session
from gemma_fast.quantization import Precision

GRAPHS: dict[Precision, str] = {
    "float32": "onnx/model.onnx",
    "int8": "onnx/model_quantized.onnx",
    "int4": "onnx/model_q4.onnx",
}
_INPUTS = {"input_ids", "attention_mask"}
_OUTPUT = "sentence_embedding"


def holds_published_graphs(folder: Path) -> bool:
    """Tell whether a folder is in this layout: ONNX graphs and no safetensors file."""
    return any(folder.glob("onnx/*.onnx")) and not any(folder.glob("*.safetensors"))


class PublishedForward:
    """A complete model in one graph. Safe for several threads."""

    def __init__(self, path: Path, threads: int | None) -> None:
        """Load it.

        Args:
            path: The graph.
            threads: Threads that compute; None for one a processor core.

        Raises:
            WrongModel: If its inputs or outputs are others.
        """
        self._session = open_session(path, threads, fused=False)
        inputs = {place.name for place in self._session.get_inputs()}
        outputs = {place.name for place in self._session.get_outputs()}
        if inputs != _INPUTS or _OUTPUT not in outputs:
            raise WrongModel(
                f"{path} takes {sorted(inputs)} and gives {sorted(outputs)}; it must take "
                f"{sorted(_INPUTS)} and give {_OUTPUT!r}, the vector after pooling and Dense "
                "layers: use onnx-community's graph, or the safetensors files"
            )

    def __call__(self, tokens: Sequence[Sequence[int]]) -> Vectors:
        """Compute one batch: float32, shape (len(tokens), width)."""
        ids = np.zeros((len(tokens), max(map(len, tokens))), np.int64)
        mask = np.zeros_like(ids)
        for row, sequence in enumerate(tokens):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        vectors: Vectors = self._session.run([_OUTPUT], inputs)[0]
        return vectors
