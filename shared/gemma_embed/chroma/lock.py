"""One writer to a folder: two corrupt a Chroma folder without a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemma_embed.errors import CollectionLocked


@contextmanager
def only_writer(folder: Path | None) -> Iterator[None]:
    """Hold a folder's lock; the system lets go of it even if the process is killed.

    Args:
        folder: A Chroma folder, or None where a server is the only writer.

    Raises:
        CollectionLocked: If another process, or another thread, holds it.
    """
    if folder is None:
        yield
        return
    from filelock import FileLock, Timeout

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
        yield
    finally:
        lock.release()
