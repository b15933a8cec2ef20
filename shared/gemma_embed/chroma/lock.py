"""One writer to a folder: two corrupt a Chroma folder silently.

A writer leaves a mark while it is at work, with the state of the vector files when they were last
complete: Chroma writes them before a call returns. If the mark is still there once the lock is
free, and the files differ, a killed writer may have left them half written. Chroma cannot tell:
such files may be searched, and take the process down at the next write.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gemma_embed.errors import CollectionError, CollectionLocked

# Names of marks end so.
MARK = ".unfinished"
# No state of files is written so.
_SUSPECT = "suspect"
# Folders that this process writes to.
_WRITING: set[Path] = set()


@dataclass
class Writing:
    """What the only writer knows of the last one, and leaves for the next.

    Attributes:
        mark: Its mark; None for a server's collection.
        suspect: Whether the last one may have left the vector files half written. Who deletes the
            collection sets it to False; until then the next writer is told the same.
    """

    mark: Path | None
    suspect: bool

    def complete(self) -> None:
        """Note that the vector files are complete as they are, between two calls of Chroma's.

        Raises:
            CollectionError: If the folder cannot be written to; the mark is as it was.
        """
        if self.mark is not None and not self.suspect:
            _write(self.mark, _vector_files(self.mark.parent))


@contextmanager
def locked(folder: Path, wait: float) -> Iterator[None]:
    """Hold a folder's lock; the system releases it even if the process is killed.

    Args:
        folder: Created if it is missing.
        wait: Seconds to wait for another one.

    Raises:
        CollectionLocked: If another process, or another thread, holds it for longer.
        CollectionError: If the folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    # A relative path, or a link, names the same folder.
    real = folder.resolve()
    lock = FileLock(real / "gemma_embed.lock", timeout=wait, thread_local=False)
    try:
        real.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        who = "another thread of this process" if real in _WRITING else "another process"
        raise CollectionLocked(
            f"{who} is writing to {folder}, and two at once would corrupt it; wait for it, or let "
            "several processes share a Chroma server (chroma run)"
        ) from error
    except OSError as error:
        raise CollectionError(f"{folder} cannot be written to: {error}") from error
    _WRITING.add(real)
    try:
        yield
    finally:
        _WRITING.discard(real)
        lock.release()


@contextmanager
def only_writer(mark: Path | None, wait: float = 0) -> Iterator[Writing]:
    """Hold a folder's lock, and leave a mark meanwhile.

    Args:
        mark: The file for word of unfinished writing, in the folder; None where a server is the
            only writer.
        wait: Seconds to wait for another writer.

    Yields:
        What is known of the last writer.

    Raises:
        CollectionLocked: If another process, or another thread, holds it.
        CollectionError: If the folder cannot be written to.
    """
    if mark is None:
        yield Writing(None, suspect=False)
        return
    folder = mark.parent
    with locked(folder, wait):
        # Every mark that a killed writer left is judged before this one changes the files.
        for left in filter(Path.is_file, folder.glob(f"*{MARK}")):
            if _state(left) == _vector_files(folder):
                left.unlink()
            else:
                _write(left, _SUSPECT)
        writing = Writing(mark, suspect=mark.exists())
        writing.complete()
        finished = False
        try:
            yield writing
            finished = True
        finally:
            # An error of Chroma's may come in the middle of its writing.
            if not writing.suspect and (finished or _state(mark) == _vector_files(folder)):
                mark.unlink(missing_ok=True)


def _state(mark: Path) -> str:
    """What a mark says; one that cannot be read says nothing."""
    try:
        return mark.read_text(errors="replace")
    except OSError:
        return "unreadable"


def _write(mark: Path, state: str) -> None:
    # In one step: an empty mark, as a full disk or a kill would leave it, reads as half written.
    new = mark.with_suffix(".new")
    try:
        new.write_text(state)
        new.replace(mark)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise CollectionError(f"{mark.parent} cannot be written to: {error}") from error


def _vector_files(folder: Path) -> str:
    """The state of all, as far as a later look can tell it from another."""
    files = ((path, path.stat()) for path in sorted(folder.glob("*/*.bin")))
    return "".join(
        f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}\n" for path, stat in files
    )
