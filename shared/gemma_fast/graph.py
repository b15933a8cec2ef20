"""A network as an ONNX graph: token states in, unnormalised vectors out.

Written node by node from the architecture and the weights; equal weights give equal bytes. The
embedding table stays outside (``Rows``), so that only the rows that are read cost memory.

Inputs of a batch of B sequences, padded to L tokens:
    states       float32 (B * L, hidden): rows of the table, times the square root of ``hidden``.
    padding      float32 (B, 1, 1, 1, L): 0 for a token, very negative for padding.
    window       float32 (B, 1, 1, L, L): the same, and very negative outside the window.
    mean         float32 (B, 1, L): 1 / tokens for a token, 0 for padding.
Output:
    vectors      float32 (B, width): after the Dense layers, before normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gemma_fast.architecture import Architecture
from gemma_fast.layer import Layer
from gemma_fast.quantization import BLOCK, Precision, Product, bits, to_int4, to_int8
from gemma_fast.weights import Floats, Weights

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

# Raise it with every change of what is written: cached graphs of another version are not used.
VERSION = 4

GRAPH = "model.onnx"
_NUMBERS = "model.onnx.data"
_MICROSOFT = "com.microsoft"
# Where a tensor may begin in the file, so that it can be memory-mapped on every system.
_ALIGNMENT = 65536
# Up to so many bytes a tensor stays in the graph: in the file it would take a whole step.
_INLINE = 16384


def write_graph(
    folder: Path,
    architecture: Architecture,
    weights: Weights,
    dense: Sequence[Floats],
    precision: Precision,
) -> None:
    """Write a graph and its numbers into a folder that exists.

    Args:
        folder: Where.
        architecture: Of the network.
        weights: The network's tensors; checked against ``architecture.shapes()``.
        dense: Matrices of the Dense layers, each (outputs, inputs), in order; may be empty.
        precision: Of the layers' matrices; ``quantization.bits`` says which take how many bits.
            Norms, attention and Dense layers are float32.

    Raises:
        ImportError: If ``onnx`` is not installed.
        OSError: If the folder cannot be written to.
    """
    import onnx
    from onnx import helper

    with (folder / _NUMBERS).open("wb") as numbers:
        writer = _Writer(numbers, precision)
        vectors = _network(writer, architecture, weights, dense)
    writer.node("Identity", [vectors], outputs=["vectors"])
    floats = onnx.TensorProto.FLOAT
    width = dense[-1].shape[0] if dense else architecture.hidden
    shapes: dict[str, list[str | int]] = {
        "states": ["tokens", architecture.hidden],
        "padding": ["batch", 1, 1, 1, "length"],
        "window": ["batch", 1, 1, "length", "length"],
        "mean": ["batch", 1, "length"],
    }
    graph = helper.make_graph(
        writer.nodes,
        "gemma-embed",
        [helper.make_tensor_value_info(name, floats, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("vectors", floats, ["batch", width])],
        writer.tensors,
    )
    model = helper.make_model(
        graph,
        producer_name="gemma-embed",
        producer_version=str(VERSION),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(_MICROSOFT, 1)],
        ir_version=8,
    )
    (folder / GRAPH).write_bytes(model.SerializeToString(deterministic=True))


class _Writer:
    """Nodes, small tensors, and a file of large ones."""

    def __init__(self, numbers: Any, precision: Precision) -> None:
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []
        self._numbers = numbers
        self.precision = precision
        self._constants: dict[tuple[bytes, str], str] = {}
        # For 8 bits: the code of zero, once for each token.
        self._middles = ""

    def node(
        self,
        kind: str,
        inputs: Sequence[str],
        *,
        outputs: Sequence[str] | int = 1,
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        from onnx import helper

        if isinstance(outputs, int):
            outputs = [f"{kind}_{len(self.nodes)}_{number}" for number in range(outputs)]
        node = helper.make_node(kind, list(inputs), list(outputs), domain=domain, **attributes)
        self.nodes.append(node)
        return list(outputs)

    def call(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        return self.node(kind, inputs, domain=domain, **attributes)[0]

    def tensor(self, array: npt.NDArray[Any]) -> str:
        from onnx import TensorProto, numpy_helper

        name = f"tensor_{len(self.tensors)}"
        array = np.ascontiguousarray(array)
        if array.nbytes <= _INLINE:
            self.tensors.append(numpy_helper.from_array(array, name))
            return name
        self._numbers.seek(-self._numbers.tell() % _ALIGNMENT, 1)
        tensor = TensorProto(
            name=name,
            dims=array.shape,
            data_type=numpy_helper.from_array(array[:0]).data_type,
            data_location=TensorProto.EXTERNAL,
        )
        place = {"location": _NUMBERS, "offset": self._numbers.tell(), "length": array.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self._numbers.write(array.data)
        self.tensors.append(tensor)
        return name

    def constant(self, value: Any, kind: type) -> str:
        """Return a small tensor's name, the same for the same value."""
        array: npt.NDArray[Any] = np.asarray(value, kind)
        key = (array.tobytes() + str(array.shape).encode(), array.dtype.str)
        if key not in self._constants:
            self._constants[key] = self.tensor(array)
        return self._constants[key]

    def norm(self, states: str, weight: Floats, epsilon: float) -> str:
        # An operator of ONNX Runtime's own, which it looks for in the default domain.
        name = self.tensor(weight)
        return self.call(
            "SimplifiedLayerNormalization", states, name, axis=-1, epsilon=epsilon, stash_type=1
        )

    def added_norm(
        self, states: str, change: str, weight: Floats, epsilon: float
    ) -> tuple[str, str]:
        """Return the norm of ``states + change``, and the sum; an empty ``change`` is zero."""
        if not change:
            return self.norm(states, weight, epsilon), states
        outputs = self.node(
            "SkipSimplifiedLayerNormalization",
            [states, change, self.tensor(weight)],
            outputs=4,
            domain=_MICROSOFT,
            epsilon=epsilon,
        )
        return outputs[0], outputs[3]

    def linear(self, states: str, product: Product, depth: float, *matrices: Floats) -> list[str]:
        """Multiply (tokens, inputs) by matrices (outputs, inputs); see ``quantization.bits``."""
        width = bits(self.precision, product, depth, *matrices)
        if width == 8:
            return self._linear_int8(states, matrices)
        if width == 4:
            return [self._linear_int4(states, matrix) for matrix in matrices]
        return [self.call("MatMul", states, self.tensor(matrix.T)) for matrix in matrices]

    def _linear_int4(self, states: str, matrix: Floats) -> str:
        codes, scales = to_int4(matrix)
        return self.call(
            "MatMulNBits",
            states,
            self.tensor(codes),
            self.tensor(scales),
            domain=_MICROSOFT,
            N=matrix.shape[0],
            K=matrix.shape[1],
            bits=4,
            block_size=BLOCK,
            accuracy_level=4,
        )

    def _linear_int8(self, states: str, matrices: Sequence[Floats]) -> list[str]:
        # Each token has its own step, so that a vector does not depend on its batch, and a token
        # with large numbers does not cost the others their precision.
        last = self.constant([1], np.int64)
        largest = self.call("ReduceMax", self.call("Abs", states), last, keepdims=1)
        largest = self.call("Max", largest, self.constant(1e-30, np.float32))
        steps = self.call("Mul", largest, self.constant(1 / 127, np.float32))
        middle = self.constant([128], np.uint8)
        if not self._middles:
            tokens = self.call("Shape", states, end=1)
            self._middles = self.call("Expand", middle, tokens)
        one_a_token = self.call("Squeeze", steps, last)
        rounded = self.call("QuantizeLinear", states, one_a_token, self._middles, axis=0)
        results = []
        for matrix in matrices:
            codes, scales = to_int8(matrix)
            product = self.call(
                "MatMulIntegerToFloat",
                rounded,
                self.tensor(codes),
                self.constant(1, np.float32),
                self.tensor(scales),
                middle,
                domain=_MICROSOFT,
            )
            results.append(self.call("Mul", product, steps))
        return results


def _network(
    writer: _Writer, sizes: Architecture, weights: Weights, dense: Sequence[Floats]
) -> str:
    rotations = {
        full: _rotation(writer, sizes, sizes.full_base if full else sizes.local_base)
        for full in (True, False)
    }
    states, change = "states", ""
    for number, full in enumerate(sizes.full):
        layer = Layer.read(weights, number, sizes)
        if writer.precision == "int8":
            layer = layer.balanced()
        normed, states = writer.added_norm(states, change, layer.before_attention, sizes.epsilon)
        attended = _attention(writer, sizes, layer, normed, full, rotations[full])
        change = writer.norm(attended, layer.after_attention, sizes.epsilon)
        normed, states = writer.added_norm(states, change, layer.before_feedforward, sizes.epsilon)
        fed = _feedforward(writer, layer, normed)
        change = writer.norm(fed, layer.after_feedforward, sizes.epsilon)
    normed, _ = writer.added_norm(states, change, 1 + weights["norm.weight"].read(), sizes.epsilon)
    per_text = _reshape(writer, normed, [sizes.hidden])
    pooled = writer.call("Squeeze", writer.call("MatMul", "mean", per_text), _axes(writer, 1))
    if not dense:
        return pooled
    # One matrix for all Dense layers: they follow each other without an activation.
    product = dense[0].astype(np.float64)
    for matrix in dense[1:]:
        product = matrix.astype(np.float64) @ product
    return writer.call("MatMul", pooled, writer.tensor(product.T.astype(np.float32)))


def _attention(
    writer: _Writer,
    sizes: Architecture,
    layer: Layer,
    normed: str,
    full: bool,
    rotation: tuple[str, str],
) -> str:
    (projected,) = writer.linear(normed, "query_key_value", layer.depth, layer.query_key_value)
    heads, groups = sizes.heads, sizes.key_value_heads
    by_head = _reshape(writer, projected, [heads + 2 * groups, sizes.head])
    split = writer.constant([heads, groups, groups], np.int64)
    query, key, value = (
        writer.call("Transpose", part, perm=[0, 2, 1, 3])
        for part in writer.node("Split", [by_head, split], outputs=3, axis=2)
    )
    first = writer.constant([0], np.int64)
    query, key = (
        writer.call(
            "RotaryEmbedding",
            writer.norm(part, norm, sizes.epsilon),
            first,
            *rotation,
            domain=_MICROSOFT,
        )
        for part, norm in ((query, layer.query), (key, layer.key))
    )
    # (B, groups, heads of a group, L, head): a group's heads share key and value.
    grouped = writer.constant([0, groups, heads // groups, -1, sizes.head], np.int64)
    query = writer.call("Reshape", query, grouped)
    key = writer.call("Unsqueeze", key, _axes(writer, 2))
    value = writer.call("Unsqueeze", value, _axes(writer, 2))
    scores = writer.call("MatMul", query, writer.call("Transpose", key, perm=[0, 1, 2, 4, 3]))
    scores = writer.call("Add", scores, "padding" if full else "window")
    mixed = writer.call("MatMul", writer.call("Softmax", scores, axis=-1), value)
    mixed = writer.call("Transpose", mixed, perm=[0, 3, 1, 2, 4])
    flat = writer.constant([-1, heads * sizes.head], np.int64)
    heads_of_all = writer.call("Reshape", mixed, flat)
    (output,) = writer.linear(heads_of_all, "output", layer.depth, layer.output)
    return output


def _feedforward(writer: _Writer, layer: Layer, normed: str) -> str:
    gate, up = writer.linear(normed, "gate_up", layer.depth, *np.split(layer.gate_up, 2))
    # FastGelu is the tanh approximation that Gemma was trained with.
    active = writer.call("Mul", writer.call("FastGelu", gate, domain=_MICROSOFT), up)
    (output,) = writer.linear(active, "down", layer.depth, layer.down)
    return output


def _rotation(writer: _Writer, sizes: Architecture, base: float) -> tuple[str, str]:
    # In float32 throughout, as the reference: at the end of the context the difference shows.
    powers = np.arange(0, sizes.head, 2, dtype=np.float32) / np.float32(sizes.head)
    frequencies = np.float32(1) / np.float32(base) ** powers
    angles = np.arange(sizes.context, dtype=np.float32)[:, None] * frequencies
    return writer.tensor(np.cos(angles)), writer.tensor(np.sin(angles))


def _reshape(writer: _Writer, flat: str, last: list[int]) -> str:
    """Reshape (B * L, n) to (B, L, *last)."""
    batch = writer.call("Shape", "mean", end=1)
    length = writer.call("Shape", "mean", start=2)
    shape = writer.call("Concat", batch, length, writer.constant(last, np.int64), axis=0)
    return writer.call("Reshape", flat, shape)


def _axes(writer: _Writer, axis: int) -> str:
    return writer.constant([axis], np.int64)
