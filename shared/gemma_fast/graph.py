"""A network as an ONNX graph: token states in, unnormalised vectors out.

Written node by node from the architecture and the weights; equal weights give equal bytes. The
embedding table stays outside (``Rows``), so that only the rows that are read cost memory.

A layer runs in blocks of tokens: keys and values of all tokens first, then for each block of
queries attention, the feed-forward part and what they are multiplied with. So the memory of a long
text is its states, keys and values; attention scores and the feed-forward part's numbers are one
block's. A query sees no key beyond its window, and none is multiplied that no query of its block
sees.

Inputs of a batch: B texts in one block, padded to L tokens, or one text (B = 1) in several blocks
of equal length, T = L / blocks tokens each; a text of the last block may be padded, too:
    states       float32 (blocks, B * T, hidden): rows of the table, times the square root of
                 ``hidden``.
    starts       int64 (blocks, 1): a block's first token.
    near         int64 (blocks, W): the tokens within the window of any of a block's.
    padding      float32 (B, 1, L): 0 for a token, very negative for padding.
    window       float32 (blocks, B, T, 1, W): the same for ``near``, and very negative outside a
                 token's own window.
    mean         float32 (B, 1, L): 1 / tokens for a token, 0 for padding.
Output:
    vectors      float32 (B, width): after the Dense layers, before normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gemma_fast.architecture import Architecture
from gemma_fast.layer import Layer
from gemma_fast.quantization import BLOCK, Precision, bits, to_int4, to_int8
from gemma_fast.weights import Floats, Weights

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

# Raise it with every change of what is written: cached graphs of another version are not used.
VERSION = 5

# Most tokens of a block: what they take fits a processor's cache, and their products are as fast as
# larger ones.
BLOCK_TOKENS = 192

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
    integers = onnx.TensorProto.INT64
    inputs: list[tuple[str, int, list[str | int]]] = [
        ("states", floats, ["blocks", "rows", architecture.hidden]),
        ("starts", integers, ["blocks", 1]),
        ("near", integers, ["blocks", "reach"]),
        ("padding", floats, ["batch", 1, "length"]),
        ("window", floats, ["blocks", "batch", "tokens", 1, "reach"]),
        ("mean", floats, ["batch", 1, "length"]),
    ]
    graph = helper.make_graph(
        writer.nodes,
        "gemma-embed",
        [helper.make_tensor_value_info(*one) for one in inputs],
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
        self._names = 0

    def name(self, kind: str) -> str:
        self._names += 1
        return f"{kind}_{self._names}"

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
            outputs = [self.name(kind) for _ in range(outputs)]
        node = helper.make_node(kind, list(inputs), list(outputs), domain=domain, **attributes)
        self.nodes.append(node)
        return list(outputs)

    def call(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        return self.node(kind, inputs, domain=domain, **attributes)[0]

    def each_block(self, write: Callable[[str], str]) -> str:
        """Run nodes for every block of ``states``.

        Args:
            write: Writes the nodes; takes a block's number, returns one result.

        Returns:
            The results, one below the other: (blocks, ...).
        """
        from onnx import TensorProto, helper

        outer, self.nodes = self.nodes, []
        number, going = self.name("block"), self.name("going")
        result = write(number)
        body = helper.make_graph(
            [*self.nodes, helper.make_node("Identity", [going], [f"{going}_on"])],
            number,
            [
                helper.make_tensor_value_info(number, TensorProto.INT64, []),
                helper.make_tensor_value_info(going, TensorProto.BOOL, []),
            ],
            [
                helper.make_tensor_value_info(f"{going}_on", TensorProto.BOOL, []),
                helper.make_tensor_value_info(result, TensorProto.FLOAT, None),
            ],
        )
        self.nodes = outer
        return self.call("Loop", "blocks", "", body=body)

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

    def prepare(self, states: str, width: int, zeros: str = "all_zeros") -> tuple[str, str]:
        """Return rows (tokens, inputs) as products of ``width`` bits take them, and their steps."""
        if width != 8:
            return states, ""
        # Each token has its own step, so that a vector does not depend on its batch, and a token
        # with large numbers does not cost the others their precision.
        last = self.constant([1], np.int64)
        largest = self.call("ReduceMax", self.call("Abs", states), last, keepdims=0)
        largest = self.call("Max", largest, self.constant(1e-30, np.float32))
        steps = self.call("Mul", largest, self.constant(1 / 127, np.float32))
        return self.call("QuantizeLinear", states, steps, zeros, axis=0), steps

    def multiply(self, rows: str, matrix: Floats, width: int, *factors: str) -> str:
        """Multiply rows that ``prepare`` returned by a matrix (outputs, inputs).

        Without its steps among the factors of each row a result of 8 bits is divided by them:
        enough for a norm of numbers that are far larger than its epsilon.
        """
        if width == 8:
            codes, scales = to_int8(matrix)
            product = self.call(
                "MatMulIntegerToFloat",
                rows,
                self.tensor(codes),
                self.constant(1, np.float32),
                self.tensor(scales),
                self.constant([128], np.uint8),
                domain=_MICROSOFT,
            )
        elif width == 4:
            product = self._linear_int4(rows, matrix)
        else:
            product = self.call("MatMul", rows, self.tensor(matrix.T))
        steps = [factor for factor in factors if factor]
        if not steps:
            return product
        together = steps[0] if len(steps) == 1 else self.call("Mul", *steps)
        return self.call("Mul", product, self.call("Unsqueeze", together, _axes(self, 1)))

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


def _network(
    writer: _Writer, sizes: Architecture, weights: Weights, dense: Sequence[Floats]
) -> str:
    rotations = {
        full: _rotation(writer, sizes, sizes.full_base if full else sizes.local_base)
        for full in (True, False)
    }
    _shapes(writer, sizes)
    states = "states"
    for number, full in enumerate(sizes.full):
        layer = Layer.read(weights, number, sizes)
        if writer.precision == "int8":
            layer = layer.balanced()
        states = _layer(writer, sizes, layer, states, full, rotations[full])
    normed = writer.norm(states, 1 + weights["norm.weight"].read(), sizes.epsilon)
    per_text = writer.call("Reshape", normed, "by_text")
    pooled = writer.call("Squeeze", writer.call("MatMul", "mean", per_text), _axes(writer, 1))
    if not dense:
        return pooled
    # One matrix for all Dense layers: they follow each other without an activation.
    product = dense[0].astype(np.float64)
    for matrix in dense[1:]:
        product = matrix.astype(np.float64) @ product
    return writer.call("MatMul", pooled, writer.tensor(product.T.astype(np.float32)))


def _shapes(writer: _Writer, sizes: Architecture) -> None:
    """Write the shapes that are computed once, and for 8 bits the code of zero for each token."""

    def write(kind: str, name: str, *inputs: str, **attributes: Any) -> None:
        writer.node(kind, inputs, outputs=[name], **attributes)

    def last(*numbers: int) -> str:
        return writer.constant(numbers, np.int64)

    write("Shape", "blocks", "states", end=1)
    write("Shape", "texts", "mean", end=1)
    write("Shape", "tokens", "window", start=1, end=3)
    write("Concat", "by_text", "texts", last(-1, sizes.hidden), axis=0)
    write("Concat", "by_head", "texts", last(-1, sizes.head), axis=0)
    group = sizes.heads // sizes.key_value_heads
    write("Concat", "by_query", "texts", last(-1, group * sizes.head), axis=0)
    write("Concat", "by_token", "tokens", last(group, -1), axis=0)
    write("Concat", "by_block", "blocks", last(-1, sizes.hidden), axis=0)
    if writer.precision != "float32":
        middle = writer.constant([128], np.uint8)
        rows = writer.call("Shape", "states", start=1, end=2)
        write("Expand", "block_zeros", middle, rows)
        write("Expand", "all_zeros", middle, writer.call("Mul", rows, "blocks"))


def _layer(
    writer: _Writer,
    sizes: Architecture,
    layer: Layer,
    states: str,
    full: bool,
    rotation: tuple[str, str],
) -> str:
    """Write one layer: (blocks, rows, hidden) in and out."""
    width = bits(writer.precision, "query_key_value", layer.depth, layer.query_key_value)
    normed = writer.norm(states, layer.before_attention, sizes.epsilon)
    flat = writer.constant([-1, sizes.hidden], np.int64)
    rows, steps = writer.prepare(writer.call("Reshape", normed, flat), width)
    heads, groups = sizes.heads, sizes.key_value_heads
    cuts = np.arange(1, groups + 1) * (heads // groups * sizes.head)
    *queries, rest = np.split(layer.query_key_value, cuts)
    keys, values = (np.split(half, groups) for half in np.split(rest, 2))
    first = writer.constant([0], np.int64)
    seen = []
    for key_matrix, value_matrix in zip(keys, values, strict=True):
        key = writer.norm(writer.multiply(rows, key_matrix, width), layer.key, sizes.epsilon)
        key = writer.call("Reshape", key, "by_head")
        key = writer.call("RotaryEmbedding", key, first, *rotation, domain=_MICROSOFT)
        value = writer.multiply(rows, value_matrix, width, steps)
        seen.append((key, writer.call("Reshape", value, "by_head")))
    by_block = writer.call("Reshape", rows, "by_block")

    def block(number: str) -> str:
        own = writer.call("Gather", by_block, number)
        mixed = [
            _attention(writer, sizes, layer.query, projected, pair, number, full, rotation)
            for projected, pair in zip(
                [writer.multiply(own, matrix, width) for matrix in queries], seen, strict=True
            )
        ]
        attended = mixed[0] if groups == 1 else writer.call("Concat", *mixed, axis=1)
        width_out = bits(writer.precision, "output", layer.depth, layer.output)
        own, own_steps = writer.prepare(attended, width_out, "block_zeros")
        change = writer.multiply(own, layer.output, width_out, own_steps)
        change = writer.norm(change, layer.after_attention, sizes.epsilon)
        middle = writer.call("Add", writer.call("Gather", states, number), change)
        change = _feedforward(writer, sizes, layer, middle)
        return writer.call("Add", middle, change)

    return writer.each_block(block)


def _attention(
    writer: _Writer,
    sizes: Architecture,
    weight: Floats,
    query: str,
    pair: tuple[str, str],
    number: str,
    full: bool,
    rotation: tuple[str, str],
) -> str:
    """Write what a block's queries take from the keys that they share: (rows, their heads)."""
    key, value = pair
    # Heads that share a key are queries of one head: (texts, tokens * heads, head).
    one_head = writer.constant([-1, sizes.head], np.int64)
    query = writer.norm(writer.call("Reshape", query, one_head), weight, sizes.epsilon)
    start = writer.call("Gather", "starts", number)
    query = writer.call("Reshape", query, "by_query")
    query = writer.call("RotaryEmbedding", query, start, *rotation, domain=_MICROSOFT)
    query = writer.call("Reshape", query, "by_head")
    if not full:
        near = writer.call("Gather", "near", number)
        key, value = (writer.call("Gather", part, near, axis=1) for part in (key, value))
    scores = writer.call("FusedMatMul", query, key, domain=_MICROSOFT, transB=1)
    if full:
        scores = writer.call("Add", scores, "padding")
    else:
        by_token = writer.call("Reshape", scores, "by_token")
        masked = writer.call("Add", by_token, writer.call("Gather", "window", number))
        scores = writer.call("Reshape", masked, writer.call("Shape", scores))
    mixed = writer.call("MatMul", writer.call("Softmax", scores, axis=-1), value)
    group = sizes.heads // sizes.key_value_heads
    return writer.call("Reshape", mixed, writer.constant([-1, group * sizes.head], np.int64))


def _feedforward(writer: _Writer, sizes: Architecture, layer: Layer, states: str) -> str:
    gate_matrix, up_matrix = np.split(layer.gate_up, 2)
    width = bits(writer.precision, "gate_up", layer.depth, gate_matrix, up_matrix)
    normed = writer.norm(states, layer.before_feedforward, sizes.epsilon)
    rows, steps = writer.prepare(normed, width, "block_zeros")
    gate = writer.multiply(rows, gate_matrix, width, steps)
    up = writer.multiply(rows, up_matrix, width)
    # FastGelu is the tanh approximation that Gemma was trained with.
    active = writer.call("Mul", writer.call("FastGelu", gate, domain=_MICROSOFT), up)
    width = bits(writer.precision, "down", layer.depth, layer.down)
    rows, own_steps = writer.prepare(active, width, "block_zeros")
    # ``up`` lacks its rows' steps so far; here they cost two thirds.
    change = writer.multiply(rows, layer.down, width, steps, own_steps)
    return writer.norm(change, layer.after_feedforward, sizes.epsilon)


def _rotation(writer: _Writer, sizes: Architecture, base: float) -> tuple[str, str]:
    # In float32 throughout, as the reference: at the end of the context the difference shows.
    powers = np.arange(0, sizes.head, 2, dtype=np.float32) / np.float32(sizes.head)
    frequencies = np.float32(1) / np.float32(base) ** powers
    # Blocks of equal length may pad a text of full length by less than one token each.
    positions = np.arange(sizes.context + -(-sizes.context // BLOCK_TOKENS), dtype=np.float32)
    angles = positions[:, None] * frequencies
    return writer.tensor(np.cos(angles)), writer.tensor(np.sin(angles))


def _axes(writer: _Writer, axis: int) -> str:
    return writer.constant([axis], np.int64)
