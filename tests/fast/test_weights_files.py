"""The safetensors reader: the tensors of the given files, or an error that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gemma_fast.architecture import LAYER_TENSORS, Architecture
from gemma_fast.errors import Damaged, Unsupported
from gemma_fast.weights import Rows, Weights, dense_matrix

TENSORS = {
    "embed_tokens.weight": torch.arange(60.0).reshape(12, 5) - 30,
    "layers.0.mlp.up_proj.weight": torch.linspace(-1, 1, 15).reshape(3, 5),
    "norm.weight": torch.tensor([0.5, -0.25, 3.0, 0.0, 1e-3]),
}


def saved(path: Path, tensors: dict[str, torch.Tensor], dtype: torch.dtype | None = None) -> Path:
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_and_rows_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    file = saved(tmp_path / "a.safetensors", TENSORS, dtype)
    weights = Weights([file])
    assert set(weights) == set(TENSORS)
    for name, tensor in load_file(file).items():
        np.testing.assert_array_equal(weights[name].read(), tensor.float().numpy())
    rows = Rows(weights["embed_tokens.weight"])
    expected = TENSORS["embed_tokens.weight"][[3, 0, 11, 3]].to(dtype).float().numpy()
    np.testing.assert_array_equal(rows.take([3, 0, 11, 3]), expected)
    with pytest.raises(Damaged, match="no row 12 in its table of 12"):
        rows.take([0, 12])


def test_only_the_named_files_are_read(tmp_path: Path) -> None:
    names = sorted(TENSORS)
    parts = [
        saved(tmp_path / f"{n}.safetensors", {f"model.{name}": TENSORS[name]})
        for n, name in enumerate(names)
    ]
    saved(tmp_path / "old.safetensors", TENSORS)
    assert set(Weights(parts)) == set(TENSORS)
    assert list(Weights(parts[:1])) == names[:1]


def test_a_duplicate_tensor_is_refused(tmp_path: Path) -> None:
    files = [saved(tmp_path / f"{n}.safetensors", TENSORS) for n in "ab"]
    with pytest.raises(Damaged, match=r"a\.safetensors and b\.safetensors both hold"):
        Weights(files)


def test_shapes_are_checked(tmp_path: Path) -> None:
    weights = Weights([saved(tmp_path / "a.safetensors", TENSORS)])
    shapes = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    weights.check(shapes)
    with pytest.raises(Damaged, match=r"lack or misshape 1 tensors, norm\.weight first"):
        weights.check(shapes | {"norm.weight": (6,)})
    with pytest.raises(Damaged, match="lack or misshape 1 tensors, norm2 first"):
        weights.check(shapes | {"norm2": (5,)})
    # A head for generating text is ignored; a layer that config.json leaves out is not.
    del shapes["norm.weight"]
    weights.check(shapes)
    del shapes["layers.0.mlp.up_proj.weight"]
    with pytest.raises(Damaged, match=r"config\.json leaves out, layers\.0\.mlp"):
        weights.check(shapes)


def header(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        entries = json.loads(content[8 : 8 + length])
        change(entries["norm.weight"])
        new = json.dumps(entries).encode()
        path.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "no header": lambda path: path.write_bytes(b"\xff" * 100),
    "a deep header": lambda path: path.write_bytes((9000).to_bytes(8, "little") + b"[" * 9000),
    "gone": lambda path: path.unlink(),
    "offsets beyond the end": header(lambda entry: entry.update(data_offsets=[0, 1 << 40])),
    "offsets backwards": header(lambda entry: entry.update(data_offsets=[20, 0])),
    "another length": header(lambda entry: entry.update(shape=[4])),
    "no offsets": header(lambda entry: entry.pop("data_offsets")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    file = saved(tmp_path / "a.safetensors", TENSORS)
    DAMAGES[damage](file)
    with pytest.raises(Damaged, match=r"a\.safetensors cannot be loaded; download"):
        Weights([file])


def test_a_file_truncated_after_reading_its_header_is_named(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.safetensors", TENSORS)
    weights = Weights([file])
    rows = Rows(weights["embed_tokens.weight"])
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(Damaged, match="is shorter than it says"):
        weights["norm.weight"].read()
    with pytest.raises(Damaged, match="has no row"):
        rows.take([11])


def test_quantised_tensors_are_named(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.safetensors", {"x": torch.ones(3)}, torch.int8)
    with pytest.raises(Damaged, match=r"stores x as I8.*before they were quantised"):
        Weights([file])


def test_a_dense_layer_is_one_matrix(tmp_path: Path) -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    file = saved(tmp_path / "a.safetensors", {"linear.weight": matrix}, torch.bfloat16)
    np.testing.assert_array_equal(dense_matrix(file), matrix.numpy())
    for wrong in ({"linear.bias": matrix}, {"linear.weight": matrix[0]}):
        shutil.copy(saved(tmp_path / "b.safetensors", wrong), file)
        with pytest.raises(Damaged, match="is no Dense layer"):
            dense_matrix(file)


def test_sizes_come_from_the_config(narrow: Path) -> None:
    config = json.loads((narrow / "config.json").read_text())
    sizes = Architecture.of(config, 2048)
    assert (sizes.hidden, sizes.reach, sizes.context) == (72, 257, 2048)
    assert sizes.full == (False,) * 5 + (True,)
    assert len(sizes.shapes()) == 6 * len(LAYER_TENSORS) + 2
    Weights([narrow / "model.safetensors"]).check(sizes.shapes())
    # As transformers 5 writes them.
    later = {k: v for k, v in config.items() if not k.startswith("rope") and k != "layer_types"}
    later["rope_parameters"] = {
        "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 1e4},
    }
    assert Architecture.of(later, 2048) == sizes
    later["rope_parameters"]["full_attention"]["rope_type"] = "linear"
    with pytest.raises(Unsupported, match="rope_type: 'linear'"):
        Architecture.of(later, 2048)
    with pytest.raises(Unsupported, match="layer_types"):
        Architecture.of(config | {"layer_types": ["full_attention"]}, 2048)
    del config["head_dim"]
    with pytest.raises(Damaged, match="lacks a size of the network"):
        Architecture.of(config, 2048)
