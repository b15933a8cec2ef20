"""Paths that a user typed."""

from __future__ import annotations

from pathlib import Path

from gemma_embed.errors import ConfigurationError


def expanded(path: str | Path) -> Path:
    """Return a path with a leading ``~`` or ``~user`` expanded.

    Raises:
        ConfigurationError: If the user's home folder is unknown.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigurationError(
            f"{str(path)!r}: the home folder of this user is unknown; write the path without ~"
        ) from error
