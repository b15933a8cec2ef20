"""Whether the files of a loaded model are still what they were.

The weights stay on the disk and are read as they are needed (mapped): a process does not hold those
of tokens that it never sees. The price is that a file written over in place changes the loaded
model, and one cut short ends the process. Replacing a file by another one harms neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gemma_embed.errors import ModelChanged


@dataclass(frozen=True)
class File:
    """A file as it was at one moment.

    Attributes:
        path: Where.
        identity: Device and inode: which file the path led to.
        content: Size in bytes, and time of the last change in nanoseconds.
        touched: When content, name or rights last changed. Unlike the time in ``content``, no
            program sets it back: copying with the old time, say.
    """

    path: Path
    identity: tuple[int, int]
    content: tuple[int, int]
    touched: int

    @classmethod
    def at(cls, path: Path) -> File:
        """Look at a file.

        Raises:
            OSError: If there is none.
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
    """Make sure that files are as they were, or were put aside whole. A microsecond a file.

    Raises:
        ModelChanged: If one was written over in place.
    """
    for file in files:
        now = _now(file.path)
        if now is not None and now.identity == file.identity and now.content != file.content:
            raise _changed(file.path)


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
