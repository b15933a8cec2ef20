"""OnnxRuntime in 8 and 4 bits: what the rounding keeps."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from onnx_texts import SHORT, WORDS, vectors_of
from safetensors.torch import load_file, save_file

from gemma_embed.runtimes import OnnxRuntime
from gemma_fast.quantization import BLOCK, bits, to_int4, to_int8


# Measured on all notes and their lines: at least 0.9968 and 0.9938.
@pytest.mark.parametrize(("precision", "least"), [("int8", 0.995), ("int4", 0.985)])
def test_quantised_vectors_are_close(precision: str, least: float) -> None:
    texts = [*SHORT, " ".join(WORDS[:300])]
    texts += [path.read_text() for path in sorted(checkpoints.NOTES.glob("*.md"))[::5]]
    exact = vectors_of(OnnxRuntime("bundled"), texts)
    close = vectors_of(OnnxRuntime("bundled", precision=precision), texts)
    assert (exact * close).sum(1).min() >= least


@pytest.mark.parametrize("inputs", [50, 51])
def test_8_bits_round_to_the_nearest_step_and_cannot_overflow(inputs: int) -> None:
    matrix = np.random.default_rng(0).standard_normal((7, inputs)).astype(np.float32)
    matrix[3] = 0
    matrix[4, 1:] = 0
    # The largest sums: both halves round up.
    matrix[5, :2] = 63.5
    codes, scales = to_int8(matrix)
    assert codes.shape == (inputs, 7)
    steps = np.abs(codes.astype(int))
    together = steps[::2].copy()
    together[: inputs // 2] += steps[1::2]
    # Two products with at most 255, summed in 16 signed bits.
    assert (together * 255).max() <= 2**15 - 1
    assert (together.max(0)[[0, 1, 2, 4, 5, 6]] >= 126).all()
    assert together[0, 5] == 128
    assert (np.abs(codes.T * scales[:, None] - matrix) <= scales[:, None] * 0.5001).all()


def unpacked(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The matrix that the operator reads out of 4-bit codes: (outputs, inputs)."""
    numbers = np.stack([codes & 15, codes >> 4], 3).reshape(*scales.shape, BLOCK)
    return ((numbers.astype(np.float32) - 8) * scales[..., None]).reshape(len(codes), -1)


def test_4_bit_weights_have_the_operators_layout() -> None:
    matrix = np.random.default_rng(0).standard_normal((5, BLOCK + 8)).astype(np.float32)
    codes, scales = to_int4(matrix)
    assert codes.shape == (5, 2, BLOCK // 2)
    again = unpacked(codes, scales)
    assert not again[:, matrix.shape[1] :].any()
    error = np.abs(again[:, : matrix.shape[1]] - matrix).reshape(5, -1, 8)
    assert error.max() <= np.abs(scales).max() * 1.6
    assert error.mean() <= np.abs(scales).mean() * 0.3


def on_q4_0s_grid(matrix: np.ndarray) -> np.ndarray:
    """Round as GGUF's Q4_0: blocks of 32, the furthest value -8 steps of float16."""
    cut = matrix.reshape(len(matrix), -1, 32)
    furthest = np.take_along_axis(cut, np.abs(cut).argmax(2)[..., None], 2)
    steps = (furthest / -8).astype(np.float16).astype(np.float32)
    codes = np.clip(np.floor(cut / steps + 8.5), 0, 15)
    return ((codes - 8) * steps).astype(np.float32).reshape(matrix.shape)


def bundled_weights() -> dict[str, np.ndarray]:
    """The trained matrices of the bundled model's layers, by name."""
    state = load_file(OnnxRuntime("bundled")._checkpoint().weights[0])
    # Its numbers have few digits; the factor gives them float32's.
    return {n: t.float().numpy() * np.float32(1.1) for n, t in state.items() if "proj.weight" in n}


def test_weights_on_q4_0s_grid_come_back_bit_for_bit() -> None:
    matrices = bundled_weights()
    assert matrices
    for matrix in matrices.values():
        grid = on_q4_0s_grid(matrix)
        grid[0] = 0
        # A table that wants 8 bits for it gives way.
        assert bits("int4", "output", 1, grid) == 4
        assert np.array_equal(unpacked(*to_int4(grid)), grid)


def test_an_unquantised_bfloat16_checkpoint_of_q4_0_keeps_its_4_bits() -> None:
    grid = on_q4_0s_grid(next(iter(bundled_weights().values())))
    stored = torch.from_numpy(grid).bfloat16().float().numpy()
    assert not np.array_equal(stored, grid)
    assert bits("int4", "output", 1, stored) == 4
    np.testing.assert_allclose(unpacked(*to_int4(stored)), grid, rtol=2**-8)


def test_one_number_beside_the_grid_takes_the_bits_of_the_table() -> None:
    grid = on_q4_0s_grid(next(iter(bundled_weights().values())))
    block = grid[1, :32]
    block[np.abs(block).argmin()] += np.abs(block).max() / 8 * 0.4
    assert bits("int4", "output", 1, grid) == 8
    assert bits("int4", "down", 0, grid) == 8
    assert bits("int4", "down", 0.5, grid) == 4
    assert bits("int8", "output", 1, grid) == 8
    assert bits("float32", "output", 1, grid) == 32


def test_a_checkpoint_on_q4_0s_grid_keeps_its_vectors(tmp_path: Path) -> None:
    """What 4 bits lose is then only the rounding of what is multiplied with them."""
    folder = checkpoints.build(tmp_path, checkpoints.SHAPES["wide"])
    path = folder / "model.safetensors"
    state = load_file(path)
    for name, tensor in state.items():
        if "proj.weight" in name:
            state[name] = torch.from_numpy(on_q4_0s_grid(tensor.float().numpy()))
    save_file(state, path)
    exact = vectors_of(OnnxRuntime(folder), SHORT)
    close = vectors_of(OnnxRuntime(folder, precision="int4"), SHORT)
    assert (exact * close).sum(1).min() >= 0.999
