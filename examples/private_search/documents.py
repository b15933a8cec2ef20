"""What every source gives: units to look at cheaply, and the documents read from them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Kind = Literal["file", "mail", "page"]


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
    except (Unreadable, OSError, ImportError):
        raise
    except Exception as error:
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


class Source(Protocol):
    """Where documents come from."""

    @property
    def name(self) -> str:
        """What the coverage report calls it."""

    def units(self) -> Iterator[Unit | Skipped]:
        """Look at what is there, without reading it."""

    def read(self, unit: Unit) -> Iterator[Document | Skipped]:
        """Read a unit.

        Raises:
            Unreadable: If it gives nothing.
        """


def stamp_of(*paths: Path) -> str:
    """Return what changes with files: their times and sizes. A missing one counts as such."""
    parts = []
    for path in paths:
        try:
            parts.append(stamp(path.stat()))
        except OSError:
            parts.append("-")
    return " ".join(parts)


def stamp(stat: os.stat_result) -> str:
    """Return times and size; the time of change is the system's, which no copy sets back."""
    return f"{stat.st_mtime_ns:x}-{stat.st_ctime_ns:x}-{stat.st_size:x}"
