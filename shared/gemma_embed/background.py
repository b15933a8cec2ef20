"""Running blocking work for an event loop, in one place."""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache, partial
from typing import Any, ParamSpec, TypeVar

from gemma_embed.cancellation import under
from gemma_embed.errors import EmbeddingError

P = ParamSpec("P")
T = TypeVar("T")

# More would only queue at the model's lock or the server, and hold memory meanwhile.
_WORKERS = 4
# Seconds; a batch takes one or two, and a call to a server breaks off at once.
_LAST_BATCH = 10.0


async def in_background(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking function in a worker thread and await it.

    The loop is never blocked, any number of loops may come and go, and at most four calls run at
    once in a process. Cancelling gives control back at once: a call that waits for a worker is
    dropped, one that has begun sends nothing more and ends after the batch that it computes.
    """
    # Imported here: it takes 5 MB, which programs that never await do not need.
    import asyncio

    job = _Job(Future(), threading.Event(), partial(function, *args, **kwargs))
    _workers(os.getpid()).take(job)
    try:
        result: T = await asyncio.wrap_future(job.outcome)
    except BaseException:
        job.cancelled.set()
        raise
    return result


class _Job:
    """A call, its outcome, and the signal that cancels it."""

    def __init__(
        self, outcome: Future[Any], cancelled: threading.Event, call: Callable[[], Any]
    ) -> None:
        self.outcome = outcome
        self.cancelled = cancelled
        self.call = under(cancelled, call)

    def do(self) -> None:
        if not self.outcome.set_running_or_notify_cancel():
            return
        try:
            result = self.call()
        except StopIteration as error:
            # No future takes one, so the call would never end.
            failure = RuntimeError("the call raised StopIteration")
            failure.__cause__ = error
            self.outcome.set_exception(failure)
            del self
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            self.outcome.set_exception(error)
            # The error's traceback holds this frame, and the outcome holds the error: a cycle.
            del self
        else:
            self.outcome.set_result(result)


class _Workers:
    """Threads of our own: calls that wait for a model would fill the loop's default pool.

    Daemons, not a ThreadPoolExecutor: its threads keep an interrupted program from ending until
    the last server has answered.
    """

    def __init__(self, process: int) -> None:
        self._process = process
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._running: set[_Job] = set()
        self._threads = 0
        atexit.register(self._finish)

    def take(self, job: _Job) -> None:
        """Have a call made as soon as a worker is free.

        Raises:
            EmbeddingError: If there is none, and none can be started.
        """
        with self._changed:
            if self._threads < _WORKERS:
                worker = threading.Thread(target=self._work, name="gemma-embed-async", daemon=True)
                try:
                    # It waits for this lock.
                    worker.start()
                    self._threads += 1
                except (RuntimeError, MemoryError) as error:
                    # A worker that runs takes all that wait.
                    if not self._threads:
                        raise EmbeddingError(
                            f"this process cannot start a thread for the call ({error}); end some "
                            "of its threads, or raise the system's limit"
                        ) from error
            self._waiting.append(job)

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._threads -= 1
                    self._changed.notify_all()
                    return
                job = self._waiting.popleft()
                self._running.add(job)
            job.do()
            with self._changed:
                self._running.remove(job)
            # Otherwise the last result would stay in memory while the next is computed.
            del job

    def _finish(self) -> None:
        """Cancel what is left, and wait for a batch that a model in this process computes.

        Its library aborts the process if a thread still runs in it when the interpreter ends.
        """
        if os.getpid() != self._process:
            # A forked child has no thread of its parent.
            return
        with self._changed:
            self._waiting.clear()
            for job in self._running:
                job.cancelled.set()
            self._changed.wait_for(lambda: not self._threads, timeout=_LAST_BATCH)


@cache
def _workers(process: int) -> _Workers:
    # By process, as threads do not survive a fork.
    return _Workers(process)
