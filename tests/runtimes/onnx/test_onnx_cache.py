"""Cached files of the ONNX runtime: found by content, never another model's, never damaged."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import checkpoints
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import gemma_embed
from gemma_embed import Embedder
from gemma_embed.errors import (
    ConfigurationError,
    InputTooLong,
    MissingDependency,
    ModelChanged,
    ModelCorrupt,
)
from gemma_embed.runtimes import OnnxRuntime, open_runtime, runtime_settings
from gemma_embed.runtimes.local import cache
from gemma_embed.runtimes.onnx import runtime
from gemma_fast.bpe import BpeTokenizer
from gemma_fast.graph import VERSION

TEXTS = ["a", "Mars is red. " * 30, "b <bos> c", "", "rain " * 70]


@pytest.fixture(scope="module")
def right(narrow: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The vectors of TEXTS."""
    return embed(narrow, tmp_path_factory.mktemp("right"))


@pytest.fixture
def folder(narrow: Path, tmp_path: Path) -> Path:
    """A checkpoint that may be changed."""
    return Path(shutil.copytree(narrow, tmp_path / "copy"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A cache folder that does not exist yet."""
    return tmp_path / "cache"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder."""
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    return tmp_path / "home" / "gemma-embed"


def embed(folder: Path | str, place: Path | None, **options: Any) -> np.ndarray:
    return Embedder(OnnxRuntime(folder, cache_dir=place, **options)).embed(TEXTS)


def cached(place: Path, kind: str = "float32") -> Path:
    (entry,) = place.glob(f"*-{kind}-v*")
    return entry


def raises(error: Exception) -> Callable[..., None]:
    def fails(*_: object) -> None:
        raise error

    return fails


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


def test_nothing_is_written_into_the_model_folder(folder: Path, home: Path) -> None:
    before = sorted(folder.rglob("*"))
    embed(folder, None)
    assert sorted(folder.rglob("*")) == before
    assert cached(home).is_dir()
    assert cached(home, "tokenizer").is_dir()


def test_another_cache_folder_can_be_chosen(
    folder: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    named = OnnxRuntime(folder, cache_dir="~/mine")
    Embedder(open_runtime(runtime_settings(named))).embed(["a"])
    assert cached(tmp_path / "mine").is_dir()
    assert not list(home.glob("*-v*"))
    with pytest.raises(ConfigurationError, match="cache_dir must be"):
        OnnxRuntime(folder, cache_dir=3)


def test_copies_share_cached_files(
    folder: Path, right: np.ndarray, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(folder, place)
    again = Path(shutil.copytree(folder, folder.parent / "again"))
    monkeypatch.setattr(runtime, "write_graph", raises(AssertionError("written twice")))
    np.testing.assert_array_equal(embed(again, place), right)
    assert len(list(place.iterdir())) == 2


def test_the_bundled_model_is_shared_by_environments(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = embed("bundled", place)
    bundled = Path(gemma_embed.__file__).parent / "bundled"
    shutil.copytree(bundled, tmp_path / "environment" / "bundled")
    monkeypatch.setattr(gemma_embed, "__file__", str(tmp_path / "environment" / "__init__.py"))
    monkeypatch.setattr(runtime, "write_graph", raises(AssertionError("written twice")))
    np.testing.assert_array_equal(embed("bundled", place), expected)
    assert not (bundled / "gemma-embed").exists()


@pytest.mark.parametrize("inplace", [True, False])
def test_weights_of_the_same_size_and_time_have_their_own_graph(
    folder: Path, right: np.ndarray, place: Path, inplace: bool
) -> None:
    np.testing.assert_array_equal(embed(folder, place), right)
    former = cached(place)
    file = folder / "model.safetensors"
    before = file.stat()
    # As "cp -p" and "rsync -t" do it.
    target = file if inplace else folder / "fresh"
    target.write_bytes(other_weights(file))
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    target.replace(file)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    after = embed(folder, place)
    assert not np.allclose(after, right, atol=1e-3)
    # The graph of this folder's earlier weights is removed.
    assert cached(place) != former
    np.testing.assert_array_equal(embed(folder, folder.parent / "fresh"), after)


def test_a_loaded_model_is_not_named_after_weights_of_the_same_size_and_time(
    folder: Path, place: Path
) -> None:
    embedder = Embedder(OnnxRuntime(folder, cache_dir=place))
    embedder.embed(["a"])
    revision = OnnxRuntime(folder).identity.revision
    file = folder / "model.safetensors"
    before = file.stat()
    file.write_bytes(other_weights(file))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert embedder.runtime.identity.revision == revision
    assert OnnxRuntime(folder).identity.revision != revision


def test_a_graph_of_weights_that_change_meanwhile_is_not_cached(
    folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped(*arguments: Any) -> None:
        write_graph(*arguments)
        os.utime(folder / "model.safetensors")

    write_graph = runtime.write_graph
    monkeypatch.setattr(runtime, "write_graph", swapped)
    with pytest.raises(ModelChanged):
        embed(folder, place)
    assert list(place.iterdir()) == [cached(place, "tokenizer")]


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
def test_a_damaged_graph_is_recreated(
    folder: Path,
    right: np.ndarray,
    place: Path,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    embed(folder, place)
    names = sorted(path.name for path in cached(place).iterdir())
    assert names == ["crc32", "model.onnx", "model.onnx.data", "source"]
    for name in names:
        caplog.clear()
        content = (cached(place) / name).read_bytes()
        DAMAGES[damage](cached(place) / name)
        np.testing.assert_array_equal(embed(folder, place), right)
        (record,) = caplog.records
        assert (record.levelno, record.args) == (logging.WARNING, (cached(place),))
        assert (cached(place) / name).read_bytes() == content
    assert not list(place.glob(".*"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tokenizer_is_recreated(
    folder: Path, right: np.ndarray, place: Path, damage: str
) -> None:
    embed(folder, place)
    for name in sorted(path.name for path in cached(place, "tokenizer").glob("*.*")):
        DAMAGES[damage](cached(place, "tokenizer") / name)
        fresh = OnnxRuntime(folder, cache_dir=place)
        np.testing.assert_array_equal(Embedder(fresh).embed(TEXTS), right)
        assert isinstance(fresh._load().tokenize, BpeTokenizer)


def full(place: Path) -> Callable[..., str]:
    """Make a folder unwritable."""
    real = cache.tempfile.mkdtemp

    def mkdtemp(*, prefix: str, dir: Path) -> str:
        if dir == place:
            raise PermissionError(13, "Permission denied")
        return real(prefix=prefix, dir=dir)

    return mkdtemp


def test_a_damaged_graph_that_cannot_be_removed_is_not_used(
    folder: Path, right: np.ndarray, place: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(folder, place)
    DAMAGES["a bit"](cached(place) / "model.onnx.data")
    monkeypatch.setattr(cache.tempfile, "mkdtemp", full(place))
    monkeypatch.setattr(cache, "_remove", lambda folder: None)
    np.testing.assert_array_equal(embed(folder, place), right)
    assert cached(home).is_dir()


def _in_the_way(place: Path, _: pytest.MonkeyPatch) -> None:
    # A file in its place fails like a read-only folder, also for root.
    place.write_text("")


def _read_only(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.tempfile, "mkdtemp", full(place))


def _no_space(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = runtime.write_graph

    def write(folder: Path, *rest: Any) -> None:
        (folder / "model.onnx").write_bytes(b"half")
        if place in folder.parents:
            raise OSError(28, "No space left on device")
        real(folder, *rest)

    monkeypatch.setattr(runtime, "write_graph", write)


def _no_space_to_flush(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cache._flush

    def flush(folder: Path) -> None:
        if place in folder.parents:
            raise OSError(28, "No space left on device")
        real(folder)

    monkeypatch.setattr(cache, "_flush", flush)


REFUSALS = [_in_the_way, _read_only, _no_space, _no_space_to_flush]


@pytest.mark.parametrize("refuse", REFUSALS)
def test_if_the_first_folder_is_unwritable_the_users_cache_folder_is_used(
    folder: Path,
    right: np.ndarray,
    place: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refuse: Callable[..., None],
) -> None:
    refuse(place, monkeypatch)
    np.testing.assert_array_equal(embed(folder, place), right)
    assert cached(home).is_dir()
    assert f"{home} is used instead ({place}" in caplog.text
    assert not place.is_dir() or not list(place.glob("*float32*"))


@pytest.mark.parametrize("refuse", REFUSALS)
def test_if_every_folder_is_unwritable_the_error_names_them_and_the_fix(
    folder: Path,
    right: np.ndarray,
    place: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    refuse: Callable[..., None],
) -> None:
    home.parent.mkdir()
    with monkeypatch.context() as patch:
        refuse(home, patch)
        with pytest.raises(ConfigurationError, match=f"{home}: .*cache_dir="):
            embed(folder, None)
    np.testing.assert_array_equal(embed(folder, place), right)


def test_a_missing_home_folder_is_an_error_with_the_fix(
    folder: Path, right: np.ndarray, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "cache_folder", lambda: None)
    with pytest.raises(ConfigurationError, match="cache_dir="):
        embed(folder, None)
    np.testing.assert_array_equal(embed(folder, place), right)


@pytest.mark.skipif(os.name == "nt", reason="nothing is flushed there")
def test_files_are_flushed_before_they_are_renamed(
    folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    moved: list[set[str]] = []
    flush, move = cache._flush_one, cache._move
    monkeypatch.setattr(cache, "_flush_one", lambda path: flushed.append(path.name) or flush(path))

    def moving(new: Path, entry: Path) -> None:
        moved.append({new.name, *(path.name for path in new.iterdir())} - set(flushed))
        move(new, entry)

    monkeypatch.setattr(cache, "_move", moving)
    embed(folder, place)
    assert moved == [set(), set()]


def test_unused_cache_entries_are_removed(
    folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(folder, place)
    name = cached(place).name.removesuffix(f"-float32-v{VERSION}")
    day = 24 * 3600
    # Name, days since the last use, and whether it is removed.
    others = {
        "model-0123456789abcdef-float32-v2": (0, True),
        "model-0123456789abcdef-int8-v2": (0, False),
        f"model-0123456789abcdef-float32-v{VERSION}": (89, False),
        "model-0123456789abcdef-int4-v1": (91, True),
        f"model-0123456789abcdef-float32-v{VERSION + 1}": (10, False),
        f"{name}-int8-v3": (91, True),
        f".{name}-float32-v2-left": (1, True),
        f".{name}-float32-v{VERSION}-busy": (0, False),
        "model-0123456789abcdef": (1000, False),
        "somebody's": (1000, False),
    }
    for other, (age, _) in others.items():
        (place / other).mkdir()
        (place / other / "source").write_text("elsewhere")
        os.utime(place / other, (time.time() - age * day - 60,) * 2)
    shutil.rmtree(place / f"{name}-float32-v{VERSION}")
    embed(folder, place)
    left = {other for other in others if (place / other).exists()}
    assert left == {other for other, (_, removed) in others.items() if not removed}


def test_used_cache_entries_are_not_removed(folder: Path, place: Path) -> None:
    embed(folder, place)
    os.utime(cached(place), (0, 0))
    embed(folder, place)
    assert time.time() - cached(place).stat().st_mtime < 60


@pytest.mark.parametrize("package", ["onnx", "tokenizers"])
def test_packages_for_writing_are_not_needed_for_a_cached_model(
    folder: Path,
    right: np.ndarray,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, package, None)
        with pytest.raises(MissingDependency, match=rf"needs {package}: pip install .*\[onnx\]"):
            embed(folder, place)
    embed(folder, place)
    monkeypatch.setitem(sys.modules, package, None)
    np.testing.assert_array_equal(embed(folder, place), right)


def test_a_tokenizer_that_cannot_be_read_is_named(folder: Path, place: Path) -> None:
    runtime = OnnxRuntime(folder, cache_dir=place)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelCorrupt, match=r"tokenizer\.json cannot be loaded"):
        Embedder(runtime).embed(["a"])


def test_a_longer_context_has_its_own_graph(folder: Path, right: np.ndarray, place: Path) -> None:
    long = "rain " * 272
    settings = folder / "sentence_bert_config.json"
    checkpoints.edit_json(settings, max_seq_length=256)
    np.testing.assert_allclose(embed(folder, place), right, atol=1e-6)
    with pytest.raises(InputTooLong, match="256"):
        Embedder(OnnxRuntime(folder, cache_dir=place)).embed([long])
    checkpoints.edit_json(settings, max_seq_length=2048)
    runtime = OnnxRuntime(folder, cache_dir=place)
    assert 512 < runtime.count_tokens([long])[0] < 600
    assert np.isfinite(Embedder(runtime).embed([long])).all()


def test_threads_that_load_at_once_share_one_graph(
    folder: Path, right: np.ndarray, place: Path
) -> None:
    start = threading.Barrier(4)

    def work(_: int) -> np.ndarray:
        start.wait()
        return embed(folder, place)

    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(work, range(4)):
            np.testing.assert_array_equal(vectors, right)
    assert cached(place).is_dir()


_barrier: Barrier


def _meet(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _at_once(folder: Path, place: Path) -> np.ndarray:
    real = runtime.write_graph

    def together(*arguments: Any) -> None:
        real(*arguments)
        _barrier.wait(60)

    runtime.write_graph = together
    return embed(folder, place)


def test_two_processes_that_write_at_once_give_the_right_vectors(
    folder: Path, right: np.ndarray, place: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        2, mp_context=context, initializer=_meet, initargs=(context.Barrier(2),)
    ) as pool:
        for vectors in pool.map(_at_once, [folder] * 2, [place] * 2):
            np.testing.assert_array_equal(vectors, right)
    assert len(list(place.iterdir())) == 2
    np.testing.assert_array_equal(embed(folder, place), right)
