"""Kill an ingestion repeatedly, at random moments, and check what is left.

Each kill is a SIGKILL of the process that ingests; the next run continues. One kill in four comes
at a random moment after the start, usually while the run reads the existing rows; the others come
at a random moment after a random number of new texts, while it writes. When a run finishes, all
rows of the index are compared with the result of an uninterrupted run. The vectors are computed
from the texts by arithmetic, so each can be checked: the store's bit for bit, Chroma's up to its
rounding, because Chroma normalises them.

If a kill may have left Chroma's vector files half written, ``ingest`` raises an error, and the run
recreates the collection from the documents and the store, without the model.

``--tear`` is the share of kills that also truncate the index's files at random places, as a power
failure can. If that damages the collection, it is recreated in the same way.

    PYTHONPATH=tests python benchmarks/crash.py --documents 10000 --kills 200
    PYTHONPATH=tests python benchmarks/crash.py --documents 2000 --kills 60 --tear 0.5

Prints a JSON object and saves it under a name with the seed. Exits with 1 if anything was lost,
doubled, wrong or computed too often, or if a damaged collection was not recreated.
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
from pairs import save

from gemma_embed import Embedder, EmbeddingStore
from gemma_embed.chroma import ChromaIndex
from gemma_embed.errors import CollectionDamaged
from gemma_embed.runtimes import Batch, TooLong

BATCH = 64
CHROMA_ROUNDING = 1e-7
SYNC_THRESHOLDS = (50, 1000, 100_000)
KILLS_PER_INGESTION = 10
EARLY_SHARE = 0.25
EARLY_SECONDS = 2.0
LATE_SECONDS = 0.5
POLL_SECONDS = 0.002


class CountingRuntime(FakeRuntime):
    """Logs every text that it computes to a file, which survives a kill."""

    def __init__(self, journal: Path) -> None:
        super().__init__()
        self._journal = journal

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        """Compute vectors of texts that fit into the context."""
        assert not truncate
        for start in range(0, len(texts), BATCH):
            rows = range(start, min(start + BATCH, len(texts)))
            with self._journal.open("a") as file:
                file.writelines(f"{texts[row]}\n" for row in rows)
            yield Batch(rows, np.array([vector_of(texts[row]) for row in rows]))


def documents(count: int) -> list[dict[str, Any]]:
    """Passages of different lengths."""
    return [
        {"id": f"row {i}", "text": f"text {i} " + "word " * (i % 90), "metadata": {"n": i}}
        for i in range(count)
    ]


def ingest(folder: Path, count: int, sync_threshold: int) -> None:
    """One run, as a user's program would do it, in its own process."""
    runtime = CountingRuntime(folder / "computed")
    hnsw = {"sync_threshold": sync_threshold, "batch_size": min(100, sync_threshold)}
    index = ChromaIndex(folder / "db", "notes", Embedder(runtime), hnsw=hnsw)
    try:
        index.ingest(documents(count))
    except CollectionDamaged as error:
        recreate(folder, index, count, error)
    note(folder, "finished")


def check(folder: Path, count: int) -> None:
    """Check and recreate after Chroma crashed the process; runs in its own process."""
    index = ChromaIndex(folder / "db", "notes", Embedder(CountingRuntime(folder / "computed")))
    try:
        index.check()
    except CollectionDamaged as error:
        recreate(folder, index, count, error)


def recreate(folder: Path, index: ChromaIndex, count: int, error: CollectionDamaged) -> None:
    """Recreate a damaged collection, and log what that cost."""
    kind = "half written: " if "was killed" in str(error) else "damaged: "
    note(folder, f"{kind}{error.__cause__ or error}"[:200].replace(str(folder), ""))
    before, lacking = len(computed(folder)), count - stored(folder)
    report = index.recreate(documents(count))
    # Texts that were not yet stored when the runs were killed are computed here.
    note(folder, f"recreated {len(computed(folder)) - before - lacking} {report.added}")


def computed(folder: Path) -> list[str]:
    """All computed documents, with repetitions, without the passport's sentence."""
    journal = folder / "computed"
    lines = journal.read_text().splitlines() if journal.exists() else []
    return [line for line in lines if "text: text" in line]


def stored(folder: Path) -> int:
    """Documents whose vectors are in the store."""
    with EmbeddingStore(folder / "db.embeddings.sqlite") as store:
        # The passport's sentence is stored before the first document.
        return max(0, store.stats().vectors - 1)


def compare(folder: Path, count: int) -> None:
    """Compare the index with the result of an uninterrupted run, in its own process."""
    texts = documents(count)
    wanted = Embedder(FakeRuntime()).embed([each["text"] for each in texts])
    journal = folder / "computed"
    before = len(computed(folder))
    index = ChromaIndex(folder / "db", "notes", Embedder(CountingRuntime(journal)))
    again = index.ingest(texts)
    stored = index.embedder.embed([each["text"] for each in texts])
    computed_again = len(computed(folder)) - before
    collection = index.open()
    ids: list[str] = []
    different = int(np.any(stored != wanted, axis=1).sum())
    for start in range(0, collection.count() + 1000, 1000):
        got = collection.get(limit=1000, offset=start, include=["documents", "embeddings"])
        ids += got["ids"]
        for row, text, vector in zip(got["ids"], got["documents"], got["embeddings"], strict=True):
            n = int(row.split()[1])
            same = np.allclose(vector, wanted[n], rtol=0, atol=CHROMA_ROUNDING)
            different += not (same and text == texts[n]["text"])
    damaged = 0
    try:
        found = index.check()
    except CollectionDamaged as error:
        damaged = 1
        recreate(folder, index, count, error)
        found = index.check()
    result = {
        "lost": count - len(set(ids)),
        "doubled": len(ids) - len(set(ids)),
        "different": different,
        "damaged in the end": damaged,
        "missing after recreating": count - found,
        "unchanged in one more run": again.unchanged,
        "computed in one more run": computed_again,
    }
    note(folder, "compared " + json.dumps(result))


def note(folder: Path, line: str) -> None:
    """Log a line for the process that kills."""
    with (folder / "notes").open("a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def notes(folder: Path) -> list[str]:
    """Lines that the runs logged."""
    path = folder / "notes"
    return path.read_text().splitlines() if path.exists() else []


def started(target: Any, *values: Any) -> BaseProcess:
    """Start a function in a process in which everything is already imported."""
    process = multiprocessing.get_context("fork").Process(target=target, args=values)
    process.start()
    return process


def killed(run: BaseProcess, journal: Path, total_bytes: int, draw: random.Random) -> bool:
    """Kill a run at a random point, unless it finishes before that.

    Args:
        run: The process.
        journal: Log of the texts that it computes.
        total_bytes: Size of the log of an uninterrupted run.
        draw: Source of randomness.

    Returns:
        Whether it was killed.
    """
    if draw.random() < EARLY_SHARE:
        run.join(draw.uniform(0, EARLY_SECONDS))
    else:
        goal = size(journal) + draw.uniform(0, 2 * total_bytes / KILLS_PER_INGESTION)
        while run.is_alive() and size(journal) < goal:
            time.sleep(POLL_SECONDS)
        run.join(draw.uniform(0, LATE_SECONDS))
    if not run.is_alive():
        return False
    run.kill()
    run.join()
    return True


def torn(database: Path, draw: random.Random) -> bool:
    """Truncate an index's files; return whether there were any."""
    files = sorted(path for path in database.glob("*/*") if size(path))
    for path in files:
        os.truncate(path, draw.randrange(size(path)))
    return bool(files)


def unstored(folder: Path) -> int:
    """Texts that were computed and are not in the store."""
    return max(0, len(set(computed(folder))) - stored(folder))


def size(path: Path) -> int:
    """Bytes of a file; 0 if it does not exist yet."""
    return path.stat().st_size if path.exists() else 0


def campaign(
    count: int, kills: int, seed: int, tear: float, thresholds: Sequence[int]
) -> dict[str, Any]:
    """Kill until there were enough kills, then let the last ingestion finish."""
    draw = random.Random(seed)
    prompt = len("title: none | text: ")
    total_bytes = sum(prompt + len(each["text"]) + 1 for each in documents(count))
    names = (
        "half written",
        "found damaged",
        "recreated",
        "recreations killed",
        "computed in recreating",
    )
    total = Counter(dict.fromkeys(names, 0))
    errors: Counter[str] = Counter()
    most_lost = 0
    while total["kills"] < kills:
        threshold = thresholds[total["ingestions"] % len(thresholds)]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            kills_here = tears_here = unstored_before = known = 0
            # A run may be killed, and its files truncated, between its last line and its exit.
            while notes(folder)[-1:] != ["finished"]:
                run = started(ingest, folder, count, threshold)
                if total["kills"] < kills and killed(run, folder / "computed", total_bytes, draw):
                    kills_here += 1
                    total["kills"] += 1
                    # The last line of this run, if it had found a damaged collection.
                    last = "".join(notes(folder)[known:][-1:])
                    total["recreations killed"] += last.startswith(("damaged: ", "half written: "))
                    known = len(notes(folder))
                    unstored_now = unstored(folder)
                    most_lost = max(most_lost, unstored_now - unstored_before)
                    unstored_before = unstored_now
                    if draw.random() < tear and torn(folder / "db", draw):
                        tears_here += 1
                        note(folder, "torn")
                        known += 1
                    continue
                run.join()
                if run.exitcode != 0 and tears_here:
                    total["crashed by Chroma"] += run.exitcode < 0
                    run = started(check, folder, count)
                    run.join()
                if run.exitcode != 0:
                    total["runs that failed"] += 1
                    break
            total["torn"] += tears_here
            comparison = started(compare, folder, count)
            comparison.join()
            total["comparisons that failed"] += comparison.exitcode != 0
            for line in notes(folder):
                if line.startswith("half written: "):
                    total["half written"] += 1
                elif line.startswith("damaged: "):
                    total["found damaged"] += 1
                    errors[line] += 1
                elif line.startswith("recreated "):
                    total["recreated"] += 1
                    total["computed in recreating"] += int(line.split()[1])
                elif line.startswith("compared "):
                    total.update(json.loads(line.removeprefix("compared ")))
            repeated = sum(n - 1 for n in Counter(computed(folder)).values())
            total["texts computed again"] += repeated
            total["texts allowed again"] += kills_here * BATCH
            total["ingestions"] += 1
            sys.stderr.write(f"{dict(total)}\n")
    report: dict[str, Any] = {"documents": count, "seed": seed, "sync thresholds": thresholds}
    most = {"most texts lost to one kill": most_lost, "texts in a batch": BATCH}
    return report | dict(total) | most | {"errors": dict(errors)}


def main() -> int:
    """Run the campaign of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tear", type=float, default=0, help="share of kills that truncate files")
    parser.add_argument(
        "--sync-threshold", type=int, help="this threshold instead of several in turn"
    )
    parser.add_argument("--no-save", action="store_true", help="print the report only")
    args = parser.parse_args()
    began = time.monotonic()
    thresholds = (args.sync_threshold,) if args.sync_threshold else SYNC_THRESHOLDS
    report = campaign(args.documents, args.kills, args.seed, args.tear, thresholds)
    report["seconds"] = round(time.monotonic() - began)
    print(json.dumps(report, indent=1))
    if not args.no_save:
        save(f"crash{'-torn' if args.tear else ''}-{args.seed}", report)
    wrong = ("lost", "doubled", "different", "missing after recreating")
    wrong += ("computed in one more run", "computed in recreating")
    wrong += ("runs that failed", "comparisons that failed")
    passed = (
        not any(report.get(name) for name in wrong)
        and report["found damaged"] + report["half written"]
        == report["recreated"] + report["recreations killed"]
        and report["texts computed again"] <= report["texts allowed again"]
        and report["most texts lost to one kill"] <= BATCH
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
