"""What the framework classes add to the core, at the batch sizes that the frameworks use.

The runtime here computes nothing, so only this package's own work is timed. The speed of the
full-size model in ``results/local-float32.json`` puts it in proportion.

Run: PYTHONPATH=tests python benchmarks/adapters.py
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import fakes
import numpy as np
from llama_index.core import Settings
from pairs import RESULTS, in_turn, machine, save

from gemma_embed import Embedder
from gemma_embed.runtimes import Batch
from langchain_gemma_embed import GemmaEmbeddings
from llamaindex_gemma_embed import GemmaEmbedding

TEXTS = 2048
# LangChain: a query; HuggingFaceEmbeddings' batch; index()'s batch; add_documents' all at once.
# LlamaIndex: a query; the base class's default; this package's default; the maximum allowed.
BATCHES = {"LangChain": (1, 32, 100, TEXTS), "LlamaIndex": (1, 10, 256, TEXTS)}
BAR = 0.02


class Instant(fakes.FakeRuntime):
    """Returns vectors that were computed in advance."""

    _vectors = np.random.default_rng(0).normal(size=(TEXTS, 768)).astype(np.float32)

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch]:
        """Return as many vectors as there are texts."""
        del truncate
        yield Batch(range(len(texts)), self._vectors[: len(texts)])


def main() -> None:
    """Print and save one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    Settings.callback_manager.set_handlers([])
    texts = [f"Note number {i}: a few more words about a thing." for i in range(TEXTS)]
    found = {
        framework: {size: beyond(framework, texts, size, options.rounds) for size in sizes}
        for framework, sizes in BATCHES.items()
    }
    show(found)
    save("adapters", {"microseconds_a_text": found, "model": model_microseconds()})


def beyond(framework: str, texts: list[str], size: int, rounds: int) -> float:
    """Microseconds a text that the adapter adds to the core, median of the rounds."""
    runtime: Any = Instant()
    embedder = Embedder(runtime)
    if framework == "LangChain":
        embed: Callable[[list[str]], object] = GemmaEmbeddings(runtime).embed_documents
    else:
        embed = GemmaEmbedding(runtime, embed_batch_size=size).get_text_embedding_batch
    pages = [texts[start : start + size] for start in range(0, len(texts), size)]
    times = in_turn(
        {
            "core": lambda: [embedder.embed(page) for page in pages],
            "adapter": lambda: [embed(page) for page in pages],
        },
        rounds,
    )
    pairs = zip(times["adapter"], times["core"], strict=True)
    return statistics.median(adapter - core for adapter, core in pairs) / len(texts) * 1e6


def model_microseconds() -> float:
    """Microseconds a text of the full-size model here, as ``engines.py`` measured."""
    found = json.loads((RESULTS / "engines.json").read_text())
    times = found["engines"]["TransformersRuntime float32"]["seconds"]["0"]
    return statistics.median(times) / found["texts"] * 1e6


def show(found: dict[str, dict[int, float]]) -> None:
    """Print the table."""
    model = model_microseconds()
    print(f"{machine()}\nthe full-size model takes {model / 1000:.0f} ms a text\n")
    print("| | batch | beyond the core | of the model's time | 2 % at |\n" + "| --- " * 5 + "|")
    for framework, sizes in found.items():
        for size, cost in sizes.items():
            print(
                f"| {framework} | {size} | {cost:.0f} µs a text | {cost / model:.3%} "
                f"| {cost / BAR / 1000:.2f} ms a text |"
            )


if __name__ == "__main__":
    main()
