"""A checkpoint that tests of the ONNX runtime may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copied(narrow: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(narrow, tmp_path / "copy"))
