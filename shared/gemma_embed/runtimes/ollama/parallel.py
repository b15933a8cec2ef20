"""A few requests under way at once, without losing what is finished when one fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import TypeVar

from gemma_embed.cancellation import GLANCE, check_not_cancelled, under

Job = TypeVar("Job")
Item = TypeVar("Item")


def in_parallel(
    work: Callable[[Job], Iterable[Item]], jobs: Iterable[Job], most: int, stop: threading.Event
) -> Iterator[Item]:
    """Do jobs on threads, and yield what they give, job by job as each ends.

    Threads of their own, not a ThreadPoolExecutor: its threads keep an interrupted program from
    ending until the last server has answered.

    Args:
        work: What to do with a job. May be called from several threads at once.
        jobs: What to do it with. Taken when a thread is free, so no faster than consumed.
        most: How many at once.
        stop: Set when a job failed or the consumer went away: for ``work`` to see. Jobs under way
            are let end after a failure, and cancelled when the consumer went away.

    Yields:
        The items of all jobs; also of a job that failed those before its failure, and of the
        jobs that were under way with it.

    Raises:
        BaseException: The first failure, after all that.
    """
    ended: SimpleQueue[tuple[list[Item], BaseException | None]] = SimpleQueue()

    def run(job: Job) -> None:
        items: list[Item] = []
        failure = None
        try:
            # One by one: of a failing job, what came before its failure is kept.
            for item in work(job):
                items.append(item)  # noqa: PERF402
        except BaseException as error:  # noqa: BLE001 - raised again on the consumer's thread
            failure = error
        ended.put((items, failure))

    gone = threading.Event()
    waiting = iter(jobs)
    running = 0
    first: BaseException | None = None
    try:
        while True:
            while running < most and not stop.is_set():
                try:
                    job = next(waiting)
                except StopIteration:
                    break
                target = under(gone, run, job)
                threading.Thread(target=target, name="gemma-embed", daemon=True).start()
                running += 1
            if not running:
                break
            try:
                items, failure = ended.get(timeout=GLANCE)
            except Empty:
                check_not_cancelled()
                continue
            running -= 1
            if failure is not None:
                first = first or failure
                stop.set()
            yield from items
    finally:
        gone.set()
        stop.set()
    if first is not None:
        raise first
