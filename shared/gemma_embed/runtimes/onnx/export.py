"""A checkpoint as one ONNX graph, for Transformers.js and other programs."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from gemma_embed.errors import ConfigurationError, ModelChanged
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.files import check_unchanged
from gemma_embed.runtimes.local.loading import loading
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
# In config.json: the revision of the checkpoint that a folder's graphs were written from.
_WRITTEN_FROM = "gemma_embed_written_from"


def export_onnx(checkpoint: Checkpoint, folder: Path, precision: Precision = "float32") -> Path:
    """Write a checkpoint in the layout of onnx-community/embeddinggemma-300m-ONNX.

    ``OnnxRuntime`` and Transformers.js load the folder. Several precisions of one checkpoint may
    share it; an earlier graph of this precision is replaced.

    Args:
        checkpoint: Of a model whose network is written here; see ``OnnxRuntime.export``.
        folder: Created if missing.
        precision: Of the matrices and the table: ``fp32``, ``q8`` and ``q4`` in Transformers.js.

    Returns:
        The graph's file. Its numbers are next to it.

    Raises:
        ConfigurationError: If the checkpoint is such a graph already, or the folder is its own,
            holds another model, or cannot be written to.
        ModelCorrupt: If a file of the checkpoint cannot be read.
        ModelChanged: If the checkpoint changed while it was read.
        Unsupported: If its network has a part that is not computed here.
    """
    if checkpoint.weights[0].suffix == ".onnx":
        raise ConfigurationError(
            f"{checkpoint.folder} is exported already; name the folder of its safetensors files"
        )
    if folder.resolve() == checkpoint.folder.resolve():
        raise ConfigurationError(f"{folder} holds the model itself; name another folder")
    _check_place(folder, checkpoint, GRAPHS[precision])
    try:
        return _write(checkpoint, folder, precision)
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be written ({error.strerror or error}); free some space, or name "
            "another place"
        ) from error


def _check_place(folder: Path, checkpoint: Checkpoint, graph: str) -> None:
    """Make sure that nothing is replaced but an earlier export, and no other graph's files."""
    if any(folder.glob("*.safetensors")):
        raise ConfigurationError(f"{folder} holds a checkpoint; name another folder")
    source = None
    # Whatever cannot be read is no note of this function's.
    with suppress(OSError, ValueError, AttributeError):
        source = json.loads((folder / "config.json").read_bytes()).get(_WRITTEN_FROM)
    there = [*folder.glob("onnx/*"), *(folder / name for name in ("config.json", *_COPIED))]
    if source is not None:
        there = [path for path in folder.glob("onnx/*.onnx") if path != folder / graph]
    others = sorted(path.name for path in there if path.exists())
    if others and source != checkpoint.revision:
        raise ConfigurationError(
            f"{folder} holds files of another checkpoint or program ({', '.join(others)}), which "
            "would be replaced, or get this one's tokenizer and config.json; name another folder, "
            "or remove that one"
        )


def _write(checkpoint: Checkpoint, folder: Path, precision: Precision) -> Path:
    sizes = Architecture.of(checkpoint.config, checkpoint.max_tokens)
    weights = checkpoint.tensors()
    weights.check(sizes.shapes())
    dense = [dense_matrix(file) for file in checkpoint.dense]
    copies = {}
    for source in (checkpoint.folder / name for name in _COPIED):
        if source.is_file():
            with loading(str(source)):
                copies[source.name] = source.read_bytes()
    # In a browser, files beside a graph are loaded only if they are announced.
    known = {Path(name).name: 1 for name in GRAPHS.values()}
    stated = {
        "transformers.js_config": {"use_external_data_format": known},
        _WRITTEN_FROM: checkpoint.revision,
    }
    config = json.dumps({**checkpoint.config, **stated}, indent=2)
    graph = folder / GRAPHS[precision]
    graph.parent.mkdir(parents=True, exist_ok=True)
    # First, so that whoever stops this leaves no earlier graph with the files of this one.
    graph.unlink(missing_ok=True)
    for name in _COPIED:
        # Of an earlier export.
        (folder / name).unlink(missing_ok=True)
    # The note first, without which whoever stops this could not go on in this folder.
    for name, content in {"config.json": config.encode(), **copies}.items():
        (folder / name).write_bytes(content)
    write_published(graph, sizes, weights, dense, precision)
    try:
        check_unchanged(checkpoint.files)
    except ModelChanged:
        graph.unlink()
        raise
    return graph
