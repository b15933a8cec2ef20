"""One writer to a folder: two corrupt a Chroma folder without a word.

A writer leaves a mark while it is at work. One that is still there once the lock is free is a
killed writer's: Chroma may have been writing its vector files, and half of them can take down
whoever opens them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from gemma_embed.errors import CollectionDamaged, CollectionLocked


def mark_of(folder: Path, *place: str) -> Path:
    """The file that stands for unfinished writing to a collection.

    Args:
        folder: A Chroma folder.
        place: What names the collection in it; hashed, since such names may be longer than files'.
    """
    return folder / f"gemma_embed.{sha256(repr(place).encode()).hexdigest()[:16]}.unfinished"


@contextmanager
def only_writer(mark: Path | None) -> Iterator[bool]:
    """Hold a folder's lock; the system lets go of it even if the process is killed.

    Args:
        mark: Where to leave word of unfinished writing, in the folder; None where a server is the
            only writer.

    Yields:
        Whether the last writer was killed. The mark of one stays until a writer comes through.

    Raises:
        CollectionLocked: If another process, or another thread, holds it.
    """
    if mark is None:
        yield False
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
        killed = mark.exists()
        mark.touch()
        keep = True
        try:
            yield killed
            keep = False
        except CollectionDamaged:
            raise
        except BaseException:
            keep = killed
            raise
        finally:
            if not keep:
                mark.unlink(missing_ok=True)
    finally:
        lock.release()
