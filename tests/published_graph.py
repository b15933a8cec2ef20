"""A checkpoint in onnx-community's layout: one graph from token ids to final vectors."""

from __future__ import annotations

from pathlib import Path

import onnx

from gemma_embed.runtimes import OnnxRuntime
from gemma_fast.quantization import Precision


def publish(
    checkpoint: Path,
    folder: Path,
    *,
    output: str = "sentence_embedding",
    precision: Precision = "float32",
) -> Path:
    """Write a checkpoint in the published layout, without safetensors and modules."""
    graph = OnnxRuntime(checkpoint, precision=precision).export(folder)
    if output != "sentence_embedding":
        written = onnx.load(graph, load_external_data=False)
        written.graph.node[-1].output[0] = written.graph.output[-1].name = output
        onnx.save(written, graph)
    return folder
