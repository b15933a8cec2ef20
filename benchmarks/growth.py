"""What a text costs as the work grows: number of texts, their length, threads, repetition, store.

Numbers of texts up to 100,000 are measured on a small checkpoint of the same architecture, each in
a process of its own; lengths and threads on the full-size one.

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
TOKENS_A_LENGTH = 1024
CACHED = 50_000
SPACE = "s"


def numbers(folder: Path, name: str, count: int) -> dict[str, float]:
    """Embed so many texts as a stream: texts a second, and memory at most."""
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


def by_length(runtime: TransformersRuntime, lengths: tuple[int, ...]) -> dict[int, float]:
    """Tokens a second for texts of a length, the best of two."""
    speeds = {}
    network = runtime._load()
    random = np.random.default_rng(0)
    for length in lengths:
        batch = random.integers(300, 9000, (max(1, TOKENS_A_LENGTH // length), length)).tolist()
        taken = min(seconds(lambda batch=batch: network.forward(batch)) for _ in range(2))
        speeds[length] = len(batch) * length / taken
    return speeds


def with_threads(runtime: TransformersRuntime, count: int) -> float:
    """Tokens a second of texts of 128 tokens on so many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return by_length(runtime, (128,))[128]
    finally:
        torch.set_num_threads(before)


def repeated(runtime: TransformersRuntime) -> dict[str, float]:
    """Seconds for one text, and for a thousand of the same."""
    embedder = Embedder(runtime)
    embedder.embed(["a text that comes again and again"])
    return {
        str(count): min(
            seconds(lambda count=count: embedder.embed(["a text that comes again"] * count))
            for _ in range(3)
        )
        for count in (1, 1000)
    }


def cached() -> dict[str, float]:
    """Texts a second out of a store that holds all of them."""
    texts = [f"Note number {i}: a few words more about a thing." for i in range(CACHED)]
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
            raise AssertionError("the store did not have all")
    return {"embedder": CACHED / through, "store": CACHED / alone}


def embedder_space(embedder: Embedder) -> str:
    """Name of the space under which an embedder keeps vectors in its store."""
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
    print("\n| tokens a text | tokens/s |\n| --- | --- |")
    for length, speed in found["lengths"].items():
        print(f"| {length} | {speed:.0f} |")
    print(f"\nothers took {found['others']:.0%} meanwhile; threads: {found['threads']}")
    print(f"one text and a thousand of it, seconds: {found['repeated']}")
    print(f"cached texts a second: {found['cached']}")


def main() -> None:
    """Print and save all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path(".full-size"))
    parser.add_argument("--small", type=Path, help="measure --count texts on it, and print JSON")
    parser.add_argument("--runtime", choices=RUNTIMES)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--most", type=int, default=COUNTS[-1])
    options = parser.parse_args()
    if options.small:
        print(json.dumps(numbers(options.small, options.runtime, options.count)))
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
    runtime = TransformersRuntime(full_size.build(options.checkpoint), device="cpu")
    runtime._load()
    neighbours = Neighbours()
    found["lengths"] = by_length(runtime, LENGTHS)
    found["threads"] = {count: with_threads(runtime, count) for count in (1, 2)}
    found["others"] = neighbours.share()
    found["repeated"] = repeated(runtime)
    show(found)
    save("growth", found)


if __name__ == "__main__":
    main()
