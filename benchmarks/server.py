"""Over HTTP: GemmaEmbeddings against OllamaEmbeddings on the tests' server, in one run.

The server computes nothing worth mentioning and waits a set time for each text, one at a time, as
Ollama does with embedding models: so the difference is what the clients do.

Run: PYTHONPATH=tests python benchmarks/server.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from langchain_ollama import OllamaEmbeddings
from ollama_server import OllamaServer
from pairs import in_turn, machine, ratio, spread

from gemma_embed.runtimes import OllamaRuntime
from langchain_gemma_embed import GemmaEmbeddings

MODEL = "embeddinggemma:300m"


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--milliseconds", type=float, default=2.0, help="server's time for a text")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    texts = [f"Note number {i}: " + "a few words more. " * (i % 12) for i in range(options.texts)]
    with server(options.milliseconds / 1000) as (url, largest_request):
        engines: dict[str, Callable[[], object]] = {
            "OllamaEmbeddings": lambda: OllamaEmbeddings(model=MODEL, base_url=url).embed_documents(
                texts
            ),
            "GemmaEmbeddings": lambda: GemmaEmbeddings(
                OllamaRuntime(MODEL, host=url)
            ).embed_documents(texts),
        }
        times = in_turn(engines, options.rounds)
        floor = options.texts * options.milliseconds / 1000
        print(f"{machine()}\n{len(texts)} texts, {options.milliseconds} ms each on the server\n")
        print("| | seconds | largest request | Python memory, peak |\n| --- | --- | --- | --- |")
        for name, work in engines.items():
            largest_request()
            peak = peak_megabytes(work)
            print(
                f"| {name} | {spread(times[name], 's', 2)} | {largest_request()} texts "
                f"| {peak:.0f} MB |"
            )
        print(f"| times faster | {ratio(*times.values())} | | |")
        print(f"\nThe server's own time: {floor:.2f} s")


def peak_megabytes(work: Callable[[], object]) -> float:
    """Return the peak of Python's memory in megabytes."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return peak


@contextmanager
def server(embed_seconds: float) -> Iterator[tuple[str, Callable[[], int]]]:
    """Run the server in a process of its own, as a real one is.

    Yields:
        Its address, and a function that returns the texts in the largest request since it was
        last called.
    """
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve, args=(theirs, embed_seconds), daemon=True)
    process.start()

    def largest_request() -> int:
        ours.send(None)
        return int(ours.recv())

    try:
        yield ours.recv(), largest_request
    finally:
        process.terminate()
        process.join()


def serve(pipe: Connection, embed_seconds: float) -> None:
    """Serve until the process is ended."""
    with OllamaServer(embed_seconds=embed_seconds) as running:
        pipe.send(running.url)
        while True:
            pipe.recv()
            embeds = [r for r in running.requests if r.path == "/api/embed" and r.json]
            running.requests.clear()
            pipe.send(max((len(request.json["input"]) for request in embeds), default=0))


if __name__ == "__main__":
    main()
