"""Paths from users."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemma_embed.errors import ConfigurationError
from gemma_embed.files import cache_folder, expanded


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for given in ("~/a/b", Path("~/a/b")):
        assert expanded(given) == tmp_path / "a" / "b"
    assert expanded("a/~b") == Path("a/~b")
    with pytest.raises(ConfigurationError, match=r"home folder.*write the path in full"):
        expanded("~nobody-of-this-name/a")


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
