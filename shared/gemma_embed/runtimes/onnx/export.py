"""A checkpoint as one ONNX graph, for Transformers.js and other programs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from gemma_embed.errors import ConfigurationError
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.files import check_unchanged
from gemma_embed.runtimes.onnx.published import GRAPHS
from gemma_fast.architecture import Architecture
from gemma_fast.published_graph import write_published
from gemma_fast.quantization import Precision
from gemma_fast.weights import dense_matrix

# The last one may have the limit of tokens.
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)


def export_onnx(checkpoint: Checkpoint, folder: Path, precision: Precision = "float32") -> Path:
    """Write a checkpoint in the layout of onnx-community/embeddinggemma-300m-ONNX.

    ``OnnxRuntime`` and Transformers.js load the folder; several precisions may share it.

    Args:
        checkpoint: Of a model whose network is written here; see ``OnnxRuntime.export``.
        folder: Created if missing.
        precision: Of the matrices and the table: ``fp32``, ``q8`` and ``q4`` in Transformers.js.

    Returns:
        The graph's file. Its numbers are next to it.

    Raises:
        ConfigurationError: If the checkpoint is such a graph already, or the folder is its own or
            cannot be written to.
        ModelChanged: If the checkpoint changed while it was read.
        Unsupported: If its network has a part that is not computed here.
    """
    if checkpoint.weights[0].suffix == ".onnx":
        raise ConfigurationError(
            f"{checkpoint.folder} is exported already; name the folder of its safetensors files"
        )
    if folder.resolve() == checkpoint.folder.resolve():
        raise ConfigurationError(f"{folder} holds the model itself; name another folder")
    try:
        graph = _write(checkpoint, folder, precision)
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be written ({error.strerror or error}); free some space, or name "
            "another place"
        ) from error
    check_unchanged(checkpoint.files)
    return graph


def _write(checkpoint: Checkpoint, folder: Path, precision: Precision) -> Path:
    graph = folder / GRAPHS[precision]
    graph.parent.mkdir(parents=True, exist_ok=True)
    for name in _COPIED:
        # Of an earlier export.
        (folder / name).unlink(missing_ok=True)
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, folder / name)
    # In a browser, files beside a graph are loaded only if they are announced.
    known = {Path(name).name: 1 for name in GRAPHS.values()}
    stated = {"transformers.js_config": {"use_external_data_format": known}}
    config = json.dumps({**checkpoint.config, **stated}, indent=2)
    (folder / "config.json").write_text(config, encoding="utf-8")
    sizes = Architecture.of(checkpoint.config, checkpoint.max_tokens)
    weights = checkpoint.tensors()
    weights.check(sizes.shapes())
    dense = [dense_matrix(file) for file in checkpoint.dense]
    write_published(graph, sizes, weights, dense, precision)
    return graph
