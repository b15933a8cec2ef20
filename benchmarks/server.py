"""Over HTTP: GemmaEmbeddings against OllamaEmbeddings on the tests' server, in one run.

The server waits a fixed time for each text, one at a time, as Ollama does with embedding models,
and records how long it was busy: the rest of a call's time is the client's.

Run: PYTHONPATH=tests python benchmarks/server.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from langchain_ollama import OllamaEmbeddings
from ollama_server import OllamaServer
from pairs import disturbed, in_turn, machine, ratio, save, seconds, spread

from gemma_embed import EmbeddingStore
from gemma_embed.errors import EmbeddingError
from gemma_embed.runtimes import OllamaRuntime
from langchain_gemma_embed import GemmaEmbeddings

MODEL = "embeddinggemma:300m"

Ask = Callable[[str, Any], Any]


def main() -> None:
    """Print and save three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=320)
    parser.add_argument("--many", type=int, default=10_000, help="texts of the run with a fault")
    parser.add_argument("--milliseconds", type=float, default=20, help="server's time for a text")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    texts = [f"Note number {i}: " + "a few more words. " * (i % 12) for i in range(options.texts)]
    with server(options.milliseconds / 1000) as (url, ask):
        found = compare(url, ask, texts, options.rounds)
    with server(0) as (url, ask):
        found |= {"after_a_fault": fault(url, ask, options.many)}
    found |= {"milliseconds": options.milliseconds, "others": max(disturbed)}
    show(found)
    save("server", found)


def compare(url: str, ask: Ask, texts: list[str], rounds: int) -> dict[str, Any]:
    """Time both, and the share that ours adds to the server's own time."""
    beyond: list[float] = []

    def theirs() -> None:
        OllamaEmbeddings(model=MODEL, base_url=url).embed_documents(texts)

    def ours() -> None:
        ask("busy", None)
        embeddings = GemmaEmbeddings(OllamaRuntime(MODEL, host=url))
        taken = seconds(lambda: embeddings.embed_documents(texts))
        busy = ask("busy", None)
        beyond.append(taken / busy - 1)

    engines: dict[str, Callable[[], object]] = {"OllamaEmbeddings": theirs, "GemmaEmbeddings": ours}
    times = in_turn(engines, rounds)
    largest, peaks = {}, {}
    for name, work in engines.items():
        ask("largest", None)
        peaks[name] = peak_megabytes(work)
        largest[name] = ask("largest", None)
    return {
        "texts": len(texts),
        "seconds": times,
        "largest_request": largest,
        "python_megabytes": peaks,
        "beyond_the_server": statistics.median(beyond[1 : rounds + 1]),
    }


def fault(url: str, ask: Ask, count: int) -> dict[str, int]:
    """Break the server at nine tenths of the work, fix it, and continue with the store."""
    texts = [f"Note number {i}" for i in range(count)]
    done: list[int] = []
    with tempfile.TemporaryDirectory() as folder, EmbeddingStore(Path(folder) / "store") as store:
        embeddings = GemmaEmbeddings(
            OllamaRuntime(MODEL, host=url, max_retries=0),
            store=store,
            progress=lambda ready, _: done.append(ready),
        )
        good = count * 9 // 10
        ask("break", good)
        with suppress(EmbeddingError):
            embeddings.embed_documents(texts)
        reached = max(done)
        ask("fix", None)
        before = ask("served", None)
        embeddings.embed_documents(texts)
        again = ask("served", None) - before
    return {"texts": count, "stored": reached, "computed_twice": again - (count - good)}


def show(found: dict[str, Any]) -> None:
    """Print the tables."""
    texts, own = found["texts"], found["texts"] * found["milliseconds"] / 1000
    print(f"{machine()}\n{texts} texts, {found['milliseconds']} ms each on the server: {own:.2f} s")
    print(f"other processes took {found['others']:.0%} of the processors\n")
    print("| | seconds | largest request | Python memory, peak |\n| --- | --- | --- | --- |")
    for name, times in found["seconds"].items():
        print(
            f"| {name} | {spread(times, 's', 2)} | {found['largest_request'][name]} texts "
            f"| {found['python_megabytes'][name]:.0f} MB |"
        )
    print(f"| times faster | {ratio(*found['seconds'].values())} | | |")
    print(f"\nOurs beyond the server's own time: {found['beyond_the_server']:.2%}")
    after = found["after_a_fault"]
    print(
        f"The server broke at {after['stored']} of {after['texts']} texts; after it was fixed "
        f"{after['computed_twice']} were computed a second time"
    )


def peak_megabytes(work: Callable[[], object]) -> float:
    """Return the peak of Python's memory in megabytes."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return peak


class TimedServer(OllamaServer):
    """Records how long it had at least one request, and fails on demand.

    Attributes:
        busy: Seconds with at least one request.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.busy = 0.0
        self._clock = threading.Lock()
        self._working = 0
        self._began = 0.0

    def respond(self, request: Any) -> Any:
        """Reply, and record the time."""
        with self._clock:
            if not self._working:
                self._began = time.perf_counter()
            self._working += 1
        try:
            return super().respond(request)
        finally:
            with self._clock:
                self._working -= 1
                if not self._working:
                    self.busy += time.perf_counter() - self._began


@contextmanager
def server(embed_seconds: float) -> Iterator[tuple[str, Ask]]:
    """Run the server in its own process, like a real one.

    Yields:
        Its address, and a function that sends it a question; see ``serve``.
    """
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve, args=(theirs, embed_seconds), daemon=True)
    process.start()

    def ask(what: str, value: Any) -> Any:
        ours.send((what, value))
        return ours.recv()

    try:
        yield ours.recv(), ask
    finally:
        process.terminate()
        process.join()


def serve(pipe: Connection, embed_seconds: float) -> None:
    """Serve and answer questions until the process is terminated.

    ``largest`` returns the texts of the largest request since the last question, ``busy`` the busy
    seconds since then, ``served`` the number of texts so far. ``break`` fails every text from the
    given number on, and ``fix`` ends that.
    """
    with TimedServer(embed_seconds=embed_seconds) as running:
        pipe.send(running.url)
        while True:
            what, value = pipe.recv()
            answer: object = None
            if what == "largest":
                embeds = [r for r in running.requests if r.path == "/api/embed" and r.json]
                running.requests.clear()
                answer = max((len(request.json["input"]) for request in embeds), default=0)
            elif what == "busy":
                answer, running.busy = running.busy, 0.0
            elif what == "served":
                answer = len(running.texts)
            elif what == "break":
                running.fail_texts(partial(_beyond, running.texts, value), status=500)
            elif what == "fix":
                running.clear_faults()
            pipe.send(answer)


def _beyond(texts: list[str], most: int, _: str) -> bool:
    return len(texts) > most


if __name__ == "__main__":
    main()
