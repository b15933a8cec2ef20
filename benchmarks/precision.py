"""How close each precision of OnnxRuntime is to float32, over the texts of ``corpus.py``.

Neighbours are counted among the same texts; the size is that of the graph and its numbers. What
precisions do to recall is in ``quality.py``, speed and memory are in ``engines.py``.

Run: python benchmarks/precision.py --model FOLDER --corpus FILE
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import get_args

from pairs import save

from gemma_embed import Embedder
from gemma_embed.evaluate import agreement
from gemma_embed.runtimes import OnnxRuntime
from gemma_embed.vectors import Vectors
from gemma_fast.quantization import Precision

CLOSENESS = ("mean", "1 in 100", "least")


def measured(model: str, precision: Precision, texts: list[str]) -> tuple[Vectors, float]:
    """Return the texts' vectors, and the megabytes (10^6 bytes) of what was written for them."""
    with tempfile.TemporaryDirectory() as place:
        runtime = OnnxRuntime(model, precision=precision, cache_dir=place)
        vectors = Embedder(runtime, overlong="truncate").embed_documents(texts)
        return vectors, sum(file.stat().st_size for file in Path(place).glob("*/model.*")) / 1e6


def main() -> None:
    """Print and save one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=os.environ.get("GEMMA_EMBED_WEIGHTS", "bundled"))
    parser.add_argument("--corpus", type=Path, required=True)
    options = parser.parse_args()
    texts = [json.loads(line)["text"] for line in options.corpus.read_text().splitlines()]
    exact, size = measured(options.model, "float32", texts)
    found = {"float32": {"megabytes": size}}
    print("| | Cosine, mean | 1 in 100 | Worst | Ten nearest, shared | Files |")
    print("| --- | --- | --- | --- | --- | --- |")
    for precision in get_args(Precision)[1:]:
        vectors, size = measured(options.model, precision, texts)
        one = found[precision] = {"megabytes": size, **agreement(exact, vectors).as_dict()}
        cosines = " | ".join(f"{one[f'cosine, {which}']:.4f}" for which in CLOSENESS)
        shared = f"{100 * one['nearest shared, mean']:.1f} %"
        print(f"| {precision} | {cosines} | {shared} | {size:.0f} MB |", flush=True)
    save("precision", {"found": found})


if __name__ == "__main__":
    main()
