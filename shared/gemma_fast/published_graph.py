"""A complete network in one ONNX graph, as Transformers.js and other runtimes load it.

The layout of onnx-community/embeddinggemma-300m-ONNX: token ids and a mask in, token states and
finished vectors out, in that order, by which some programs take them (fastembed the second).
Around the graph of ``graph.write_graph``, whose inputs are made within this one: the embedding
table is part of it, and all tokens of a batch are one block. Plain operators only, beside those of
ONNX Runtime's own set that its builds for the web have, too.

Inputs of a batch, texts padded to the longest:
    input_ids            int64 (batch, length)
    attention_mask       int64 (batch, length): 1 for a token, 0 for padding.
Outputs:
    last_hidden_state    float32 (batch, length, hidden): what is pooled; of padding, arbitrary.
    sentence_embedding   float32 (batch, width), rows of norm 1.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gemma_fast.architecture import Architecture
from gemma_fast.graph import GRAPH, write_graph
from gemma_fast.quantization import Precision
from gemma_fast.weights import Floats, Weights

if TYPE_CHECKING:
    from onnx import ModelProto

# Operator, inputs, output, attributes.
_Step = tuple[str, list[str], str, dict[str, Any]]


def write_published(
    path: Path,
    architecture: Architecture,
    weights: Weights,
    dense: Sequence[Floats],
    precision: Precision,
) -> None:
    """Write a graph, and its numbers into ``<name>_data`` next to it.

    Args:
        path: The graph; its folder exists.
        architecture: Of the network.
        weights: The network's tensors; checked against ``architecture.shapes()``.
        dense: Matrices of the Dense layers, each (outputs, inputs), in order; may be empty.
        precision: Of the layers' matrices, as in ``write_graph``. The embedding table takes 8 bits
            a number unless it is ``float32``.

    Raises:
        ImportError: If ``onnx`` is not installed.
        OSError: If the folder cannot be written to.
    """
    import onnx
    from onnx import helper

    with tempfile.TemporaryDirectory(dir=path.parent) as inner:
        write_graph(Path(inner), architecture, weights, dense, precision)
        middle = onnx.load(Path(inner) / GRAPH)
    table = weights["embed_tokens.weight"].read()
    parts = [_before(table, architecture, precision), middle, _after(_pooled(middle), architecture)]
    complete = onnx.ModelProto()
    complete.CopyFrom(middle)
    complete.graph.CopyFrom(
        helper.make_graph(
            [node for part in parts for node in part.graph.node],
            middle.graph.name,
            parts[0].graph.input,
            parts[-1].graph.output,
            [tensor for part in parts for tensor in part.graph.initializer],
        )
    )
    numbers = path.with_name(f"{path.name}_data")
    # The graph is written last, and its numbers would be appended to those that are there.
    for place in (path, numbers):
        place.unlink(missing_ok=True)
    onnx.save_model(complete, path, save_as_external_data=True, location=numbers.name)


def _before(table: Floats, architecture: Architecture, precision: Precision) -> ModelProto:
    """Make the inner graph's inputs of ids and mask."""
    from onnx import TensorProto, helper

    hidden = architecture.hidden
    constants: dict[str, npt.NDArray[Any]] = {
        "factor": np.array(math.sqrt(hidden), np.float32),
        "block": np.array([1, -1, hidden], np.int64),
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "axis0": np.array([0], np.int64),
        "axis1": np.array([1], np.int64),
        "axes": np.array([0, 3], np.int64),
        "starts_of_blocks": np.array([[0]], np.int64),
        "never": np.array(-1e9, np.float32),
        "nothing": np.array(0, np.float32),
        "unit": np.array(1, np.float32),
        "reach": np.array(architecture.reach, np.int64),
    }
    steps: list[_Step] = [
        ("Gather", ["table", "input_ids"], "rows", {}),
    ]
    if precision == "float32":
        constants["table"] = table
    else:
        largest = np.abs(table).max(1, keepdims=True)
        scales = np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(127)
        constants["table"] = np.rint(table / scales).astype(np.int8)
        constants["scales"] = scales
        steps = [
            ("Gather", ["table", "input_ids"], "rounded_rows", {}),
            ("Gather", ["scales", "input_ids"], "scales_of_rows", {}),
            ("Cast", ["rounded_rows"], "whole_rows", {"to": TensorProto.FLOAT}),
            ("Mul", ["whole_rows", "scales_of_rows"], "rows", {}),
        ]
    steps += [
        ("Mul", ["rows", "factor"], "embedded", {}),
        ("Reshape", ["embedded", "block"], "states", {}),
        ("Cast", ["attention_mask"], "real", {"to": TensorProto.FLOAT}),
        ("ReduceSum", ["real", "axis1"], "count", {"keepdims": 1}),
        ("Div", ["real", "count"], "share", {}),
        ("Unsqueeze", ["share", "axis1"], "mean", {}),
        ("Sub", ["unit", "real"], "absent", {}),
        ("Mul", ["absent", "never"], "refused", {}),
        ("Unsqueeze", ["refused", "axis1"], "padding", {}),
        ("Shape", ["input_ids"], "lengths", {"start": 1}),
        ("Squeeze", ["lengths", "axis0"], "length", {}),
        ("Range", ["zero", "length", "one"], "places", {}),
        ("Unsqueeze", ["places", "axis1"], "column", {}),
        ("Unsqueeze", ["places", "axis0"], "near", {}),
        ("Identity", ["starts_of_blocks"], "starts", {}),
        ("Sub", ["column", "places"], "apart", {}),
        ("Abs", ["apart"], "distance", {}),
        ("Less", ["distance", "reach"], "seen", {}),
        ("Where", ["seen", "nothing", "never"], "band", {}),
        ("Add", ["padding", "band"], "both", {}),
        ("Unsqueeze", ["both", "axes"], "window", {}),
    ]
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    return _model(steps, constants, ids, [])


def _pooled(inner: ModelProto) -> str:
    """Return the name of what the inner graph multiplies by ``mean``."""
    (states,) = (
        node.input[1]
        for node in inner.graph.node
        if [*node.input][:1] == ["mean"] and node.op_type == "MatMul"
    )
    return str(states)


def _after(states: str, architecture: Architecture) -> ModelProto:
    """Name the inner graph's states, and normalise its output."""
    from onnx import TensorProto, helper

    steps: list[_Step] = [
        ("Identity", [states], "last_hidden_state", {}),
        ("ReduceL2", ["vectors", "last"], "norms", {"keepdims": 1}),
        ("Div", ["vectors", "norms"], "sentence_embedding", {}),
    ]
    shapes: dict[str, list[str | int]] = {
        "last_hidden_state": ["batch", "length", architecture.hidden],
        "sentence_embedding": ["batch", "width"],
    }
    results = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    return _model(steps, {"last": np.array([1], np.int64)}, [], results)


def _model(
    steps: Sequence[_Step],
    constants: dict[str, npt.NDArray[Any]],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
) -> ModelProto:
    from onnx import helper, numpy_helper

    nodes = [helper.make_node(kind, names, [out], **more) for kind, names, out, more in steps]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return helper.make_model(helper.make_graph(nodes, "part", inputs, outputs, tensors))
