"""Requests run on one event loop in a background thread; callers wait for them here.

On a loop a deadline holds for a complete exchange, whatever it waits for, and a request that is
cancelled closes its connection at once. A loop of our own, since callers may have none, or one
that runs already. Its thread is a daemon: it never keeps a program from ending.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice
from typing import Any, TypeVar

from gemma_embed.cancellation import GLANCE, check_not_cancelled
from gemma_embed.runtimes.per_process import PerProcess

Job = TypeVar("Job")
Item = TypeVar("Item")
T = TypeVar("T")


def _started() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    try:
        threading.Thread(target=loop.run_forever, name="gemma-embed-http", daemon=True).start()
    except BaseException:
        loop.close()
        raise
    return loop


LOOP = PerProcess(_started)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop, and wait for its result.

    Raises:
        Cancelled: If this context is cancelled; then the coroutine is, too.
    """
    try:
        loop = LOOP.get()
    except BaseException:
        work.close()
        raise
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        _first_done({future})
        return future.result()
    finally:
        future.cancel()


def in_parallel(
    work: Callable[[Job], Coroutine[Any, Any, tuple[Sequence[Item], Exception | None]]],
    jobs: Iterable[Job],
    most: int,
) -> Iterator[Item]:
    """Do jobs on the loop, a few at once, and yield their items, job by job as each ends.

    Args:
        work: Does a job. Returns what was finished, and the error that ended it early.
        jobs: Taken as others end, so no faster than their items are consumed.
        most: How many at once.

    Yields:
        The items of all jobs begun. After an error no job is begun, and those under way are
        awaited. When the consumer goes away, or this context is cancelled, they are cancelled.

    Raises:
        Exception: The first error, after all items.
    """
    loop = LOOP.get()
    waiting = iter(jobs)
    running: set[Future[tuple[Sequence[Item], Exception | None]]] = set()
    first: Exception | None = None
    try:
        while True:
            for job in islice(waiting, most - len(running) if first is None else 0):
                running.add(asyncio.run_coroutine_threadsafe(work(job), loop))
            if not running:
                break
            for future in _first_done(running):
                running.discard(future)
                items, error = future.result()
                first = first or error
                yield from items
    finally:
        for future in running:
            future.cancel()
    if first is not None:
        raise first


def _first_done(futures: set[Future[T]]) -> set[Future[T]]:
    """Wait until one is done."""
    while True:
        done = wait(futures, timeout=GLANCE, return_when=FIRST_COMPLETED).done
        check_not_cancelled()
        if done:
            return done
