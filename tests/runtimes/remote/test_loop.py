"""Jobs on the background loop: concurrency, failures, cancellation."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from gemma_embed.cancellation import Cancelled, under
from gemma_embed.runtimes.per_process import PerProcess
from gemma_embed.runtimes.remote import loop
from gemma_embed.runtimes.remote.loop import LOOP, in_parallel, run

Result = tuple[list[int], Exception | None]


def ended() -> bool:
    """Return whether all tasks on the loop end within a second."""
    deadline = time.monotonic() + 1.0
    while asyncio.all_tasks(LOOP.get()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return not asyncio.all_tasks(LOOP.get())


def test_concurrency_reaches_exactly_the_limit() -> None:
    now = most = 0

    async def work(job: int) -> Result:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return [job], None

    assert sorted(in_parallel(work, range(12), 3)) == list(range(12))
    assert most == 3


def test_jobs_are_started_no_faster_than_results_are_taken() -> None:
    begun: list[int] = []

    async def work(job: int) -> Result:
        begun.append(job)
        return [job], None

    items = in_parallel(work, range(100), 2)
    next(items)
    time.sleep(0.05)
    assert len(begun) <= 2
    items.close()


def test_results_of_a_failing_job_are_returned_and_no_job_starts_after_it() -> None:
    begun: list[int] = []

    async def work(job: int) -> Result:
        begun.append(job)
        await asyncio.sleep(0.05 * job)
        return [job], ValueError(f"job {job}") if job == 0 else None

    seen: list[int] = []
    with pytest.raises(ValueError, match="job 0"):
        seen.extend(in_parallel(work, range(9), 2))
    assert begun == [0, 1]
    assert seen == [0, 1]


async def forever(job: int = 0) -> Result:
    await asyncio.sleep(60)
    return [job], None


def test_closing_the_generator_cancels_running_jobs() -> None:
    async def work(job: int) -> Result:
        return await forever() if job else ([job], None)

    items = in_parallel(work, range(3), 2)
    assert next(items) == 0
    items.close()
    assert ended()


@pytest.mark.parametrize("way", ["run", "in_parallel"])
def test_a_cancelled_context_stops_waiting(way: str) -> None:
    signal = threading.Event()
    threading.Timer(0.05, signal.set).start()

    def call() -> object:
        return run(forever()) if way == "run" else list(in_parallel(forever, range(3), 2))

    started = time.monotonic()
    with pytest.raises(Cancelled):
        under(signal, call)()
    assert time.monotonic() - started < 2.0
    assert ended()


def test_without_a_thread_for_the_loop_the_next_call_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "LOOP", PerProcess(loop._started))

    async def answer() -> int:
        return 5

    with monkeypatch.context() as patch:

        def start(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr(threading.Thread, "start", start)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="new thread"):
                run(answer())
    assert run(answer()) == 5
    mine = loop.LOOP.get()
    mine.call_soon_threadsafe(mine.stop)
    while mine.is_running():
        time.sleep(0.001)
    mine.close()


def test_callers_may_have_their_own_running_loop() -> None:
    async def caller() -> int:
        async def answer() -> int:
            return 5

        return run(answer())

    assert asyncio.run(caller()) == 5
