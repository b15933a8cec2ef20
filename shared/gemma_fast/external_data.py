"""The files outside an ONNX graph that hold its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def external_files(graph: Path) -> list[str]:
    """Return the paths that a graph reads numbers from, relative to its folder and as it says.

    Errors are those of ``onnx``.
    """
    import onnx

    found = set()
    for tensor in _tensors(onnx.load(graph, load_external_data=False), onnx.TensorProto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            found |= {entry.value for entry in tensor.external_data if entry.key == "location"}
    return sorted(found)


def _tensors(message: Any, kind: type) -> Iterator[Any]:
    # Of the graph, of graphs in its nodes, of their attributes and of functions.
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in [value] if hasattr(value, "ListFields") else value:
            if isinstance(part, kind):
                yield part
            else:
                yield from _tensors(part, kind)
