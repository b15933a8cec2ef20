"""Tensors of a checkpoint, read out of its safetensors files as they are needed.

The format is eight bytes of length, a JSON header, and the numbers in order
(https://huggingface.co/docs/safetensors); reading it takes NumPy alone, and no tensor costs memory
that nobody asked for.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_embed.errors import ModelCorrupt

_STORED = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


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

    def read(self) -> npt.NDArray[np.float32]:
        """Read all of it: float32, of ``shape``."""
        count = math.prod(self.shape)
        raw = np.fromfile(self.path, _STORED[self.stored], count, offset=self.start)
        if len(raw) != count:
            raise ModelCorrupt(f"{self.path} is shorter than it says; download the model again")
        return _float32(raw, self.stored).reshape(self.shape)


class Rows:
    """Rows of a matrix, read from its file by number.

    A vocabulary's table is most of a model's size, and a text touches a few hundred rows of it.
    Read and not memory-mapped: a mapped page brings fifteen neighbours into the process's memory.
    Safe for several threads.
    """

    def __init__(self, tensor: Tensor) -> None:
        """Open the tensor's file."""
        self._tensor = tensor
        self._row = tensor.shape[1] * np.dtype(_STORED[tensor.stored]).itemsize
        self._lock = threading.Lock()
        # Kept open for as long as the rows are needed; closed with this object.
        self._file = tensor.path.open("rb", buffering=0)

    def __len__(self) -> int:
        return self._tensor.shape[0]

    def take(self, numbers: Sequence[int]) -> npt.NDArray[np.float32]:
        """Read rows: float32, shape (len(numbers), columns), in that order.

        Raises:
            ModelCorrupt: If a number is beyond the table, or the file was cut short.
        """
        raw = np.empty((len(numbers), self._tensor.shape[1]), _STORED[self._tensor.stored])
        with self._lock:
            for place, number in enumerate(numbers):
                self._file.seek(self._tensor.start + number * self._row)
                if number >= len(self) or self._file.readinto(raw[place].data) != self._row:
                    raise ModelCorrupt(
                        f"{self._tensor.path} has no row {number} in its table of {len(self)}; "
                        "tokenizer and weights do not belong together: download the model again"
                    )
        return _float32(raw, self._tensor.stored)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


class Weights(Mapping[str, Tensor]):
    """The tensors of some safetensors files, by name, without ``model.`` before it."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Read the headers.

        Raises:
            ModelCorrupt: If a file is damaged, cut short, or of numbers that no checkpoint of
                these models is stored in.
        """
        self._folder = files[0].parent
        self._tensors = {
            name.removeprefix("model."): tensor for path in files for name, tensor in _tensors(path)
        }

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that tensors are there, in these shapes.

        Raises:
            ModelCorrupt: If one is not.
        """
        wrong = sorted(
            name
            for name, shape in shapes.items()
            if name not in self._tensors or self._tensors[name].shape != shape
        )
        if wrong:
            raise ModelCorrupt(
                f"the weights in {self._folder} lack or misshape {len(wrong)} tensors, "
                f"{wrong[0]} first; download the model again"
            )


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    damaged = f"the weights in {path} cannot be loaded; download the model again"
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
        size = path.stat().st_size - 8 - length
        header.pop("__metadata__", None)
        for name, entry in header.items():
            first, end = entry["data_offsets"]
            shape = tuple(map(int, entry["shape"]))
            stored = str(entry["dtype"])
            if stored not in _STORED:
                raise ModelCorrupt(
                    f"{path} stores {name} as {stored}; only F32, BF16 and F16 are read"
                )
            width = np.dtype(_STORED[stored]).itemsize
            if not 0 <= first <= end <= size or end - first != width * math.prod(shape):
                raise ModelCorrupt(damaged)
            yield name, Tensor(path, 8 + length + first, shape, stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelCorrupt(damaged) from error


def _float32(raw: npt.NDArray[Any], stored: str) -> npt.NDArray[np.float32]:
    if stored == "BF16":
        # bfloat16 is the upper half of a float32.
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32, copy=False)
