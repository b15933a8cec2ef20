"""A cancelled or interrupted call returns control, and nothing more is sent or computed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import ollama_faults as faults
import pytest
from fakes import FakeRuntime
from ollama_server import OllamaServer

from gemma_embed import Embedder
from gemma_embed.errors import EmbeddingError
from gemma_embed.runtimes import Batch, OllamaRuntime, TooLong
from gemma_embed.runtimes.remote.loop import LOOP

pytestmark = pytest.mark.timeout(30)
# Far longer than any test here: a test that waits for an answer fails.
STALL = 25.0
TEXTS = [f"text {number}" for number in range(200)]

signals = pytest.mark.skipif(sys.platform == "win32", reason="signals work differently there")


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer() as server:
        yield server


def warm(server: OllamaServer, **options: int) -> Embedder:
    embedder = Embedder(OllamaRuntime(host=server.url, **options))
    embedder.embed(["first"])
    server.requests.clear()
    return embedder


async def reached(count: int, server: OllamaServer) -> None:
    while len(server.requests) < count:  # noqa: ASYNC110 - the server sets no event
        await asyncio.sleep(0.005)


async def cancelled(task: asyncio.Task[object]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def ours() -> list[str]:
    """Active threads, except for the loop's, and tasks on the loop."""
    threads = [t.name for t in threading.enumerate() if t.name.startswith("gemma-embed")]
    tasks = asyncio.all_tasks(LOOP.get())
    return [*(name for name in threads if name != "gemma-embed-http"), *map(str, tasks)]


async def test_no_further_batch_is_sent(server: OllamaServer) -> None:
    embedder = warm(server, max_batch=1)
    server.embed_seconds = 0.02
    task = asyncio.create_task(embedder.aembed(TEXTS))
    await reached(5, server)
    await cancelled(task)
    sent = len(server.requests)
    await asyncio.sleep(0.5)
    # Two requests may have been about to be sent.
    assert len(server.requests) <= sent + 2
    assert ours() == []


async def test_a_stalled_request_is_cancelled_and_blocks_no_other_call(
    server: OllamaServer,
) -> None:
    embedder = warm(server, max_batch=1)
    server.answer(faults.stalled(STALL), times=2)
    tasks = [asyncio.create_task(embedder.aembed(TEXTS)) for _ in range(4)]
    await reached(2, server)
    for task in tasks:
        await cancelled(task)
    started = time.monotonic()
    # The workers and request slots are free again.
    assert (await embedder.aembed(["a"])).shape == (1, 768)
    assert time.monotonic() - started < 5.0
    assert len(server.requests) <= 4


async def test_a_load_is_cancelled_and_a_waiting_call_takes_over(server: OllamaServer) -> None:
    server.answer(faults.stalled(STALL), path="/api/tags", times=1)
    embedder = Embedder(OllamaRuntime(host=server.url))
    first = asyncio.create_task(embedder.aembed(["a"]))
    await reached(2, server)
    second = asyncio.create_task(embedder.aembed(["b"]))
    await asyncio.sleep(0.05)
    await cancelled(first)
    started = time.monotonic()
    assert (await second).shape == (1, 768)
    assert time.monotonic() - started < 5.0


async def test_a_pause_before_a_retry_is_cancelled(server: OllamaServer) -> None:
    embedder = warm(server)
    server.fail(503, headers={"Retry-After": "20"}, times=None)
    task = asyncio.create_task(embedder.aembed(["a"]))
    await reached(1, server)
    await asyncio.sleep(0.05)
    await cancelled(task)
    await asyncio.sleep(0.5)
    assert ours() == []
    assert len(server.requests) == 1


class Stepping(FakeRuntime):
    """Computes slowly, like a model in this process."""

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        for outcome in super().embed(texts, truncate=truncate):
            time.sleep(0.02)
            yield outcome


async def test_no_further_batch_is_computed_in_process() -> None:
    runtime = Stepping()
    task = asyncio.create_task(Embedder(runtime).aembed(TEXTS))
    while not runtime.texts:  # noqa: ASYNC110 - the runtime sets no event
        await asyncio.sleep(0.001)
    await cancelled(task)
    done = len(runtime.texts)
    await asyncio.sleep(0.2)
    assert len(runtime.texts) <= done + 3


@signals
@pytest.mark.parametrize("texts", [1, 3])
def test_ctrl_c_in_an_event_loop_ends_the_program(server: OllamaServer, texts: int) -> None:
    server.answer(faults.stalled(STALL), times=None)
    code = (
        "import asyncio, sys; from gemma_embed import Embedder\n"
        "from gemma_embed.runtimes import OllamaRuntime\n"
        "embedder = Embedder(OllamaRuntime(host=sys.argv[1], max_batch=1))\n"
        "asyncio.run(embedder.aembed(['a', 'b', 'c'][: int(sys.argv[2])]))"
    )
    arguments = [sys.executable, "-c", code, server.url, str(texts)]

    def embeds() -> int:
        return sum(bool(r.path == "/api/embed" and r.json["input"]) for r in server.requests)

    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as program:
        while embeds() < min(texts, 2) and program.poll() is None:
            time.sleep(0.01)
        started = time.monotonic()
        program.send_signal(signal.SIGINT)
        said = program.communicate(timeout=20.0)[1]
    assert time.monotonic() - started < 3.0
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert embeds() == min(texts, 2)


def test_a_program_ends_after_the_batch_that_its_model_computes() -> None:
    # ONNX Runtime aborts the process if it is unloaded while a thread computes.
    code = (
        "import asyncio; from gemma_embed import Embedder\n"
        "from gemma_embed.runtimes import OnnxRuntime\n"
        "embedder = Embedder(OnnxRuntime('bundled'))\n"
        "embedder.embed(['a'])\n"
        "async def main():\n"
        "    task = asyncio.create_task(embedder.aembed([f'{n} ' * 300 for n in range(400)]))\n"
        "    await asyncio.sleep(0.2)\n"
        "    assert not task.done()\n"
        "    task.cancel()\n"
        "asyncio.run(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@signals
@pytest.mark.parametrize("max_batch", [1, 64])
def test_after_ctrl_c_the_runtime_is_usable_at_once(server: OllamaServer, max_batch: int) -> None:
    embedder = warm(server, max_batch=max_batch)
    server.answer(faults.stalled(STALL), times=2)

    def interrupt() -> None:
        while not server.requests:
            time.sleep(0.01)
        time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        embedder.embed(["a", "b", "c"])
    server.clear_faults()
    started = time.monotonic()
    assert embedder.embed(["a"]).shape == (1, 768)
    assert time.monotonic() - started < 5.0


class TestThreadsOnAFailingServer:
    """They fail together: in the time of one call, and each with its own error."""

    def failures(self, embedder: Embedder, count: int) -> tuple[list[EmbeddingError], float]:
        start = threading.Barrier(count + 1)
        failed: list[EmbeddingError] = []

        def work() -> None:
            start.wait()
            try:
                embedder.embed(["a"])
            except EmbeddingError as error:
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        start.wait()
        started = time.monotonic()
        for thread in threads:
            thread.join()
        return failed, time.monotonic() - started

    def test_a_server_that_stalls(
        self, server: OllamaServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gemma_embed.runtimes.remote.service.QUESTION_TIMEOUT", 0.5)
        server.answer(faults.stalled(STALL), path="/api/tags", times=None)
        embedder = Embedder(OllamaRuntime(host=server.url, max_retries=0))
        failed, seconds = self.failures(embedder, 20)
        assert len({id(error) for error in failed}) == 20
        assert len({(type(error), str(error), error.attempts) for error in failed}) == 1
        assert seconds < 4.0
        # A later call tries again.
        server.clear_faults()
        assert embedder.embed(["a"]).shape == (1, 768)

    def test_a_server_that_is_gone(self, server: OllamaServer) -> None:
        server.stop()
        embedder = Embedder(OllamaRuntime(host=server.url, max_retries=2))
        failed, seconds = self.failures(embedder, 32)
        assert len(failed) == 32
        assert seconds < 2 * (0.5 + 1.0) + 1.5
        server.start()
        assert embedder.embed(["a"]).shape == (1, 768)
