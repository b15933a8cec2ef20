"""A graph that others published: token ids and a mask in, finished vectors out.

The layout of onnx-community/embeddinggemma-300m-ONNX: ``onnx/model.onnx`` with its numbers in
``onnx/model.onnx_data``, and the same for fewer bits; inputs ``input_ids`` and ``attention_mask``,
output ``sentence_embedding``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gemma_embed.errors import WrongModel
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.onnx.quantization import Precision
from gemma_embed.runtimes.onnx.session import Session
from gemma_embed.vectors import Vectors

GRAPHS: dict[Precision, str] = {
    "float32": "onnx/model.onnx",
    "int8": "onnx/model_quantized.onnx",
    "int4": "onnx/model_q4.onnx",
}
_INPUTS = {"input_ids", "attention_mask"}
_OUTPUT = "sentence_embedding"


def is_published_graph(source: str) -> bool:
    """Tell whether a folder holds graphs and no weights, or a hub id is named as such a one."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return (folder / "onnx").is_dir() and not any(folder.glob("*.safetensors"))
    return source.lower().endswith("-onnx")


class PublishedNetwork:
    """A whole model in one graph. Safe for several threads."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision, threads: int | None) -> None:
        """Load it.

        Raises:
            ModelCorrupt: If ONNX Runtime cannot read it.
            WrongModel: If it takes or gives something else.
        """
        path = checkpoint.folder / GRAPHS[precision]
        self._session = Session(path, threads, fused=False)
        if self._session.inputs != _INPUTS or _OUTPUT not in self._session.outputs:
            raise WrongModel(
                f"{path} takes {sorted(self._session.inputs)} and gives "
                f"{sorted(self._session.outputs)}; wanted are {sorted(_INPUTS)} and {_OUTPUT!r}, "
                "the vector after pooling and Dense layers: use onnx-community's graph, or the "
                "safetensors files"
            )

    def forward(self, tokens: Sequence[Sequence[int]]) -> Vectors:
        """Compute one batch: float32, shape (len(tokens), width)."""
        ids = np.zeros((len(tokens), max(map(len, tokens))), np.int64)
        mask = np.zeros_like(ids)
        for row, sequence in enumerate(tokens):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        return self._session.run({"input_ids": ids, "attention_mask": mask}, _OUTPUT)
