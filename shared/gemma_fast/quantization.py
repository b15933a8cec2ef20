"""Matrices in fewer bits, in the forms that ONNX Runtime's operators take."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gemma_fast.weights import Floats

Precision = Literal["float32", "int8", "int4"]

# Numbers that share a scale at 4 bits: as in GGUF's Q4_0, and the size with the fastest kernels.
BLOCK = 32

# Processors without VNNI add the products of two neighbouring inputs in 16 bits: with 255 for the
# largest activation, two weights that are 128 together cannot overflow. Rounding adds at most 1.
_LARGEST_PAIR = 127


def to_int8(matrix: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Round a matrix to 8 bits, with a scale for each output.

    Args:
        matrix: float32, shape (outputs, inputs).

    Returns:
        int8, shape (inputs, outputs), the absolute values of an input of even number and of the
        next at most 128 together; and scales, float32, shape (outputs,).
    """
    sizes = np.abs(matrix)
    pairs = sizes[:, ::2].copy()
    pairs[:, : matrix.shape[1] // 2] += sizes[:, 1::2]
    scales = _nonzero(pairs.max(1) / _LARGEST_PAIR)
    rounded = np.rint(matrix / scales[:, None]).astype(np.int8)
    return np.ascontiguousarray(rounded.T), scales


def to_int4(matrix: Floats) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Round a matrix to 4 bits, with a scale for each block of inputs: ``MatMulNBits``'s layout.

    Args:
        matrix: float32, shape (outputs, inputs).

    Returns:
        uint8, shape (outputs, blocks, BLOCK / 2), two numbers from 0 to 15 a byte, the first in
        the lower half, 8 standing for zero; and scales, float32, shape (outputs, blocks).
    """
    outputs, inputs = matrix.shape
    blocks = -(-inputs // BLOCK)
    padded = np.zeros((outputs, blocks * BLOCK), np.float32)
    padded[:, :inputs] = matrix
    cut = padded.reshape(outputs, blocks, BLOCK)
    furthest = np.take_along_axis(cut, np.abs(cut).argmax(2)[..., None], 2)[..., 0]
    # -8 to 7: the number furthest from zero takes the side that reaches further. A slightly
    # smaller scale often rounds the others better.
    best = _nonzero(furthest / -8)
    error = np.full(best.shape, np.inf, np.float32)
    for share in (1.0, 0.95, 0.9, 0.85, 0.8):
        scales = _nonzero(furthest / -8 * share)
        rounded = np.clip(np.rint(cut / scales[..., None]), -8, 7)
        distance = np.square(rounded * scales[..., None] - cut).sum(2)
        best = np.where(distance < error, scales, best)
        error = np.minimum(error, distance)
    codes = (np.clip(np.rint(cut / best[..., None]), -8, 7) + 8).astype(np.uint8)
    pairs: npt.NDArray[np.uint8] = codes[..., ::2] | codes[..., 1::2] << np.uint8(4)
    return pairs, best


def _nonzero(scales: npt.NDArray[np.floating[Any]]) -> Floats:
    return np.where(scales == 0, np.float32(1), scales).astype(np.float32)
