"""One writer to a folder: two corrupt a Chroma folder without a word.

A writer leaves a mark while it is at work, and in it how the vector files were when they were last
whole: Chroma writes them before a call returns. Where a mark is still there once the lock is free,
and the files are others, a killed writer may have left them half written. Chroma cannot tell: such
files may be searched, and take the process down at the next write.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from gemma_embed.errors import CollectionLocked


@dataclass
class Writing:
    """What the only writer knows of the one before, and leaves for the next.

    Attributes:
        mark: Its mark; None where there is none.
        suspect: Whether the one before may have left the vector files half written. Whoever makes
            them anew sets it to False; until then the next writer is told the same.
    """

    mark: Path | None
    suspect: bool

    def whole(self) -> None:
        """Note that the vector files are whole as they are, between two calls of Chroma's."""
        if self.mark is not None and not self.suspect:
            self.mark.write_text(_vector_files(self.mark.parent))


def mark_of(folder: Path, *place: str) -> Path:
    """The file that stands for unfinished writing to a collection.

    Args:
        folder: A Chroma folder.
        place: What names the collection in it; hashed, since such names may be longer than files'.
    """
    return folder / f"gemma_embed.{sha256(repr(place).encode()).hexdigest()[:16]}.unfinished"


@contextmanager
def only_writer(mark: Path | None) -> Iterator[Writing]:
    """Hold a folder's lock; the system lets go of it even if the process is killed.

    Args:
        mark: Where to leave word of unfinished writing, in the folder; None where a server is the
            only writer.

    Yields:
        What is known of the last writer.

    Raises:
        CollectionLocked: If another process, or another thread, holds it.
    """
    if mark is None:
        yield Writing(None, suspect=False)
        return
    from filelock import FileLock, Timeout

    folder = mark.parent
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "gemma_embed.lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise CollectionLocked(
            f"another process is writing to {folder}, and two at once would corrupt it; wait for "
            "it, or let several processes share a Chroma server (chroma run)"
        ) from error
    try:
        left = mark.read_text() if mark.exists() else None
        writing = Writing(mark, suspect=left is not None and left != _vector_files(folder))
        writing.whole()
        finished = False
        try:
            yield writing
            finished = True
        finally:
            # An error of Chroma's may come in the midst of its writing.
            if not writing.suspect and (finished or mark.read_text() == _vector_files(folder)):
                mark.unlink()
    finally:
        lock.release()


def _vector_files(folder: Path) -> str:
    """The state of all, as far as a later look can tell it from another."""
    files = {path: path.stat() for path in sorted(folder.glob("*/*.bin"))}
    return "".join(
        f"{path.relative_to(folder)} {held.st_size} {held.st_mtime_ns}\n"
        for path, held in files.items()
    )
