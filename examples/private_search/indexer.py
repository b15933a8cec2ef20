"""Keeps a library up to date while it is searched: updates run in a thread of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from gemma_embed.errors import CollectionLocked

if TYPE_CHECKING:
    from private_search.library import Library, Progress

Job = Callable[["Library"], None]


class _Stopped(Exception):
    """The program ends."""


class Indexer:
    """One update at a time; whatever is asked for during one is done by one more.

    Attributes:
        progress: Of the update that runs, or None.
        error: Why the last one failed, or empty.
    """

    def __init__(self, library: Library, updated: Callable[[], None]) -> None:
        """Begin to wait for requests.

        Args:
            library: For this thread alone.
            updated: Called after each update that changed something.
        """
        self.progress: Progress | None = None
        self.error = ""
        self._library = library
        self._updated = updated
        self._changed = threading.Condition()
        self._jobs: list[Job] = []
        self._wanted = self._done = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="indexer", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether an update runs or waits."""
        return self._wanted > self._done

    def request(self, *jobs: Job, wait: float = 0) -> bool:
        """Ask for an update.

        Args:
            jobs: What to do with the library before it.
            wait: Seconds to wait for it.

        Returns:
            Whether it is done.
        """
        with self._changed:
            self._jobs += jobs
            self._wanted += 1
            mine = self._wanted
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._done >= mine, wait)

    def close(self) -> None:
        """End the update that runs, at its next step; the next one goes on from there."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()
        self._library.close()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.busy or self._stopping)
                wanted, jobs, self._jobs = self._wanted, self._jobs, []
            if self._stopping:
                return
            try:
                for job in jobs:
                    job(self._library)
                changes = self._library.update(self._advance)
                if jobs or changes.changed or changes.removed or changes.embedded:
                    self._updated()
                self.error = ""
            except _Stopped:
                return
            except CollectionLocked:
                self.error = "Another process is indexing: what it has done so far is searched."
            except Exception as error:  # noqa: BLE001 - the page shows it, and the thread goes on
                self.error = " ".join(f"{type(error).__name__}: {error}".split())
            finally:
                with self._changed:
                    self.progress = None
                    self._done = wanted
                    self._changed.notify_all()

    def _advance(self, progress: Progress) -> None:
        self.progress = progress
        if self._stopping:
            raise _Stopped
