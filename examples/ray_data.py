"""Embed a table of texts with Ray Data, on all cores of this machine, and make an index of it.

Run it again after more texts came, or after it was killed: only what is missing is computed.

Run: python examples/ray_data.py texts.parquet --out vectors    columns: id, text; JSONL as well
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset
import ray
from common import run

from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex
from gemma_embed.parquet import load
from gemma_embed.passages import Passage
from gemma_embed.ray import EmbedBatch, missing


def compute(source: Path, out: Path, embed: EmbedBatch, workers: int) -> None:
    """Write the vectors that are not there yet."""
    read = ray.data.read_json if source.suffix == ".jsonl" else ray.data.read_parquet
    dataset = missing(read(str(source)), out, embed.fingerprint)
    embed.over(dataset, workers=workers).write_parquet(str(out), **embed.writing)


def rows(out: Path) -> Iterator[Passage]:
    """Yield what was embedded, as an index takes it."""
    embedded = pyarrow.dataset.field("status") == "ok"
    table = pyarrow.dataset.dataset(out, format="parquet")
    for batch in table.to_batches(columns=["id", "text"], filter=embedded):
        for row in batch.to_pylist():
            yield Passage(row["text"], id=str(row["id"]))


def main() -> None:
    """Compute what is missing, then fill store and index in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, default=Path("vectors"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--runtime", default="onnx")
    parser.add_argument("--model", default="bundled")
    options = parser.parse_args()
    embed = EmbedBatch(options.runtime, options.model)

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # One more than the workers take: reading and writing need a place, and hardly any time.
    ray.init(num_cpus=options.workers + 1, include_dashboard=False)
    compute(options.source, options.out, embed, options.workers)
    ray.shutdown()

    # No text is computed from here on; the index embeds one sentence to compare models.
    embedder = Embedder(options.runtime, options.model, store=f"{options.out}.sqlite")
    loaded = load(options.out, embedder)
    print(f"{loaded.loaded} vectors in the store; without one: {loaded.without_vector or 'none'}.")
    with ChromaIndex(f"{options.out}-index", "texts", embedder) as index:
        report = index.ingest(rows(options.out), remove_absent=True)
    print(f"{report.added} rows added to the index, {report.unchanged} were there.")


if __name__ == "__main__":
    run(main)
