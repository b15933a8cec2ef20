"""All cores of one machine: threads of one batch, batches in flight, processes of one thread.

Run: python benchmarks/processes.py --model FOLDER --precision int8 --texts 64
     The texts are parts of this repository's documents, of some 150 words. All three take turns;
     medians are printed. In float32 no batches are in flight, so the first two are the same.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from gemma_embed import Embedder
from gemma_embed.runtimes import OnnxRuntime
from gemma_fast.quantization import Precision

_PART = 8
_embedder: Embedder


def texts(count: int, words: int) -> list[str]:
    """Return different parts of the documents."""
    found = " ".join(
        path.read_text() for path in sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
    ).split()
    step = max(1, (len(found) - words) // count)
    return [" ".join(found[n * step : n * step + words]) for n in range(count)]


def opened(model: str, precision: Precision, threads: int, *, in_flight: bool = True) -> Embedder:
    """Load the model."""
    runtime = OnnxRuntime(model, precision=precision, threads=threads)
    if not in_flight:
        object.__setattr__(runtime._load(), "in_flight", None)
    embedder = Embedder(runtime)
    embedder.embed(["warm"])
    return embedder


def load(model: str, precision: Precision) -> None:
    """Load the model in a process of the pool."""
    global _embedder
    _embedder = opened(model, precision, 1)


def embed(batch: list[str]) -> int:
    """Compute a batch there; its vectors travel back, as they would."""
    return len(_embedder.embed(batch))


def main() -> None:
    """Measure both, in turn, and print the better of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--words", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    given = texts(options.texts, options.words)
    # Small enough that both processes end at nearly the same time.
    parts = [given[n : n + _PART] for n in range(0, len(given), _PART)]
    spawn = multiprocessing.get_context("spawn")
    arguments = (options.model, options.precision)
    alone = opened(*arguments, cores, in_flight=False)
    several = opened(*arguments, cores)
    rates: dict[str, list[float]] = {}
    with spawn.Pool(cores, initializer=load, initargs=arguments) as pool:
        pool.map(embed, parts[:cores], chunksize=1)
        several.embed(given)
        ways: dict[str, Callable[[], object]] = {
            "one batch at a time": lambda: alone.embed(given),
            "batches in flight": lambda: several.embed(given),
            "processes of one thread": lambda: list(pool.imap_unordered(embed, parts)),
        }
        for _ in range(options.rounds):
            for name, work in ways.items():
                begin = time.monotonic()
                work()
                rates.setdefault(name, []).append(len(given) / (time.monotonic() - begin))
    print(f"{options.model} {options.precision}, {cores} cores, texts/s")
    for name, of_rounds in rates.items():
        times = [
            rate / first
            for rate, first in zip(of_rounds, rates["one batch at a time"], strict=True)
        ]
        print(f"{name:24} {median(of_rounds):8.2f} {median(times):6.2f} times")


if __name__ == "__main__":
    main()
