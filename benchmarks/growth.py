"""Cost of a text by number of texts, length, threads, repetition and store.

Numbers of texts up to 100,000 are measured on a small checkpoint of the same architecture; lengths
and threads on the full-size one. Each number and length runs in its own process.

Run: PYTHONPATH=tests python benchmarks/growth.py
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "true"

import checkpoints
import full_size
import numpy as np
from fakes import FakeRuntime
from pairs import Neighbours, in_own_process, machine, peak_memory, save, seconds

from gemma_embed import Embedder, EmbeddingStore
from gemma_embed.runtimes import TransformersRuntime, open_runtime

RUNTIMES = ("transformers", "onnx")
COUNTS = (100, 1_000, 10_000, 100_000)
LENGTHS = (16, 64, 256, 512, 1024, 2048)
TOKENS_A_LENGTH = 4096
CACHED = 50_000
SPACE = "s"


def numbers(folder: Path, name: str, count: int) -> dict[str, float]:
    """Embed so many texts as a stream: texts a second and peak memory."""
    embedder = Embedder(open_runtime(name, str(folder)))
    words = " ".join(path.read_text() for path in checkpoints.NOTES.glob("*.md")).split()
    random = np.random.default_rng(0)
    starts, lengths = random.integers(0, len(words) - 60, count), random.integers(4, 40, count)
    texts = (
        f"{i} " + " ".join(words[a : a + n])
        for i, (a, n) in enumerate(zip(starts, lengths, strict=True))
    )
    embedder.embed(["load"])
    before = peak_memory()
    neighbours = Neighbours()
    taken = seconds(lambda: [None for _ in embedder.stream(texts)])
    return {
        "texts_a_second": count / taken,
        "megabytes_beyond_loading": peak_memory() - before,
        "megabytes": peak_memory(),
        "others": neighbours.share(),
    }


def of_length(folder: Path, name: str, length: int) -> dict[str, float]:
    """Compute texts of so many tokens: tokens a second, best of three, and peak memory."""
    network = open_runtime(name, str(folder))._load()
    random = np.random.default_rng(0)
    count = max(2, TOKENS_A_LENGTH // length)
    texts = random.integers(300, 9000, (count, length)).tolist()
    before = peak_memory()

    def compute() -> None:
        for batch in network.batches(dict.fromkeys(range(count), length)):
            network.forward([texts[row] for row in batch])

    taken = min(seconds(compute) for _ in range(3))
    return {
        "tokens_a_second": count * length / taken,
        "megabytes_beyond_loading": peak_memory() - before,
    }


def with_threads(runtime: TransformersRuntime, count: int) -> float:
    """Tokens a second of texts of 128 tokens on so many threads, best of three."""
    import torch

    network = runtime._load()
    batch = np.random.default_rng(0).integers(300, 9000, (8, 128)).tolist()
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return 8 * 128 / min(seconds(lambda: network.forward(batch)) for _ in range(3))
    finally:
        torch.set_num_threads(before)


def repeated(runtime: TransformersRuntime) -> dict[str, float]:
    """Seconds for one text, and for the same text a thousand times."""
    embedder = Embedder(runtime)
    embedder.embed(["a text that is repeated many times"])
    return {
        str(count): min(
            seconds(lambda count=count: embedder.embed(["a repeated text"] * count))
            for _ in range(3)
        )
        for count in (1, 1000)
    }


def cached() -> dict[str, float]:
    """Texts a second from a store that contains all of them."""
    texts = [f"Note number {i}: a few more words about a thing." for i in range(CACHED)]
    vectors = np.random.default_rng(0).normal(size=(CACHED, 768)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as name, EmbeddingStore(Path(name) / "store") as store:
        store.put(SPACE, texts, vectors)
        runtime = FakeRuntime()
        embedder = Embedder(runtime, store=store)
        prompted = [runtime.prompts.prefix("document") + text for text in texts]
        store.put(embedder_space(embedder), prompted, vectors)
        embedder.embed(texts)
        through = min(seconds(lambda: embedder.embed(texts)) for _ in range(5))
        alone = min(seconds(lambda: store.get(SPACE, texts, 768)) for _ in range(5))
        if runtime.calls:
            raise AssertionError("the store did not contain all texts")
    return {"embedder": CACHED / through, "store": CACHED / alone}


def embedder_space(embedder: Embedder) -> str:
    """Name of the space in which an embedder stores its vectors."""
    from gemma_embed.identity import fingerprint

    return fingerprint(embedder.runtime.identity, {"overlong": embedder.overlong})


def show(found: dict[str, Any]) -> None:
    """Print the tables."""
    print(
        f"{machine()}\n\n| runtime, texts | texts/s | MB beyond loading | others |\n"
        + "| --- " * 4
        + "|"
    )
    for count, row in found["numbers"].items():
        print(
            f"| {count} | {row['texts_a_second']:.0f} | {row['megabytes_beyond_loading']:.0f} "
            f"| {row['others']:.0%} |"
        )
    print("\n| runtime, tokens a text | tokens/s | MB beyond loading |\n| --- | --- | --- |")
    for length, row in found["lengths"].items():
        speed, memory = row["tokens_a_second"], row["megabytes_beyond_loading"]
        print(f"| {length} | {speed:.0f} | {memory:.0f} |")
    print(f"\nother processes took {found['others']:.0%}; threads: {found['threads']}")
    print(f"one text and a thousand copies, seconds: {found['repeated']}")
    print(f"cached texts a second: {found['cached']}")


def main() -> None:
    """Print and save all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path(".full-size"))
    parser.add_argument("--small", type=Path, help="measure --count texts on it, and print JSON")
    parser.add_argument("--runtime", choices=RUNTIMES)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--length", type=int, help="measure texts of so many tokens, print JSON")
    parser.add_argument("--most", type=int, default=COUNTS[-1])
    options = parser.parse_args()
    if options.small:
        print(json.dumps(numbers(options.small, options.runtime, options.count)))
        return
    if options.length:
        print(json.dumps(of_length(options.checkpoint, options.runtime, options.length)))
        return
    found: dict[str, Any] = {"cached": cached()}
    with tempfile.TemporaryDirectory() as name:
        small = checkpoints.build(Path(name), checkpoints.SHAPES["narrow"])
        found["numbers"] = {
            f"{name}, {count}": in_own_process(
                "--small", str(small), "--runtime", name, "--count", str(count)
            )
            for name in RUNTIMES
            for count in COUNTS
            if count <= options.most
        }
    folder = full_size.build(options.checkpoint)
    neighbours = Neighbours()
    found["lengths"] = {
        f"{name}, {length}": in_own_process(
            "--checkpoint", str(folder), "--runtime", name, "--length", str(length)
        )
        for name in RUNTIMES
        for length in LENGTHS
    }
    runtime = TransformersRuntime(folder, device="cpu")
    runtime._load()
    found["threads"] = {count: with_threads(runtime, count) for count in (1, 2)}
    found["others"] = neighbours.share()
    found["repeated"] = repeated(runtime)
    show(found)
    save("growth", found)


if __name__ == "__main__":
    main()
