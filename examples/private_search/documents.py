"""What every source gives: units to look at cheaply, and the documents read from them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

Kind = Literal["file", "mail", "page"]
Entry = Path | os.DirEntry[str]
_NEVER = {"node_modules", "__pycache__", "lost+found"}


class Unreadable(Exception):
    """A unit, or one document of it, gives no text; the message says why.

    Attributes:
        skipped: Whether that is as it should be: an empty file, a picture. Otherwise it is damage.
    """

    def __init__(self, reason: str, *, skipped: bool = False) -> None:
        super().__init__(reason)
        self.skipped = skipped


@contextmanager
def guarded() -> Iterator[None]:
    """Make any failure of a parser `Unreadable`: one hostile file must not stop all others."""
    try:
        yield
    except (Unreadable, ImportError):
        raise
    except Exception as error:
        # The system's errors have a number; a parser's, such as BadGzipFile, have none.
        if isinstance(error, OSError) and error.errno:
            raise
        raise Unreadable(f"damaged: {type(error).__name__}") from error


@dataclass(frozen=True)
class Unit:
    """What is read at once: a file, a mailbox, a history database.

    Attributes:
        key: Its name within its source, the same at every scan.
        path: Where it is.
        stamp: Differs once it has changed. Made without reading it.
    """

    key: str
    path: Path
    stamp: str

    @classmethod
    def of(cls, path: Path, *others: Path) -> Self:
        """Look at a file, and at others that it changes with."""
        return cls(shown_path(path), path, stamp_of(path, *others))


@dataclass(frozen=True)
class Skipped:
    """What a scan or a reader left out.

    Attributes:
        key: The unit, or a part of it.
        reason: Why, in words for the coverage report.
        failed: Whether it should have been read.
    """

    key: str
    reason: str
    failed: bool = False


@dataclass(frozen=True)
class Document:
    """A text with a title and a way back to where it came from.

    Attributes:
        id: The same at every scan, and no other document's.
        kind: What it is.
        title: Never empty.
        text: Clean; never empty.
        address: What opens it: a path, or a page's address.
        date: Seconds since 1970, or None; also for one that no calendar has.
        place: Where in the address, for a mail: its message id.
        sender: Name and address.
        recipients: Names and addresses.
        labels: A mail's labels or a note's tags.
        folder: Folders from the source's root, with ``/`` between them.
        site: A page's host.
        line: The line of the file that the text begins with; None where lines mean nothing.
        pages: Positions in the text where the pages of a PDF begin.
        note: What the coverage report should say of it.
    """

    id: str
    kind: Kind
    title: str
    text: str
    address: str
    date: float | None = None
    place: str = ""
    sender: str = ""
    recipients: str = ""
    labels: str = ""
    folder: str = ""
    site: str = ""
    line: int | None = None
    pages: tuple[int, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        """Drop a date before 1900 or after 9000: programs write such ones for "unknown"."""
        if self.date is not None and not -2.2e9 < self.date < 2.2e11:
            object.__setattr__(self, "date", None)


@dataclass(frozen=True)
class Source(ABC):
    """Where documents come from: a folder, a mailbox, a history database."""

    root: Path

    @property
    def name(self) -> str:
        """What the coverage report calls it."""
        return shown_path(self.root)

    @abstractmethod
    def units(self) -> Iterator[Unit | Skipped]:
        """Look at what is there, without reading it."""

    @abstractmethod
    def read(self, unit: Unit) -> Iterator[Document | Skipped]:
        """Read a unit.

        Raises:
            Unreadable: If it gives nothing.
        """


def read_part(key: str, read: Callable[[], Document]) -> Document | Skipped:
    """Read one of a unit's documents; what fails is said, and leaves the others alone."""
    try:
        with guarded():
            return read()
    except Unreadable as error:
        return Skipped(key, str(error), failed=not error.skipped)
    except OSError as error:
        return Skipped(key, str(error.strerror), failed=True)


def walked(root: Path, refused: Callable[[Path], str]) -> Iterator[Unit | Skipped]:
    """List the files below a folder, in a fixed order, and say what is left out.

    Args:
        root: Or one file.
        refused: Says why a file is not read; nothing if it is.
    """
    waiting: list[Entry] = [root]
    while waiting:
        entry = waiting.pop()
        path = Path(entry)
        try:
            if entry is not root and (reason := _left_out(entry, path, root, refused)):
                yield Skipped(shown_path(path), reason)
            elif entry.is_dir():
                with os.scandir(entry) as listed:
                    waiting += sorted(listed, key=lambda each: each.name, reverse=True)
            else:
                yield Unit.of(path)
        except OSError as error:
            yield Skipped(shown_path(path), str(error.strerror), failed=True)


def _left_out(entry: Entry, path: Path, root: Path, refused: Callable[[Path], str]) -> str:
    linked = entry.is_symlink()
    if entry.name.startswith(".") or entry.name in _NEVER:
        return "hidden, or not a person's own"
    if entry.is_dir():
        return "a link to a folder" if linked else ""
    if not entry.is_file():
        return "a broken link" if linked else "not a file"
    # Somebody's archive may point at a person's keys.
    if linked and not path.resolve().is_relative_to(root.resolve()):
        return "a link out of the folder"
    return refused(path)


def stamp_of(*paths: Path) -> str:
    """Return what changes with files: the newest times, and the size of all that are there.

    The time of change among them is the system's, which no copy sets back.
    """
    modified = changed = size = 0
    for path in paths:
        with suppress(OSError):
            stat = path.stat()
            modified, changed = max(modified, stat.st_mtime_ns), max(changed, stat.st_ctime_ns)
            size += stat.st_size
    return f"{modified:x}-{changed:x}-{size:x}"


def shown_path(path: Path) -> str:
    """Write a path, also one that is not UTF-8, so that no two are alike."""
    return os.fsencode(path).decode(errors="backslashreplace")
