"""Async calls when threads cannot be started: an error, and the next call works."""

from __future__ import annotations

import asyncio
import threading

import pytest
from fakes import FakeRuntime

from gemma_embed import Embedder
from gemma_embed.errors import EmbeddingError


@pytest.mark.parametrize("refusal", [RuntimeError("can't start new thread"), MemoryError()])
async def test_a_thread_that_cannot_start_fails_only_its_call(
    monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    fake = FakeRuntime()
    embedder = Embedder(fake)
    # A worker that has just done its last job would take one of these.
    for worker in threading.enumerate():
        if worker.name == "gemma-embed-async":
            await asyncio.to_thread(worker.join, 5)

    def start(thread: threading.Thread) -> None:
        raise refusal

    with monkeypatch.context() as refusing:
        refusing.setattr(threading.Thread, "start", start)
        # More than there are workers: each failure must release its worker.
        for number in range(6):
            with pytest.raises(EmbeddingError, match="cannot start a thread"):
                await asyncio.wait_for(embedder.aembed([f"lost {number}"]), 5)
    vectors = await asyncio.wait_for(embedder.aembed(["found"]), 5)
    assert vectors.shape == (1, 768)
    assert [text for text in fake.texts if "lost" in text] == []


async def test_a_running_worker_takes_the_job_of_a_worker_that_cannot_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = threading.Event()
    go_on = threading.Event()

    class Waiting(FakeRuntime):
        def embed(self, texts, *, truncate=False):  # type: ignore[no-untyped-def]
            started.set()
            go_on.wait(5)
            return super().embed(texts, truncate=truncate)

    embedder = Embedder(Waiting())
    first = asyncio.create_task(embedder.aembed(["first"]))
    await asyncio.to_thread(started.wait, 5)

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as refusing:
        refusing.setattr(threading.Thread, "start", start)
        second = asyncio.create_task(embedder.aembed(["second"]))
        await asyncio.sleep(0.05)
    go_on.set()
    vectors = await asyncio.wait_for(asyncio.gather(first, second), 5)
    assert [each.shape for each in vectors] == [(1, 768)] * 2


async def test_a_call_that_raises_stop_iteration_ends() -> None:
    def progress(done: int, total: int) -> None:
        raise StopIteration

    embedder = Embedder(FakeRuntime(), progress=progress)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(embedder.aembed(["a"]), 5)
