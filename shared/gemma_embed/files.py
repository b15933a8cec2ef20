"""Places on this disk that users name, and the one where the package may keep what it made."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gemma_embed.errors import ConfigurationError


def expanded(path: str | Path) -> Path:
    """Return the absolute path, with ``~`` and ``~user`` replaced by the home folder.

    Absolute, because a program may change its working folder between two uses of a path.

    Raises:
        ConfigurationError: If this system does not know that home folder.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigurationError(
            f"{str(path)!r} names a home folder that this system does not know; "
            "write the path in full"
        ) from error


def cache_folder() -> Path | None:
    """Return the package's folder in the user's cache, which may not exist yet.

    Returns:
        ``XDG_CACHE_HOME`` (``LOCALAPPDATA`` on Windows), else ``~/.cache``, with ``gemma-embed``;
        None for a user without a home folder.
    """
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    try:
        base = Path(os.environ.get(variable) or Path.home() / ".cache")
    except RuntimeError:
        return None
    return base / "gemma-embed"
