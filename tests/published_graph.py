"""A checkpoint in onnx-community's layout: one graph from token ids to final vectors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from gemma_embed.models import EMBEDDINGGEMMA_300M
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_fast.architecture import Architecture
from gemma_fast.graph import GRAPH, write_graph
from gemma_fast.weights import Weights, dense_matrix


def publish(checkpoint: Path, folder: Path, *, output: str = "sentence_embedding") -> Path:
    """Write a checkpoint in the published layout, without safetensors and modules."""
    (folder / "onnx").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, folder)
    read = Checkpoint.read(checkpoint, EMBEDDINGGEMMA_300M)
    sizes = Architecture.of(read.config, read.max_tokens)
    inner = folder / "inner"
    inner.mkdir()
    dense = [dense_matrix(file) for file in read.dense]
    write_graph(inner, sizes, Weights(read.weights), dense, "float32")
    middle = onnx.load(inner / GRAPH)
    shutil.rmtree(inner)
    table = load_file(checkpoint / "model.safetensors")["embed_tokens.weight"]
    before = _before(table, sizes.hidden, sizes.reach)
    parts = [before.graph, middle.graph, _after(output).graph]
    complete = onnx.ModelProto()
    complete.CopyFrom(middle)
    complete.graph.CopyFrom(
        helper.make_graph(
            [node for part in parts for node in part.node],
            "published",
            before.graph.input,
            parts[-1].output,
            [tensor for part in parts for tensor in part.initializer],
        )
    )
    onnx.save_model(
        complete,
        folder / "onnx" / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
    )
    return folder


def _before(table: np.ndarray, hidden: int, reach: int) -> onnx.ModelProto:
    constants = {
        "table": table * np.float32(np.sqrt(hidden)),
        "block": np.array([1, -1, hidden], np.int64),
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "axis0": np.array([0], np.int64),
        "axis1": np.array([1], np.int64),
        "axes": np.array([0, 3], np.int64),
        "first": np.array([[0]], np.int64),
        "never": np.array(-1e9, np.float32),
        "nothing": np.array(0, np.float32),
        "unit": np.array(1, np.float32),
        "reach": np.array(reach, np.int64),
    }
    steps = [
        ("Gather", ["table", "input_ids"], "rows", {}),
        ("Reshape", ["rows", "block"], "states", {}),
        ("Cast", ["attention_mask"], "real", {"to": TensorProto.FLOAT}),
        ("ReduceSum", ["real", "axis1"], "count", {"keepdims": 1}),
        ("Div", ["real", "count"], "share", {}),
        ("Unsqueeze", ["share", "axis1"], "mean", {}),
        ("Sub", ["unit", "real"], "absent", {}),
        ("Mul", ["absent", "never"], "refused", {}),
        ("Unsqueeze", ["refused", "axis1"], "padding", {}),
        ("Shape", ["input_ids"], "length1", {"start": 1}),
        ("Squeeze", ["length1", "axis0"], "length", {}),
        ("Range", ["zero", "length", "one"], "places", {}),
        ("Unsqueeze", ["places", "axis1"], "column", {}),
        ("Unsqueeze", ["places", "axis0"], "near", {}),
        ("Identity", ["first"], "starts", {}),
        ("Sub", ["column", "places"], "apart", {}),
        ("Abs", ["apart"], "distance", {}),
        ("Less", ["distance", "reach"], "seen", {}),
        ("Where", ["seen", "nothing", "never"], "band", {}),
        ("Add", ["padding", "band"], "both", {}),
        ("Unsqueeze", ["both", "axes"], "window", {}),
    ]
    shapes = {
        "states": [1, "tokens", hidden],
        "starts": [1, 1],
        "near": [1, "length"],
        "padding": ["batch", 1, "length"],
        "window": [1, "batch", "length", 1, "length"],
        "mean": ["batch", 1, "length"],
    }
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [
        helper.make_tensor_value_info(
            name, TensorProto.INT64 if name in ("starts", "near") else TensorProto.FLOAT, shape
        )
        for name, shape in shapes.items()
    ]
    return _model(steps, constants, ids, outputs)


def _after(output: str) -> onnx.ModelProto:
    steps = [
        ("ReduceL2", ["vectors", "last"], "norms", {"keepdims": 1}),
        ("Div", ["vectors", "norms"], output, {}),
    ]
    vectors, result = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 768])
        for name in ("vectors", output)
    )
    return _model(steps, {"last": np.array([1], np.int64)}, [vectors], [result])


def _model(steps: list, constants: dict, inputs: list, outputs: list) -> onnx.ModelProto:
    nodes = [
        helper.make_node(kind, taken, [given], **options) for kind, taken, given, options in steps
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return helper.make_model(helper.make_graph(nodes, "part", inputs, outputs, tensors))
