"""Kill an ingestion again and again, at random moments, and look at what is left.

Each kill is a SIGKILL of the process that ingests; the next run goes on where it was. When a run
comes through, everything the index holds is compared with what an uninterrupted run gives. The
vectors are made from the texts by arithmetic, so that each can be checked: the store's to the last
bit, Chroma's to its own rounding, since it normalises what it is given.

    PYTHONPATH=tests python benchmarks/crash.py --documents 10000 --kills 200

Prints a JSON object; exits with 1 if anything was lost, doubled, wrong, or computed too often.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import chromadb  # noqa: F401 - imported before forking, so that a run starts at once
import numpy as np
from fakes import FakeRuntime, vector_of

from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex
from gemma_embed.errors import CollectionDamaged
from gemma_embed.runtimes import Batch, TooLong

BATCH = 64
CHROMA_ROUNDING = 1e-7
SYNC_THRESHOLDS = (50, 1000, 100_000)


class CountingRuntime(FakeRuntime):
    """Writes down every text that it computes, where a kill cannot take it back."""

    def __init__(self, journal: Path) -> None:
        super().__init__()
        self._journal = journal

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        """Compute vectors of texts, none of which is too long."""
        assert not truncate
        for start in range(0, len(texts), BATCH):
            rows = range(start, min(start + BATCH, len(texts)))
            with self._journal.open("a") as file:
                file.writelines(f"{texts[row]}\n" for row in rows)
            yield Batch(rows, np.array([vector_of(texts[row]) for row in rows]), None)


def documents(count: int) -> list[dict[str, Any]]:
    """Passages of different lengths."""
    return [
        {"id": f"row {i}", "text": f"text {i} " + "word " * (i % 90), "metadata": {"n": i}}
        for i in range(count)
    ]


def ingest(folder: Path, count: int, sync_threshold: int) -> None:
    """One run, as a user's program would do it; in a process of its own."""
    runtime = CountingRuntime(folder / "computed")
    hnsw = {"sync_threshold": sync_threshold, "batch_size": min(100, sync_threshold)}
    index = ChromaIndex(folder / "db", "notes", Embedder(runtime), hnsw=hnsw)
    try:
        index.ingest(documents(count))
    except CollectionDamaged as error:
        note(folder, f"dead: {error.__cause__ or error}"[:200])
        before = len((folder / "computed").read_text().splitlines())
        rows = index.rebuild()
        after = len((folder / "computed").read_text().splitlines())
        note(folder, f"rebuilt {after - before} {rows}")
        index.ingest(documents(count))
    note(folder, "finished")


def compare(folder: Path, count: int) -> None:
    """Compare what is there with what an uninterrupted run gives; in a process of its own."""
    texts = documents(count)
    wanted = Embedder(FakeRuntime()).embed([each["text"] for each in texts])
    journal = folder / "computed"
    before = len(journal.read_text().splitlines())
    index = ChromaIndex(folder / "db", "notes", Embedder(CountingRuntime(journal)))
    again = index.ingest(texts)
    stored = index.embedder.embed([each["text"] for each in texts])
    computed_again = len(journal.read_text().splitlines()) - before
    held = index.collection
    ids: list[str] = []
    different = int(np.any(stored != wanted, axis=1).sum())
    for start in range(0, held.count() + 1000, 1000):
        got = held.get(limit=1000, offset=start, include=["documents", "embeddings"])
        ids += got["ids"]
        for row, text, vector in zip(got["ids"], got["documents"], got["embeddings"], strict=True):
            n = int(row.split()[1])
            same = np.allclose(vector, wanted[n], rtol=0, atol=CHROMA_ROUNDING)
            different += not (same and text == texts[n]["text"])
    result = {
        "lost": count - len(set(ids)),
        "doubled": len(ids) - len(set(ids)),
        "different": different,
        "unsearchable": count - index.check(),
        "unchanged in one more run": again.unchanged,
        # The fixed sentence that shows whose vectors a collection holds.
        "computed in one more run": computed_again - 1,
    }
    note(folder, "compared " + json.dumps(result))


def note(folder: Path, line: str) -> None:
    """Leave word for the process that kills."""
    with (folder / "notes").open("a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def notes(folder: Path) -> list[str]:
    """What runs left word of."""
    path = folder / "notes"
    return path.read_text().splitlines() if path.exists() else []


def started(target: Any, *values: Any) -> BaseProcess:
    """A process that does something, with everything imported."""
    process = multiprocessing.get_context("fork").Process(target=target, args=values)
    process.start()
    return process


def campaign(count: int, kills: int, seed: int, longest: float) -> dict[str, Any]:
    """Kill until there have been enough, then let the last ingestion come through."""
    draw = random.Random(seed)
    total: Counter[str] = Counter()
    deaths: Counter[str] = Counter()
    while total["kills"] < kills:
        threshold = SYNC_THRESHOLDS[total["ingestions"] % len(SYNC_THRESHOLDS)]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            killed = 0
            while "finished" not in notes(folder):
                run = started(ingest, folder, count, threshold)
                patience = draw.uniform(0, longest) if total["kills"] < kills else 600
                run.join(patience)
                if run.is_alive():
                    run.kill()
                    run.join()
                    killed += 1
                    total["kills"] += 1
                elif run.exitcode != 0:
                    total["runs that failed"] += 1
                    break
            comparison = started(compare, folder, count)
            comparison.join()
            total["comparisons that failed"] += comparison.exitcode != 0
            for line in notes(folder):
                if line.startswith("dead: "):
                    total["found dead"] += 1
                    deaths[line] += 1
                elif line.startswith("rebuilt "):
                    total["rebuilt"] += 1
                    total["computed in rebuilding"] += int(line.split()[1])
                elif line.startswith("compared "):
                    total.update(json.loads(line.removeprefix("compared ")))
            computed = Counter((folder / "computed").read_text().splitlines())
            repeated = sum(n - 1 for text, n in computed.items() if "text: text" in text)
            total["texts computed again"] += repeated
            total["texts allowed again"] += killed * BATCH
            total["ingestions"] += 1
            sys.stderr.write(f"{dict(total)}\n")
    return dict(total) | {"documents": count, "seed": seed, "deaths": dict(deaths)}


def main() -> int:
    """Run the campaign that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--longest", type=float, default=8.0, help="seconds before a kill")
    args = parser.parse_args()
    began = time.monotonic()
    report = campaign(args.documents, args.kills, args.seed, args.longest)
    print(json.dumps(report | {"seconds": round(time.monotonic() - began)}, indent=1))
    wrong = ("lost", "doubled", "different", "unsearchable", "computed in one more run")
    wrong += ("computed in rebuilding", "runs that failed", "comparisons that failed")
    fine = not any(report.get(name) for name in wrong)
    return 0 if fine and report["texts computed again"] <= report["texts allowed again"] else 1


if __name__ == "__main__":
    sys.exit(main())
