"""The files of a checkpoint: read as JSON, and watched for changes while a model is in use.

The weights stay on the disk and are read as they are needed (mapped), so a process does not hold
those of tokens that it never sees. The price: a file overwritten in place changes the loaded model,
and one cut short ends the process. Replacing a file by another one harms neither.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_embed.errors import ModelChanged, ModelCorrupt


@dataclass(frozen=True)
class File:
    """A file as it was at one moment.

    Attributes:
        path: Where it is.
        identity: Device and inode: which file the path led to.
        content: Size in bytes, and time of the last change in nanoseconds.
        touched: When content, name or permissions last changed. Unlike the time in ``content``, no
            program sets it back, as copying with the old time does.
    """

    path: Path
    identity: tuple[int, int]
    content: tuple[int, int]
    touched: int

    @classmethod
    def at(cls, path: Path) -> File:
        """Look at a file.

        Raises:
            OSError: If it does not exist.
        """
        status = path.stat()
        return cls(
            path,
            (status.st_dev, status.st_ino),
            (status.st_size, status.st_mtime_ns),
            status.st_ctime_ns,
        )


def check_unchanged(files: Iterable[File]) -> None:
    """Make sure that what is read from these paths now is what was read from them before.

    Raises:
        ModelChanged: If it may not be.
    """
    for file in files:
        if _now(file.path) != file:
            raise _changed(file.path)


def check_not_overwritten(files: Iterable[File]) -> None:
    """Make sure that files are as they were, or were replaced or removed. A microsecond a file.

    Raises:
        ModelChanged: If one was overwritten in place.
    """
    for file in files:
        now = _now(file.path)
        if now is not None and now.identity == file.identity and now.content != file.content:
            raise _changed(file.path)


def exists(path: Path) -> bool:
    """Tell whether a name is taken, also by a broken link, as a cleaned cache leaves it."""
    return os.path.lexists(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelCorrupt: If the file is missing, unreadable, or holds something else.
    """
    value = read_any_json(path)
    if not isinstance(value, dict):
        raise ModelCorrupt(f"{path} is not a JSON object; download the model again")
    return value


def read_any_json(path: Path) -> Any:
    """Read a JSON value.

    Raises:
        ModelCorrupt: If the file is missing or unreadable.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelCorrupt(f"{path} is missing; download the complete model again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelCorrupt(f"{path} is not readable JSON; download the model again") from error


def _now(path: Path) -> File | None:
    try:
        return File.at(path)
    except OSError:
        return None


def _changed(path: Path) -> ModelChanged:
    return ModelChanged(
        f"{path} changed after the model had been read from it; make a new runtime, and save "
        "models to a folder that no process has loaded"
    )
