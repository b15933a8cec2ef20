"""Tensors of a model, read out of its safetensors files as they are needed.

The format is eight bytes of length, a JSON header, and the numbers in order
(https://huggingface.co/docs/safetensors). Reading it takes NumPy alone, and a tensor costs memory
only once it is asked for.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_fast.errors import Damaged

Floats = npt.NDArray[np.float32]

_STORED = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_TABLE = "embed_tokens.weight"
# Names of tensors whose model was saved inside a wrapper, and what to save instead.
_WRAPPED = {
    "_orig_mod.": "a compiled model: save its _orig_mod",
    "base_model.model.": "a model with a LoRA adapter: save what its merge_and_unload() returns",
    "module.": "a model for several devices: save its module",
}


@dataclass(frozen=True)
class Tensor:
    """Where a tensor is.

    Attributes:
        path: Its file.
        start: Of its first byte in the file.
        shape: Its sizes.
        stored: How its numbers are stored: ``F32``, ``F16`` or ``BF16``.
    """

    path: Path
    start: int
    shape: tuple[int, ...]
    stored: str

    def read(self) -> Floats:
        """Read all of it: float32, of ``shape``.

        Raises:
            Damaged: If the file was cut short, or cannot be read any more.
        """
        count = math.prod(self.shape)
        with _reading(self.path):
            raw = np.fromfile(self.path, _STORED[self.stored], count, offset=self.start)
        if len(raw) != count:
            raise Damaged(f"{self.path} is shorter than it says; download the model again")
        return _float32(raw, self.stored).reshape(self.shape)


class Rows:
    """Rows of a matrix, read from its file by number.

    A vocabulary's table is most of a model's size, and a text touches a few hundred rows of it.
    Read and not memory-mapped: a mapped page brings fifteen neighbours into the process's memory.
    Safe for several threads.
    """

    def __init__(self, tensor: Tensor) -> None:
        """Open the tensor's file.

        Raises:
            Damaged: If it cannot be read any more.
        """
        self._tensor = tensor
        self._bytes = tensor.shape[1] * np.dtype(_STORED[tensor.stored]).itemsize
        self._lock = threading.Lock()
        # Open for as long as the rows are needed; closed with this object.
        with _reading(tensor.path):
            self._file = tensor.path.open("rb", buffering=0)

    def take(self, numbers: Sequence[int]) -> Floats:
        """Read rows: float32, shape (len(numbers), columns), in that order.

        Raises:
            Damaged: If a number is beyond the table, or the file was cut short.
        """
        tensor = self._tensor
        raw = np.empty((len(numbers), tensor.shape[1]), _STORED[tensor.stored])
        with self._lock, _reading(tensor.path):
            for place, number in enumerate(numbers):
                self._file.seek(tensor.start + number * self._bytes)
                if number >= tensor.shape[0] or self._file.readinto(raw[place]) != self._bytes:
                    raise Damaged(
                        f"{tensor.path} has no row {number} in its table of {tensor.shape[0]}; "
                        "tokenizer and weights do not belong together: download the model again"
                    )
        return _float32(raw, tensor.stored)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


class Weights(Mapping[str, Tensor]):
    """The tensors of some safetensors files, by name, without ``model.`` before it."""

    def __init__(self, files: Sequence[Path], prefix: str = "") -> None:
        """Read the headers.

        Args:
            files: All files of the network, and no other: where two hold a tensor of one name,
                nothing says which is meant.
            prefix: What the names of the wanted tensors begin with in the files, after ``model.``.
                It is left out here, and so are all other tensors.

        Raises:
            Damaged: If a file is damaged, cut short, or of numbers that no checkpoint of these
                models is stored in, or if a tensor is there twice.
        """
        self._tensors: dict[str, Tensor] = {}
        for path in files:
            for name, tensor in _tensors(path):
                name = name.removeprefix("model.")
                if not name.startswith(prefix):
                    continue
                name = name.removeprefix(prefix)
                if name in self._tensors:
                    raise Damaged(
                        f"{self._tensors[name].path} and {path.name} both hold {name}; remove the "
                        "file that does not belong to the model"
                    )
                self._tensors[name] = tensor
        self._where = " and ".join(map(str, files[:1])) + (", ..." if len(files) > 1 else "")

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that these tensors are there, in these shapes, and that no layer is left over.

        Raises:
            Damaged: If not.
        """
        found = {name: tensor.shape for name, tensor in self._tensors.items()}
        wrong = sorted(name for name, shape in shapes.items() if found.get(name) != shape)
        if wrong:
            raise Damaged(
                f"the weights in {self._where} lack or misshape {len(wrong)} tensors, "
                f"{wrong[0]} first; {self._advice(wrong, shapes)}"
            )
        left_over = sorted(name for name in found if "layers." in name and name not in shapes)
        if left_over:
            raise Damaged(
                f"the weights in {self._where} hold {len(left_over)} tensors that config.json "
                f"leaves out, {left_over[0]} first; download the model again"
            )

    def _advice(self, wrong: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> str:
        for prefix, advice in _WRAPPED.items():
            if any(f".{prefix}" in f".{name}" for name in self):
                return f"names with {prefix!r} come from {advice}"
        if wrong == [_TABLE] and _TABLE in self:
            return (
                f"the vocabulary was resized (its table has {self[_TABLE].shape[0]} rows, "
                f"config.json says {shapes[_TABLE][0]}): save config.json with these weights, "
                "as save_pretrained does"
            )
        return "download the model again"


def dense_matrix(file: Path) -> Floats:
    """Read the matrix of a Dense layer: float32, shape (outputs, inputs).

    Raises:
        Damaged: If there is none in the file.
    """
    tensor = Weights([file]).get("linear.weight")
    if tensor is None or len(tensor.shape) != 2:
        raise Damaged(f"{file} is no Dense layer; download the model again")
    return tensor.read()


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    damaged = f"the weights in {path} cannot be loaded; download the model again"
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size - 8 - length
            if size < 0:
                raise Damaged(damaged)
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            first, end = entry["data_offsets"]
            shape = tuple(map(int, entry["shape"]))
            stored = str(entry["dtype"])
            if stored not in _STORED:
                raise Damaged(
                    f"{path} stores {name} as {stored}; only F32, BF16 and F16 are read: use the "
                    "weights from before they were quantised"
                )
            width = np.dtype(_STORED[stored]).itemsize
            if not 0 <= first <= end <= size or end - first != width * math.prod(shape):
                raise Damaged(damaged)
            yield name, Tensor(path, 8 + length + first, shape, stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(damaged) from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Give errors of reading a kind of their own, apart from those of who writes meanwhile."""
    try:
        yield
    except OSError as error:
        raise Damaged(
            f"{path} cannot be read ({error.strerror or error}); download the model again"
        ) from error


def _float32(raw: npt.NDArray[Any], stored: str) -> Floats:
    if stored == "BF16":
        # bfloat16 is the upper half of a float32.
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32, copy=False)
