"""What the ONNX runtime keeps beside the weights: never another model's, never damaged."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import checkpoints
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from gemma_embed import Embedder
from gemma_embed.errors import InputTooLong, ModelChanged
from gemma_embed.runtimes import OnnxRuntime
from gemma_embed.runtimes.onnx import cache, network
from gemma_embed.runtimes.onnx.pairs import PairTokenizer

TEXTS = ["a", "Mars is red. " * 30, "b <bos> c", "", "rain " * 70]


@pytest.fixture(scope="module")
def right(narrow: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The vectors of TEXTS."""
    return embed(copy(narrow, tmp_path_factory.mktemp("right") / "copy"))


@pytest.fixture
def folder(narrow: Path, tmp_path: Path) -> Path:
    """A checkpoint beside which nothing is kept yet."""
    return copy(narrow, tmp_path / "copy")


def copy(narrow: Path, place: Path) -> Path:
    return Path(shutil.copytree(narrow, place, ignore=shutil.ignore_patterns("gemma-embed")))


def embed(folder: Path, **options: Any) -> np.ndarray:
    return Embedder(OnnxRuntime(folder, **options)).embed(TEXTS)


def kept(folder: Path, kind: str = "float32") -> Path:
    (place,) = (folder / "gemma-embed").glob(f"{kind}-*")
    return place


def other_weights(file: Path) -> bytes:
    """A file of the same size with another matrix in it."""
    weights = load_file(file)
    up = weights["layers.0.mlp.up_proj.weight"]
    weights["layers.0.mlp.up_proj.weight"] = up.flip(0).contiguous()
    save_file(weights, file.with_name("other"), {"format": "pt"})
    content = file.with_name("other").read_bytes()
    file.with_name("other").unlink()
    assert len(content) == file.stat().st_size
    return content


@pytest.mark.parametrize("inplace", [True, False])
def test_weights_of_the_same_size_and_time_have_a_graph_of_their_own(
    folder: Path, right: np.ndarray, inplace: bool
) -> None:
    np.testing.assert_array_equal(embed(folder), right)
    file = folder / "model.safetensors"
    before = file.stat()
    # As "cp -p" and "rsync -t" do it.
    target = file if inplace else folder / "fresh"
    target.write_bytes(other_weights(file))
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    target.replace(file)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    after = embed(folder)
    assert not np.allclose(after, right, atol=1e-3)
    shutil.rmtree(folder / "gemma-embed")
    np.testing.assert_array_equal(embed(folder), after)


def test_a_loaded_model_is_not_named_after_weights_of_the_same_size_and_time(folder: Path) -> None:
    embedder = Embedder(OnnxRuntime(folder))
    embedder.embed(["a"])
    file = folder / "model.safetensors"
    before = file.stat()
    file.write_bytes(other_weights(file))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ModelChanged, match="make a new runtime"):
        _ = embedder.fingerprint


def test_what_is_made_of_weights_that_change_meanwhile_is_not_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped(*arguments: Any) -> None:
        write_graph(*arguments)
        os.utime(folder / "model.safetensors")

    write_graph = network.write_graph
    monkeypatch.setattr(network, "write_graph", swapped)
    with pytest.raises(ModelChanged):
        embed(folder)
    assert [path.name[:5] for path in (folder / "gemma-embed").iterdir()] == ["token"]


def test_a_copied_folder_makes_its_own(folder: Path, right: np.ndarray, tmp_path: Path) -> None:
    embed(folder)
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    np.testing.assert_array_equal(embed(whole), right)
    assert kept(whole).name != kept(folder).name


def middle(file: Path, length: int, change: Callable[[bytes], bytes]) -> None:
    content = file.read_bytes()
    start = len(content) // 2
    found = content[start : start + length]
    file.write_bytes(content[:start] + change(found) + content[start + length :])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "zeros": lambda file: middle(
        file, file.stat().st_size // 50 + 1, lambda part: bytes(len(part))
    ),
    "a bit": lambda file: middle(file, 1, lambda byte: bytes([byte[0] ^ 64])),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_graph_is_made_again(
    folder: Path, right: np.ndarray, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    embed(folder)
    names = sorted(path.name for path in kept(folder).iterdir())
    assert len(names) == 3
    for name in names:
        caplog.clear()
        content = (kept(folder) / name).read_bytes()
        DAMAGES[damage](kept(folder) / name)
        if damage != "gone":
            # Where the part is zero anyway, nothing is damaged.
            assert (kept(folder) / name).is_dir() or (kept(folder) / name).read_bytes() != content
        np.testing.assert_array_equal(embed(folder), right)
        (record,) = caplog.records
        assert (record.levelno, record.args) == (logging.WARNING, (kept(folder),))
        assert (kept(folder) / name).read_bytes() == content
    assert not list((folder / "gemma-embed").glob(".*"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tokenizer_is_made_again(folder: Path, right: np.ndarray, damage: str) -> None:
    embed(folder)
    for name in sorted(path.name for path in kept(folder, "tokenizer").glob("*.*")):
        DAMAGES[damage](kept(folder, "tokenizer") / name)
        runtime = OnnxRuntime(folder)
        np.testing.assert_array_equal(Embedder(runtime).embed(TEXTS), right)
        assert isinstance(runtime._load().tokenize, PairTokenizer)


def test_a_damaged_graph_that_cannot_be_removed_is_not_used(
    folder: Path, right: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(folder)
    DAMAGES["a bit"](kept(folder) / "model.onnx.data")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real = cache.tempfile.mkdtemp

    def read_only(*, prefix: str, dir: Path) -> str:
        if dir.parent == folder:
            raise PermissionError(13, "Permission denied")
        return real(prefix=prefix, dir=dir)

    monkeypatch.setattr(cache.tempfile, "mkdtemp", read_only)
    monkeypatch.setattr(cache, "_remove", lambda folder: None)
    np.testing.assert_array_equal(embed(folder), right)
    assert len(list((tmp_path / "cache").glob("gemma-embed/copy-*/float32-*"))) == 1


@pytest.mark.skipif(os.name == "nt", reason="nothing is flushed there")
def test_everything_is_on_the_disk_before_it_has_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    moved: list[set[str]] = []
    flush, move = cache._flush_one, cache._move
    monkeypatch.setattr(cache, "_flush_one", lambda path: flushed.append(path.name) or flush(path))

    def moving(new: Path, place: Path) -> None:
        moved.append({new.name, *(path.name for path in new.iterdir())} - set(flushed))
        move(new, place)

    monkeypatch.setattr(cache, "_move", moving)
    embed(folder)
    assert moved == [set(), set()]


def test_what_a_killed_process_left_is_removed_after_an_hour(folder: Path) -> None:
    embed(folder)
    place = folder / "gemma-embed"
    for name, age in ((".float32-2-0123-left", 3700), (".int8-2-0123-busy", 60)):
        (place / name).mkdir()
        (place / name / "model.onnx.data").write_bytes(b"half")
        os.utime(place / name, (time.time() - age,) * 2)
    embed(folder)
    assert [path.name for path in place.glob(".*")] == [".int8-2-0123-busy"]


def test_a_longer_context_has_a_graph_of_its_own(folder: Path, right: np.ndarray) -> None:
    long = "rain " * 272
    settings = folder / "sentence_bert_config.json"
    checkpoints.edit_json(settings, max_seq_length=256)
    np.testing.assert_allclose(embed(folder), right, atol=1e-6)
    with pytest.raises(InputTooLong, match="256"):
        Embedder(OnnxRuntime(folder)).embed([long])
    checkpoints.edit_json(settings, max_seq_length=2048)
    runtime = OnnxRuntime(folder)
    assert 512 < runtime.count_tokens([long])[0] < 600
    assert np.isfinite(Embedder(runtime).embed([long])).all()


_barrier: Barrier


def _meet(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _at_once(folder: Path) -> np.ndarray:
    real = network.write_graph

    def together(*arguments: Any) -> None:
        real(*arguments)
        _barrier.wait(60)

    network.write_graph = together
    return embed(folder)


def test_two_processes_that_write_at_once_give_the_right_vectors(
    folder: Path, right: np.ndarray
) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        2, mp_context=context, initializer=_meet, initargs=(context.Barrier(2),)
    ) as pool:
        for vectors in pool.map(_at_once, [folder] * 2):
            np.testing.assert_array_equal(vectors, right)
    assert len(list((folder / "gemma-embed").iterdir())) == 2
    np.testing.assert_array_equal(embed(folder), right)
