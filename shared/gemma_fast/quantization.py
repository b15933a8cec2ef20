"""Matrices in fewer bits, in the forms that ONNX Runtime's operators take."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gemma_fast.weights import Floats

Precision = Literal["float32", "int8", "int4"]
# The products of a layer, by its matrices.
Product = Literal["query_key_value", "output", "gate_up", "down"]

# Numbers that share a scale at 4 bits: as in GGUF's Q4_0, and the size with the fastest kernels.
BLOCK = 32

# Processors without VNNI add the products of two neighbouring inputs in 16 bits: with 255 for the
# largest activation, two weights that are 128 together cannot overflow. Rounding adds at most 1.
_LARGEST_PAIR = 127

# Scales that are tried for a block of 4 bits, as shares of the one that reaches furthest.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8)


# At "int4", the products that take 8 bits: in layers below the first number and from the second
# on, as shares of all layers. Measured on EmbeddingGemma's real weights; 1 - cosine, times 10,000,
# when one product of one layer alone takes 4 bits (mean of four texts, 250 tokens; a fifth, Finnish
# text lost 35 with gate_up of layer 0, 21 with its down):
#     layers             0    1    2    3    4    5    6  7-10   11 12-15   16   17   18   19
#     gate and up      2.8  5.2  5.4  4.1  4.8  3.0  2.4   1.3  3.9   1.0  2.6  3.4  3.0  3.5
#     down             1.9  3.4  2.3  1.9  1.5  1.3  0.7   0.6  1.7   0.9  2.6  4.0  4.7  5.3
# Layers 20 to 23 together lose 166, all values 88, all outputs 48, all queries and keys 7 (the
# three share one product). An early error passes all layers; after a late one few average it out.
_EIGHT_BITS: dict[Product, tuple[float, float]] = {
    "query_key_value": (0, 0),
    "output": (0, 0),
    "gate_up": (5 / 24, 18 / 24),
    "down": (5 / 24, 16 / 24),
}


def bits(precision: Precision, product: Product, depth: float, *matrices: Floats) -> int:
    """Return the bits of a weight: the one rule of which matrix takes how many.

    Args:
        precision: Of the network.
        product: Which of a layer's products.
        depth: The layers below, as a share of all.
        matrices: Those that the product's input is multiplied with, each (outputs, inputs).

    Returns:
        32, 8 or 4. At ``int4``, 4 for matrices that this gives back unchanged, as those of a
        checkpoint trained for Q4_0; for others what the table says.
    """
    if precision != "int4":
        return {"float32": 32, "int8": 8}[precision]
    first, last = _EIGHT_BITS[product]
    if first <= depth < last or all(map(_is_on_grid, matrices)):
        return 4
    return 8


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
    cut = _blocks(matrix)
    # -8 to 7: the number furthest from zero takes the side that reaches further. A slightly
    # smaller scale often rounds the others better; of equal ones the first counts, so that
    # numbers on Q4_0's grid stay as they are.
    furthest = _q4_0_scales(cut)
    best = furthest
    error = np.full(best.shape, np.inf, np.float32)
    for share in _SHARES:
        scales = _nonzero(furthest * share)
        distance = np.square(_steps(cut, scales) * scales[..., None] - cut).sum(2)
        best = np.where(distance < error, scales, best)
        error = np.minimum(error, distance)
    codes = (_steps(cut, best) + 8).astype(np.uint8)
    pairs: npt.NDArray[np.uint8] = codes[..., ::2] | codes[..., 1::2] << np.uint8(4)
    return pairs, best


def _is_on_grid(matrix: Floats) -> bool:
    """Whether a matrix was made of Q4_0's blocks: 32 inputs, the furthest of them -8 steps."""
    cut = _blocks(matrix)
    scales = _q4_0_scales(cut)
    distance = np.abs(_steps(cut, scales) * scales[..., None] - cut)
    # A checkpoint in bfloat16 rounded the grid's own numbers to 8 bits, the furthest one too.
    return bool((distance <= np.abs(cut) * np.float32(0.01)).all())


def _blocks(matrix: Floats) -> Floats:
    outputs, inputs = matrix.shape
    blocks = -(-inputs // BLOCK)
    padded = np.zeros((outputs, blocks * BLOCK), np.float32)
    padded[:, :inputs] = matrix
    return padded.reshape(outputs, blocks, BLOCK)


def _q4_0_scales(cut: Floats) -> Floats:
    furthest = np.take_along_axis(cut, np.abs(cut).argmax(2)[..., None], 2)[..., 0]
    return _nonzero(furthest / -8)


def _steps(cut: Floats, scales: Floats) -> Floats:
    steps: Floats = np.clip(np.rint(cut / scales[..., None]), -8, 7)
    return steps


def _nonzero(scales: npt.NDArray[np.floating[Any]]) -> Floats:
    return np.where(scales == 0, np.float32(1), scales).astype(np.float32)
