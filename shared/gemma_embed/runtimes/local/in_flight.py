"""Several batches at once, each on a thread of its own, on one more copy of the weights.

The threads of one batch wait for each other at every matrix, and none computes while its vectors
are checked and stored. Independent batches do not wait: on two cores EmbeddingGemma in 8 bits did
1.09 to 1.43 times as many texts (``benchmarks/processes.py``). It takes a second copy, since ONNX
Runtime binds a model to its number of threads.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from gemma_embed.errors import OutOfMemory
from gemma_embed.runtimes.base import Batch
from gemma_embed.runtimes.local.loaded import Forward
from gemma_embed.runtimes.local.memory import within_memory

logger = logging.getLogger("gemma_embed")

# Batches after which a process has enough work for loading the copy to pay: some 6,000 tokens.
_PAYS = 32


@dataclass(frozen=True)
class Crew:
    """A forward pass of one thread, and threads that call it."""

    forward: Forward
    pool: ThreadPoolExecutor
    size: int

    def computed(
        self,
        lock: AbstractContextManager[object],
        batches: Sequence[list[int]],
        ids: Mapping[int, Sequence[int]],
    ) -> Iterator[Batch]:
        """Compute batches; see ``within_memory``.

        Args:
            lock: As there; taken for what does not fit beside others or finds no thread, which
                comes last, alone.
            batches: Rows of each.
            ids: Tokens of each row.

        Yields:
            Rows and their vectors, otherwise in the order of ``batches``.
        """

        def compute(rows: list[int]) -> list[Batch]:
            return list(within_memory(self.forward, nullcontext(), rows, ids))

        coming = iter(batches)
        flying: deque[tuple[list[int], Future[list[Batch]]]] = deque()
        alone: list[list[int]] = []
        try:
            while True:
                # Some more than are computed, so that no thread waits for the caller.
                while len(flying) < 2 * self.size and (rows := next(coming, None)):
                    try:
                        flying.append((rows, self.pool.submit(compute, rows)))
                    except RuntimeError:
                        # No thread can be started, or the main one has ended while others go on.
                        alone.append(rows)
                if not flying:
                    break
                rows, future = flying.popleft()
                try:
                    yield from future.result()
                except OutOfMemory:
                    alone.append(rows)
        finally:
            for _, future in flying:
                future.cancel()
        for rows in alone:
            yield from within_memory(self.forward, lock, rows, ids)


class InFlight:
    """Loads a crew once a process has enough to do. Safe for several threads, which share it."""

    def __init__(self, load: Callable[[], Forward], size: int) -> None:
        """Load nothing yet.

        Args:
            load: Loads a forward pass of one thread.
            size: Batches that are computed at once.
        """
        self._load = load
        self._size = size
        self._seen = 0
        self._lock = threading.Lock()
        self._crew: Crew | None = None

    def crew_for(self, batches: int) -> Crew | None:
        """Return what computes a call of so many batches, or None if that is no faster.

        Where the copy cannot be loaded, batches go one by one, with a warning: memory may not
        suffice, or the cached graph is gone or damaged. The model that is loaded needs neither.
        """
        if batches < 2 * self._size or self._size < 2:
            return None
        with self._lock:
            self._seen += batches
            if self._crew is None and self._seen >= _PAYS:
                try:
                    forward = self._load()
                except Exception as error:  # noqa: BLE001 - ONNX Runtime's have no base in common
                    logger.warning(
                        "batches are computed one at a time, which is slower: the model could not "
                        "be loaded a second time (%s)",
                        str(error) or type(error).__name__,
                    )
                    self._size = 1
                else:
                    pool = ThreadPoolExecutor(self._size, "gemma-embed")
                    self._crew = Crew(forward, pool, self._size)
            return self._crew
