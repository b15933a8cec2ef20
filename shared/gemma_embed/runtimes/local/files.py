"""The files of a checkpoint: read as JSON, and watched for changes while a model is in use.

The weights stay on the disk and are read as they are needed (mapped), so a process does not hold
those of tokens that it never sees. The price: a file overwritten in place changes the loaded model,
and one cut short ends the process. Replacing a file by another one harms neither.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gemma_embed.errors import ModelChanged, ModelCorrupt


class File(NamedTuple):
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
        now = path.stat()
        identity, content = (now.st_dev, now.st_ino), (now.st_size, now.st_mtime_ns)
        return cls(path, identity, content, now.st_ctime_ns)


def check_unchanged(files: Iterable[File], *, or_replaced: bool = False) -> None:
    """Make sure that what is read from these files is what was read before. A microsecond a file.

    Args:
        files: As they were.
        or_replaced: Whether they are mapped or open already: then it does not matter that a path
            leads to another file by now, or to none, or that a file got another name.

    Raises:
        ModelChanged: If it may be something else.
    """
    for file in files:
        try:
            now = File.at(file.path)
        except OSError:
            now = None
        if or_replaced and (
            now is None or now.identity != file.identity or now.content == file.content
        ):
            continue
        if now != file:
            raise ModelChanged(
                f"{file.path} changed after the model had been read from it; make a new runtime, "
                "and save models to a folder that no process has loaded"
            )


def exists(path: Path) -> bool:
    """Tell whether a name is taken, also by a broken link, as a cleaned cache leaves it."""
    return os.path.lexists(path)


def read_json(path: Path, kind: type = dict) -> Any:
    """Read a JSON file: an object, or a value of another ``kind``.

    Raises:
        ModelCorrupt: If the file is missing, unreadable, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelCorrupt(f"{path} is missing; download the complete model again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelCorrupt(f"{path} is not readable JSON; download the model again") from error
    if not isinstance(value, kind):
        what = "object" if kind is dict else kind.__name__
        raise ModelCorrupt(f"{path} is not a JSON {what}; download the model again")
    return value
