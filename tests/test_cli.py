"""The command, as Python's module and by its name: the same."""

from __future__ import annotations

import subprocess
import sys


def test_the_package_runs_as_the_command() -> None:
    command = [sys.executable, "-m", "gemma_embed"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: gemma-embed")
    for name in ("verify", "evaluate", "compare", "export"):
        assert name in done.stdout
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2
