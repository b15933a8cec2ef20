"""Keeps a library up to date while it is searched: updates run in a thread of their own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures

from gemma_embed.errors import CollectionLocked
from private_search.library import Library, Progress

Job = Callable[[Library], None]


class Indexer:
    """One update at a time, in the order in which they were asked for.

    Attributes:
        progress: Of the update that runs, or None.
        error: Why the last one failed, or empty.
    """

    def __init__(self, library: Library) -> None:
        """Begin to wait for requests.

        Args:
            library: For this thread alone.
        """
        self.progress: Progress | None = None
        self.error = ""
        self._library = library
        self._worker = futures.ThreadPoolExecutor(1, "indexer")
        self._last: futures.Future[None] | None = None
        self._stopping = False

    @property
    def busy(self) -> bool:
        """Whether an update runs or waits."""
        return self._last is not None and not self._last.done()

    def request(self, *jobs: Job, wait: float = 0) -> bool:
        """Ask for an update.

        Args:
            jobs: What to do with the library before it.
            wait: Seconds to wait for it.

        Returns:
            Whether it is done.
        """
        self._last = mine = self._worker.submit(self._update, jobs)
        return mine in futures.wait([mine], wait).done

    def close(self) -> None:
        """End the update that runs, at its next step; the next one goes on from there."""
        self._stopping = True
        self._worker.shutdown(cancel_futures=True)
        self._library.close()

    def _update(self, jobs: tuple[Job, ...]) -> None:
        try:
            for job in jobs:
                job(self._library)
            self._library.update(self._advance)
            self.error = ""
        except CollectionLocked:
            self.error = "Another process is indexing: what it has done so far is searched."
        except Exception as error:  # noqa: BLE001 - the page shows it, and the thread goes on
            self.error = " ".join(f"{type(error).__name__}: {error}".split())
        finally:
            self.progress = None

    def _advance(self, progress: Progress) -> None:
        self.progress = progress
        if self._stopping:
            raise futures.CancelledError
