"""All cores of one machine: several processes of one thread against one process of several threads.

Run: python benchmarks/processes.py --model FOLDER --precision int8 --texts 200
     The texts are paragraphs of this repository's documents, of some 150 words.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from pathlib import Path

from gemma_embed import Embedder
from gemma_embed.runtimes import OnnxRuntime

_embedder: Embedder


def texts(count: int, words: int) -> list[str]:
    """Return different parts of the documents."""
    found = " ".join(
        path.read_text() for path in sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
    ).split()
    step = max(1, (len(found) - words) // count)
    return [" ".join(found[n * step : n * step + words]) for n in range(count)]


def load(model: str, precision: str, threads: int) -> None:
    """Load the model in this process."""
    global _embedder
    _embedder = Embedder(OnnxRuntime(model, precision=precision, threads=threads))  # type: ignore[arg-type]
    _embedder.embed(["warm"])


def embed(batch: list[str]) -> int:
    """Compute a batch; its vectors travel back, as they would."""
    return len(_embedder.embed(batch))


def main() -> None:
    """Measure both, in turn, and print the better of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--words", type=int, default=150)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    given = texts(options.texts, options.words)
    batches = [given[n : n + options.batch] for n in range(0, len(given), options.batch)]
    best = {"threads": 0.0, "processes": 0.0}
    load(options.model, options.precision, cores)
    spawn = multiprocessing.get_context("spawn")
    arguments = (options.model, options.precision, 1)
    with spawn.Pool(cores, initializer=load, initargs=arguments) as pool:
        pool.map(embed, batches[:cores], chunksize=1)
        for _ in range(3):
            begin = time.monotonic()
            for batch in batches:
                embed(batch)
            best["threads"] = max(best["threads"], len(given) / (time.monotonic() - begin))
            begin = time.monotonic()
            for _ in pool.imap_unordered(embed, batches):
                pass
            best["processes"] = max(best["processes"], len(given) / (time.monotonic() - begin))
    print(
        f"{options.model} {options.precision}: one process of {cores} threads "
        f"{best['threads']:.2f} texts/s, {cores} processes of one thread "
        f"{best['processes']:.2f}: {best['processes'] / best['threads']:.2f} times"
    )


if __name__ == "__main__":
    main()
