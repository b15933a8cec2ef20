"""Paths from users."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
from fakes import FakeRuntime

from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex
from gemma_embed.errors import ConfigurationError
from gemma_embed.files import cache_folder, expanded
from gemma_embed.runtimes import OnnxRuntime


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for given in ("~/a/b", Path("~/a/b")):
        assert expanded(given) == tmp_path / "a" / "b"
    assert expanded("a/~b") == Path.cwd() / "a" / "~b"
    with pytest.raises(ConfigurationError, match=r"home folder.*write the path in full"):
        expanded("~nobody-of-this-name/a")


def test_relative_paths_stay_where_they_were(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake: FakeRuntime, narrow: Path
) -> None:
    # Two projects in one process, each with its working folder and the same names in it.
    indexes = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        index = ChromaIndex("db", "notes", Embedder(fake, store="vectors"))
        assert index.ingest([{"text": name}]).added == 1
        indexes.append(index)
    shutil.copytree(narrow, "model")
    runtime = OnnxRuntime("model")
    monkeypatch.chdir(tmp_path)
    assert list(runtime.embed(["text"]))
    assert pickle.loads(pickle.dumps(runtime)).identity == runtime.identity
    for name, index in zip(("first", "second"), indexes, strict=True):
        assert index.open().get()["documents"] == [name]
        assert index.ingest([{"text": name}]).unchanged == 1
        assert (tmp_path / name / "vectors").is_file()
        index.close()


def test_the_cache_is_in_the_users_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert cache_folder() == tmp_path / "gemma-embed"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("LOCALAPPDATA")
    assert cache_folder() == Path.home() / ".cache" / "gemma-embed"

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder() is None
