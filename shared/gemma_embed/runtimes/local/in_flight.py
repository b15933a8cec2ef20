"""Several batches at once, each on a thread of its own, on one more copy of the weights.

The threads of one batch wait for each other at every matrix, and none computes while its vectors
are checked and stored. Independent batches do not wait: on two cores EmbeddingGemma in 8 bits does
a quarter more (``benchmarks/processes.py``). It takes a second copy, since ONNX Runtime binds a
model to its number of threads.
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
from gemma_embed.runtimes.local.memory import is_out_of_memory, within_memory

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
            lock: As there; taken for what does not fit beside others, which comes last, alone.
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
                    flying.append((rows, self.pool.submit(compute, rows)))
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

        Errors are those of loading, but for a lack of memory: batches go one by one then.
        """
        if batches < 2 * self._size or self._size < 2:
            return None
        with self._lock:
            self._seen += batches
            if self._crew is None and self._seen >= _PAYS:
                try:
                    forward = self._load()
                except Exception as error:  # ONNX Runtime's have no other base in common.
                    if not is_out_of_memory(error):
                        raise
                    logger.warning("memory does not suffice for batches in flight: one at a time")
                    self._size = 1
                else:
                    pool = ThreadPoolExecutor(self._size, "gemma-embed")
                    self._crew = Crew(forward, pool, self._size)
            return self._crew
